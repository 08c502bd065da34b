"""The settings: read, checked, watched.

`load` makes `settings` from the file, the environment and the flags; `watch` looks for changes.
"""
