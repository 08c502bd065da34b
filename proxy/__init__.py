"""csq-proxy: a local gateway to Contentsquare's APIs.

Two straight lines run through this package (CONTRIBUTING.md draws them): a *request* reads one
immutable lease and is forwarded with it; a *refresh*, in a task of its own, is the only
writer of leases.
"""

__version__ = "0.1.0"
