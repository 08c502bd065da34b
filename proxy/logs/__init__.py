"""Logging: `setup` configures it, `redact` hides secrets, `sink` writes, `events` counts repeats."""
