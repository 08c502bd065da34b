"""How much memory slow callers cost."""
