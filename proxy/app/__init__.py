"""One running process: wiring, reload, signals."""
