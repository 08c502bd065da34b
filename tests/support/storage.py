"""For the tests of exports: a storage like S3, and a cloud that tells of a job, its runs and their files."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from support.harness import Gateway, Message, RawServer, TokenServer, gateway, next_request

SIGNATURE = "?X-Amz-Signature=0f1e2d3c&X-Amz-Expires=604800"
CLOSE = b"close"
"""The storage closes the connection here."""
LAST_MODIFIED = "Sat, 28 Nov 2026 10:00:00 GMT"


def error(status: int, code: str, *, text: str = "") -> bytes:
    """An error in S3's shape."""
    content = f"<Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()
    return b"HTTP/1.1 %d X\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(content),
        content,
    )


@dataclass
class Stored:
    """An object. ``cut_after``: each answer breaks after so many bytes, ``cuts`` times."""

    content: bytes
    etag: str = ""
    cut_after: int = 0
    cuts: int = 1_000_000
    answer: bytes = b""
    """A whole answer, in place of the content, or a part of one and `CLOSE`."""
    has_length: bool = True
    takes_ranges: bool = True
    gate: asyncio.Event | None = None
    """The second half of the content comes once it is set."""

    def __post_init__(self) -> None:
        self.etag = self.etag or f'"{hashlib.sha256(self.content).hexdigest()[:16]}"'


