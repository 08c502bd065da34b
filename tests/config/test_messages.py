"""How a fault names its key."""

from __future__ import annotations

import pytest

from proxy.config.messages import dotted


@pytest.mark.parametrize(
    ("path", "written"),
    [(("a", "b-c"), "a.b-c"), (("a", 0), "a[0]"), (("a", "b c"), 'a."b c"'), (("",), '""')],
)
def test_keys_are_written_as_in_toml(path: tuple[str | int, ...], written: str) -> None:
    assert dotted(path) == written
