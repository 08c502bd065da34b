"""Logging: `setup` configures it, `redact` keeps secrets out, `sink` writes, `events` tells repeated failures once."""
