"""Power Query's M, evaluated by `power_query.js` with Microsoft's parser."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from support.commands import STARTUP_S
from support.harness import WAIT_S

EVALUATOR = Path(__file__).with_name("power_query.js")


@functools.cache
def has_parser() -> bool:
    if shutil.which("node") is None:
        return False
    found = subprocess.run(
        ["node", "-e", "require.resolve('@microsoft/powerquery-parser')"],
        capture_output=True,
        timeout=STARTUP_S,
        cwd=EVALUATOR.parent,
        check=False,
    )
    return found.returncode == 0


async def evaluate(m: str, *, key: str = "") -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        "node",
        str(EVALUATOR),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "CSQ_KEY": key, "PACE": "0.02"},
    )
    assert process.stdin is not None
    process.stdin.write(m.encode())
    process.stdin.close()
    return process


async def ended(process: asyncio.subprocess.Process) -> tuple[list[dict[str, Any]], str]:
    """The table's rows, none where it failed, and what went to standard error."""
    async with asyncio.timeout(WAIT_S):
        output, errors = await process.communicate()
    return (json.loads(output) if process.returncode == 0 else []), errors.decode()
