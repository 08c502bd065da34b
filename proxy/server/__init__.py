"""Callers' connections: `listeners` accept, `connection` reads and writes, `request` is one request."""
