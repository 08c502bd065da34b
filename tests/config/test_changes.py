"""What differs between two configurations."""

from __future__ import annotations

from proxy.config.changes import Changes, differences
from proxy.config.load import load
from proxy.config.settings import Settings

ONE = {"client_id": "id-1", "client_secret": "secret-1", "apis": ["metrics"]}


def test_differences_name_keys_and_never_values() -> None:
    def settings(**sections: object) -> Settings:
        return load(None, {"projects": {"shop": ONE}, **sections}, {}, search=False)

    old = settings()
    assert differences(old, settings(), old) == Changes()
    new = settings(
        projects={"shop": {**ONE, "client_secret": "canary"}, "more": {**ONE, "port": 9000}},
        callers={"tool": {"key": "canary"}},
        contentsquare={"idle_timeout": 7},
    )
    told = differences(old, new, old)
    assert told == Changes(
        added=("projects.more", "callers.tool"),
        changed=("projects.shop", "contentsquare.idle_timeout"),
        needs_restart=("projects.more.port",),
    )
    assert differences(new, old, old).removed == ("projects.more", "callers.tool")
    assert differences(new, new, old).needs_restart == ("projects.more.port",)
