"""An export's files by one URL: the paths, the run, the answer's fields, and its errors."""

from __future__ import annotations

import asyncio
import gzip
import hashlib

import pytest
from support.harness import WAIT_S, read_message, until
from support.storage import LAST_MODIFIED, SIGNATURE, Stored, days_ago, error, exporting, json_answer

from proxy.gateway import exports

CSV = b"session_id,country\n1,FR\n2,DE\n"
JSONL = b'{"session_id": "1"}\n{"session_id": "2"}\n'


async def test_one_plain_file_is_answered_with_all_fields() -> None:
    async with exporting(CSV) as run:
        answer = await run.get()
        assert (answer.status, answer.content) == (200, CSV)
        assert answer.values(b"content-type") == [b"text/csv; charset=utf-8"]
        assert answer.values(b"content-length") == [b"%d" % len(CSV)]
        assert answer.values(b"content-disposition") == [b'attachment; filename="shop-1001-100001.csv"']
        assert answer.values(b"accept-ranges") == [b"bytes"]
        assert answer.values(b"last-modified") == [LAST_MODIFIED.encode()]
        assert answer.values(b"etag")[0].startswith(b'"')
        assert not answer.values(b"content-encoding")
        assert not answer.values(b"location")
