"""A process without a free file descriptor."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def none_left() -> Iterator[None]:
    """Each attempt to open something fails with EMFILE; the test is skipped on Windows."""
    if sys.platform == "win32":
        pytest.skip("Windows has no limit of descriptors that can be set")
    import resource  # noqa: PLC0415 - not on Windows

    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