@dataclass
class S3:
    """The storage: objects by their paths. Each request is kept."""

    objects: dict[str, Stored] = field(default_factory=dict)
    requests: list[Message] = field(default_factory=list)
    open: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while True:
                request = await next_request(reader)
                self.requests.append(request)
                await self._answer(request, writer)
                await writer.drain()
        finally:
            self.open -= 1

    async def _answer(self, request: Message, writer: asyncio.StreamWriter) -> None:
        method, target, _ = request.start_line.decode().split(" ")
        path, _, query = target.partition("?")
        found = self.objects.get(path)
        if method != "GET" or f"?{query}" != SIGNATURE:
            writer.write(error(403, "SignatureDoesNotMatch"))
        elif request.values(b"authorization"):
            writer.write(error(400, "InvalidArgument"))
        elif found is None:
            writer.write(error(404, "NoSuchKey"))
        elif found.answer:
            writer.write(found.answer.removesuffix(CLOSE))
            if found.answer.endswith(CLOSE):
                raise ConnectionResetError
        elif (wanted := request.values(b"if-match")) and wanted[0].decode() != found.etag:
            writer.write(error(412, "PreconditionFailed"))
        else:
            await self._send(request, found, writer)

    async def _send(self, request: Message, found: Stored, writer: asyncio.StreamWriter) -> None:
        size = len(found.content)
        asked = request.values(b"range") if found.takes_ranges else []
        match = re.fullmatch(rb"bytes=(\d+)-(\d*)", asked[0]) if asked else None
        fields = f"ETag: {found.etag}\r\nLast-Modified: {LAST_MODIFIED}\r\nServer: AmazonS3\r\n"
        status, part = 200, range(size)
        if match is not None:
            part = range(int(match[1]), min(int(match[2] or size - 1) + 1, size))
            if not part:
                head = f"HTTP/1.1 416 X\r\nContent-Range: bytes */{size}\r\nContent-Length: 0\r\n\r\n"
                writer.write(head.encode())
                return
            status = 206
            fields += f"Content-Range: bytes {part[0]}-{part[-1]}/{size}\r\n"
        if found.takes_ranges:
            fields += "Accept-Ranges: bytes\r\n"
        content = found.content[part.start : part.stop]
        fields += f"Content-Length: {len(content)}\r\n" if found.has_length else "Connection: close\r\n"
        writer.write(f"HTTP/1.1 {status} X\r\n{fields}\r\n".encode())
        is_look = len(content) <= 16 and status == 206
        if found.cut_after and found.cuts and not is_look:
            found.cuts -= 1
            writer.write(content[: found.cut_after])
            await writer.drain()
            writer.transport.abort() if found.has_length else writer.close()
            raise ConnectionResetError
        if found.gate is not None and not is_look:
            writer.write(content[: len(content) // 2])
            await writer.drain()
            await found.gate.wait()
            content = content[len(content) // 2 :]
        writer.write(content)
        if not found.has_length:
            await writer.drain()
            writer.close()
            raise ConnectionResetError


def days_ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat().replace("+00:00", "Z")


@dataclass
class ExportCloud:
    """The cloud: one job with its runs, the newest first; each has ``files``."""

    storage_url: str = ""
    job_id: str = "1001"
    format: str = "CSV"
    runs: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[str, bytes] = field(default_factory=dict)
    """Whole answers by path, in place of the right ones."""
    requests: list[Message] = field(default_factory=list)

    def add_run(self, run_id: object, *paths: str, state: str = "success", **members: object) -> None:
        files = [{"url": f"{self.storage_url}{path}{SIGNATURE}", "partId": n} for n, path in enumerate(paths)]
        run = {"jobRunId": run_id, "state": state, "createdAt": days_ago(0.5), "files": files}
        self.runs.insert(0, {**run, **members})

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await next_request(reader)
            self.requests.append(request)
            writer.write(self._answer(request.start_line.split(b" ")[1].decode()))
            await writer.drain()

    @property
    def calls(self) -> list[str]:
        """The targets that were called."""
        return [request.start_line.split(b" ")[1].decode() for request in self.requests]

    def _answer(self, target: str) -> bytes:
        path, _, query = target.partition("?")
        base = f"/v1/exports/{self.job_id}"
        if path in self.answers:
            return self.answers[path]
        if path == base:
            return json_answer({"jobId": self.job_id, "format": self.format, "state": "active"})
        if path == f"{base}/runs":
            shown = [{k: v for k, v in run.items() if k != "files"} for run in self.runs]
            if "state=success" in query:
                shown = [run for run in shown if run["state"] == "success"]
            return json_answer(shown)
        for run in self.runs:
            if path == f"{base}/runs/{run['jobRunId']}":
                return json_answer(run)
        content = b'{"success": false, "errorCode": "NOT_FOUND", "errorMessage": "No such job."}'
        return b"HTTP/1.1 404 X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
            len(content),
            content,
        )


def json_answer(payload: object) -> bytes:
    content = json.dumps({"success": True, "payload": payload}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(content),
        content,
    )


@dataclass
class Exporting:
    """A running proxy with its cloud and its storage."""

    proxy: Gateway
    cloud: ExportCloud
    storage: S3

    async def get(self, name: str = "latest.csv", *lines: bytes, method: str = "GET") -> Message:
        """A request for the job's file of that name, perhaps with a query."""
        return await self.proxy.call(f"{method} /-/exports/shop/1001/{name}".encode(), *lines)


@contextlib.asynccontextmanager
async def exporting(
    *parts: bytes,
    format: str = "CSV",  # noqa: A002 - the vendor's word
    packed: bool = False,
    tls: ssl.SSLContext | None = None,
    token: TokenServer | None = None,
    contentsquare: Mapping[str, object] | None = None,
    **sections: Mapping[str, object],
) -> AsyncIterator[Exporting]:
    """A proxy in front of a job whose one run has a file for each of ``parts``, gzipped if ``packed``."""
    storage = S3()
    async with RawServer(storage, tls=tls) as server:
        url = f"https://localhost:{server.port}" if tls else server.url
        cloud = ExportCloud(url, format=format)
        paths = []
        for number, part in enumerate(parts):
            paths.append(f"/exports/1001/part-{number:05d}.{format.lower()}{'.gz' if packed else ''}")
            storage.objects[paths[-1]] = Stored(gzip.compress(part, mtime=0) if packed else part)
        if parts:
            cloud.add_run(100_001, *paths)
        vendor = {"allowed_downloads": [url.partition("://")[2]], **(contentsquare or {})}
        async with gateway(cloud, token=token, **{**sections, "contentsquare": vendor}) as proxy:  # type: ignore[arg-type]
            yield Exporting(proxy, cloud, storage)
        assert not server.errors
