"""The proxy as a process of its own, for the long runs."""

from __future__ import annotations

import asyncio
import os
import re


def forget_http_proxies() -> None:
    """Let no program of this run go through an HTTP proxy."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        os.environ.pop(name, None)
        os.environ.pop(name.lower(), None)


async def printed_url(process: asyncio.subprocess.Process, limit_s: float) -> str:
    """The URL in the first line that ``csq-proxy serve`` prints, without a path."""
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), limit_s)).decode()
    found = re.search(r"https?://[^\s/,]+", line)
    assert found is not None, line
    return found[0]
