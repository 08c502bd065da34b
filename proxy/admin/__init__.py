"""Everything below ``/-/``: health, status, metrics, and the page."""
