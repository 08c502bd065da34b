"""The proxy as a process of its own, for the long runs."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path


def forget_http_proxies() -> None:
    """Let no program of this run go through an HTTP proxy."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        os.environ.pop(name, None)
        os.environ.pop(name.lower(), None)


async def logged_url(log: Path, limit_s: float) -> str:
    """The first URL of ``csq-proxy serve``, without a path, once its log, this file, holds ``listening``."""
    async with asyncio.timeout(limit_s):
        while True:
            for line in (await asyncio.to_thread(log.read_text, "utf-8")).splitlines(keepends=True):
                if '"event":"listening"' in line and line.endswith("\n"):
                    return str(json.loads(line)["urls"][0])
            await asyncio.sleep(0.05)
