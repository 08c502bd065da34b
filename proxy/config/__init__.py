"""The settings' types. `load` reads a configuration, `checks` compares its keys, `watch` reloads it.

`files`, `trust` and `variables` load no library: ``csq-proxy health`` needs them alone.
"""
