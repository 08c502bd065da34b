"""Windows, or Wine in its place: what Wine gets wrong is skipped there, each with its reason."""

from __future__ import annotations

import sys

import pytest

IS_WINE = False
if sys.platform == "win32":
    import ctypes

    IS_WINE = hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")


def not_on_wine(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(IS_WINE, reason=f"Wine: {reason}")


reset_behind_unread_bytes = not_on_wine("a reset behind bytes that are unread yet looks like a clean end")
verifies_certificates = not_on_wine("crypt32 accepts an unknown authority and another name")
has_no_access_lists = not_on_wine("no file has an access list, of which a warning tells")
