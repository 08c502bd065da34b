"""The settings' types. `load` reads a configuration, `checks` compares its keys, `watch` reloads it."""

from proxy.config.settings import Access, Credentials, Settings

__all__ = ["Access", "Credentials", "Settings"]
