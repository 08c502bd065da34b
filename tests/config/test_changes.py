"""What differs between two configurations."""

from __future__ import annotations

from pathlib import Path

from proxy.config.changes import Changes, differences, is_same
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


def test_a_quota_changes_no_token_and_the_folder_for_counts_needs_a_restart(tmp_path: Path) -> None:
    def settings(server: object, **more: object) -> Settings:
        return load(None, {"server": server, "projects": {"shop": {**ONE, **more}}}, {}, search=False)

    tmp_path.chmod(0o700)
    old, new = settings({}), settings({"state_dir": str(tmp_path)}, quota=15_000)
    assert is_same(old.projects["shop"], new.projects["shop"])
    assert new.quotas == {"shop": 15_000}
    assert differences(old, new, old).needs_restart == ("server.state_dir",)
