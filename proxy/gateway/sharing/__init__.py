"""One answer for several callers: `recording` keeps it, `cache_rules` says for how long."""
