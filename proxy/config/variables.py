"""The names of the environment variables that stand for no setting, and the prefix of all of them."""

PREFIX = "CSQ_PROXY_"
CONFIG = "CSQ_PROXY_CONFIG"
KEY = "CSQ_PROXY_KEY"
"""A caller's key, for the commands that ask a running proxy. The variable is no setting."""
