"""``/-/exports/PROJECT/JOB_ID/latest.csv``: the files of an export's newest run, by one constant URL.

A request looks the run up at Contentsquare, which takes a slot for that time, and then streams the run's
files from their storage. The caller gets the proxy's own answer and never a redirect; the storage gets
neither token nor key. All errors come before the first byte, and a later one cuts the connection.
Sources: RFC 9110, sections 8.8 (validators), 13 and 14; RFC 9112, section 7.1.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import zlib
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from typing import Final

from proxy.contentsquare import Api
from proxy.errors import (
    BadTarget,
    MethodRefused,
    NotFound,
    PreconditionFailed,
    ProxyError,
    RangeNotSatisfiable,
    Side,
    UnknownProject,
    UpstreamError,
)
from proxy.gateway.callers import Caller
from proxy.gateway.entrance import take_place
from proxy.gateway.exports.calls import OwnCalls
from proxy.gateway.exports.content import Content, Made, Stored
from proxy.gateway.exports.pins import Pin, PinKey, Pins
from proxy.gateway.exports.runs import Relayed, Run, RunFinder, storage_trouble, trouble_of
from proxy.gateway.exports.storage import Pieces, Storage, StorageRefused
from proxy.gateway.generation import Generation
from proxy.gateway.stalls import StallWatch
from proxy.http1 import chunk, last_chunk
from proxy.http1.ranges import NOT_MODIFIED, NotSatisfiable, asked_range, failed_precondition
from proxy.projects import Project
from proxy.projects.recent import RecentRequests
from proxy.server.answer import Fields, begin_answer, write_answer
from proxy.server.facts import Cut
from proxy.server.request import Request

PREFIX: Final = b"/-/exports/"
MOST_AT_ONCE: Final = 16
"""Exports that one caller may read at once; callers without a key count as one."""
SMALL_BYTES: Final = 8 << 20
"""Files of at most this size together are made before the answer begins, also where no length is needed."""
HEAD_WAIT_S: Final = 5.0
"""The longest wait for a content's length; a HEAD is then answered without one."""
_PATH: Final = re.compile(
    rb"/-/exports/(?P<project>[^/]+(?:/[^/]+)?)/(?P<job>[A-Za-z0-9_-]{1,128})"
    rb"/latest\.(?P<suffix>(?P<format>csv|jsonl)(?P<gzip>\.gz)?)\Z"
)
_RUN: Final = re.compile(rb"run=([A-Za-z0-9_-]{1,128})\Z")
_TYPES: Final = {"csv": b"text/csv; charset=utf-8", "jsonl": b"application/x-ndjson; charset=utf-8"}
_BUSY: Final = f"This caller reads {MOST_AT_ONCE} exports at once already; wait for one of them."
_METHODS: Final = ((b"Allow", b"GET, HEAD, OPTIONS"),)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request asks for. ``run_id`` None: the newest run."""

    path: bytes
    project: bytes
    job_id: str
    run_id: str | None
    format: str
    is_gzip: bool

    @classmethod
    def of(cls, target: bytes) -> _Asked:
        """Raises NotFound or BadTarget."""
        path, _, query = target.partition(b"?")
        match = _PATH.match(path)
        if match is None:
            raise NotFound(
                "The paths of exports are /-/exports/PROJECT/JOB_ID/latest.csv, latest.csv.gz, latest.jsonl"
                " and latest.jsonl.gz, with ?run=ID for another run than the newest. A JOB_ID has letters,"
                " digits, - and _. Below an account: /-/exports/ACCOUNT/PROJECT_ID/JOB_ID/latest.csv."
            )
        runs = [part for part in query.split(b"&") if part.startswith(b"run=")]
        run = _RUN.match(runs[0]) if runs else None
        if len(runs) > 1 or (runs and run is None):
            raise BadTarget("run must be given once, as letters, digits, - and _.")
        return cls(
            path,
            match["project"],
            match["job"].decode(),
            None if run is None else run[1].decode(),
            match["format"].decode(),
            match["gzip"] is not None,
        )

    @property
    def suffix(self) -> str:
        """The end of the file's name."""
        return f"{self.format}.gz" if self.is_gzip else self.format

    def check_format(self, found: str) -> None:
        """Raise NotFound, with the right URL, where the job's files have another format."""
        if found != self.format:
            suffix = f"{found}.gz" if self.is_gzip else found
            path = self.path.rpartition(b"/")[0].decode("ascii", "replace")
            query = "" if self.run_id is None else f"?run={self.run_id}"
            raise NotFound(
                f"The files of job {self.job_id} are {found.upper()}, and nothing is converted here:"
                f" use {path}/latest.{suffix}{query}"
            )


class Exports:
    """Answers these requests. ``stalls`` hears of look-ups that wait for a slot; ``recent`` keeps them."""

    def __init__(self, stalls: StallWatch, recent: RecentRequests) -> None:
        self._stalls = stalls
        self._recent = recent
        self._pins = Pins()
        self._rooms: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MOST_AT_ONCE))

    async def answer(
        self, request: Request, generation: Generation, caller: Caller | None, target: bytes
    ) -> bool:
        """Answer a request; whether the connection can be kept. Raises ProxyError before the first byte."""
        method = request.head.method
        if method == b"OPTIONS":
            return write_answer(request, 204, b"", fields=_METHODS)
        if method not in (b"GET", b"HEAD"):
            raise MethodRefused("Use GET or HEAD here.", fields=_METHODS)
        asked = _Asked.of(target)
        name = "" if caller is None else caller.name
        request.facts.caller = name or None
        project = _project(asked, request, generation, caller)
        request.facts.project = project.name
        room = self._rooms[name]
        project.running += 1  # so that a reload doesn't close what this request uses
        try:
            await take_place(room, _BUSY)
            try:
                return await self._answer(request, generation, asked, project)
            finally:
                room.release()
        finally:
            project.running -= 1

    async def _answer(
        self, request: Request, generation: Generation, asked: _Asked, project: Project
    ) -> bool:
        vendor = generation.settings.contentsquare
        self._pins.spools.limit = vendor.export_spool
        storage = Storage(generation.outward.downloads, vendor.allowed_downloads)
        calls = OwnCalls(
            request,
            project,
            generation.outward.upstreams,
            self._stalls,
            self._recent,
            queue_timeout_s=generation.queue_timeout_s,
        )
        key = PinKey(request.facts.caller or "", project, asked.job_id, asked.run_id)
        while True:
            async with self._pins.using(key) as pin:
                was_known = pin.run is not None
                try:
                    finder = RunFinder(calls, storage, asked.job_id, pin.known)
                    run = await self._pins.run(pin, partial(_find, finder, asked))
                    asked.check_format(run.format)
                    reading = _Reading(request, asked, project.name, run)
                    return await reading.send(lambda: self._content(reading, pin, storage))  # noqa: B023
                except Relayed as answer:
                    request.facts.is_relayed = True
                    content_type = answer.head.fields.only(b"content-type") or b"application/json"
                    return write_answer(
                        request, answer.head.status, answer.content, content_type=content_type
                    )
                except StorageRefused as refused:  # of URLs that are known for a while: get new ones
                    self._pins.forget(key, pin)
                    if not (was_known and refused.may_be_gone):
                        raise storage_trouble(str(refused)) from None
                except UpstreamError as error:
                    raise trouble_of(error) from None

    async def _content(self, reading: _Reading, pin: Pin, storage: Storage) -> Content:
        """The content, with its length where that is known, or is worth the wait."""
        run, is_gzip = reading.run, reading.asked.is_gzip
        if len(run.files) == 1 and run.files[0].is_gzip == is_gzip and run.files[0].size is not None:
            return Stored(storage, run.files[0])
        content = Made(storage, run.files, run.format == "csv", is_gzip)
        stored = run.stored_bytes
        if stored is not None and stored > self._pins.spools.limit:
            return content
        if reading.wants_length or (stored is not None and stored <= SMALL_BYTES):
            limit_s = HEAD_WAIT_S if reading.is_head else None
            return await self._pins.made(pin, content, is_gzip=is_gzip, limit_s=limit_s)
        return pin.spools.get(is_gzip) or content

    def close(self) -> None:
        """Forget the runs, and delete what was made of their files."""
        self._pins.close()


def _project(asked: _Asked, request: Request, generation: Generation, caller: Caller | None) -> Project:
    """The project that a path names, if the caller may use it. Raises UnknownProject."""
    target = b"/%b/v1/exports/%b" % (asked.project, asked.job_id.encode())
    project, api, _ = generation.router.route(target, caller)
    owner = request.connection.listener.project
    if api is not Api.DATA_EXPORT or owner not in (None, project.name):
        raise UnknownProject("There is no such project here: use /-/exports/PROJECT/JOB_ID/latest.csv.")
    return project


async def _find(finder: RunFinder, asked: _Asked) -> Run:
    asked.check_format(await finder.format())
    return await finder.run(asked.run_id)


@dataclass(frozen=True, slots=True)
class _Reading:
    """One request for the content of a run."""

    request: Request
    asked: _Asked
    project: str
    run: Run

    @property
    def is_head(self) -> bool:
        """Whether the caller wants the fields alone."""
        return self.request.head.method == b"HEAD"

    @property
    def wants_length(self) -> bool:
        """Whether the caller needs the content's length, or a part of the content."""
        return self.is_head or self.request.field(b"range") is not None

    async def send(self, content_of: Callable[[], Awaitable[Content]]) -> bool:
        """Answer with the content; whether the connection can be kept.

        Raises ProxyError, StorageRefused or UpstreamError before the first byte.
        """
        fields, etag = self.request.head.fields, self._etag()
        status = failed_precondition(fields, etag, self.run.modified)
        if status == NOT_MODIFIED:
            return self._begin(NOT_MODIFIED, None, self._fields(etag))
        if status is not None:
            raise PreconditionFailed("The export is another one than the request wants.")
        content = await content_of()
        answer_fields = self._fields(etag)
        part: range | None = None
        length = content.length
        if length is not None and content.takes_ranges:
            answer_fields += ((b"Accept-Ranges", b"bytes"),)
            part = self._part(length, etag)
        if part is not None:
            answer_fields += ((b"Content-Range", b"bytes %d-%d/%d" % (part[0], part[-1], length or 0)),)
            length = len(part)
        begin = partial(self._begin, 200 if part is None else 206, length, answer_fields)
        if self.is_head:
            return begin()
        return await _stream(self.request, begin, length, content.pieces(part))

    def _part(self, length: int, etag: bytes) -> range | None:
        """The part that the request asks for; None: all. Raises RangeNotSatisfiable."""
        if self.request.head.method != b"GET":
            return None
        try:
            return asked_range(self.request.head.fields, length, etag, self.run.modified)
        except NotSatisfiable:
            raise RangeNotSatisfiable(
                f"The export has {length} bytes, and none of them is in the range.",
                fields=((b"Content-Range", b"bytes */%d" % length),),
            ) from None

    def _etag(self) -> bytes:
        """A strong validator: of the run, its files, and the form in which they are asked for."""
        of_form = f"{self.run.run_id} {self.asked.suffix} {zlib.ZLIB_RUNTIME_VERSION}"
        digest = hashlib.sha256(of_form.encode())
        for file in self.run.files:
            digest.update(b"\0%b\0%b\0%b" % (file.path, file.etag, str(file.size).encode()))
        return b'"%b"' % digest.hexdigest()[:32].encode()

    def _fields(self, etag: bytes) -> Fields:
        name = f"{self.project.replace('/', '-')}-{self.asked.job_id}-{self.run.run_id}.{self.asked.suffix}"
        fields: Fields = (
            (b"Content-Disposition", b'attachment; filename="%b"' % name.encode()),
            (b"ETag", etag),
        )
        if self.run.modified is not None:
            fields += ((b"Last-Modified", formatdate(self.run.modified, usegmt=True).encode()),)
        return fields

    def _begin(self, status: int, length: int | None, fields: Fields) -> bool:
        """Send the answer's head; whether the connection can be kept."""
        self.request.facts.is_relayed = True
        content_type = b"application/gzip" if self.asked.is_gzip else _TYPES[self.asked.format]
        return begin_answer(
            self.request, status, length, content_type, fields=fields, cache=b"private, no-cache"
        )


async def _stream(request: Request, begin: Callable[[], bool], length: int | None, pieces: Pieces) -> bool:
    """Send a content as fast as the caller takes it. Raises what ``pieces`` does before the first byte.

    ``begin`` sends the head. ``length`` None: the content ends with a last chunk, or with the connection.
    """
    chunked = length is None and request.head.minor == 1
    keep = False
    try:
        async with contextlib.aclosing(pieces):
            piece = await anext(pieces, b"")
            keep = begin()
            while piece:
                request.write(chunk(piece) if chunked else piece)
                request.answer_bytes += len(piece)
                await request.connection.drained()
                piece = await anext(pieces, b"")
    except (StorageRefused, ProxyError, UpstreamError) as error:
        if not request.head_sent:
            raise
        return _cut(request, str(error), error.side if isinstance(error, UpstreamError) else "contentsquare")
    if length is not None and request.answer_bytes != length:
        return _cut(request, "the export's content has another length than was told", "contentsquare")
    if chunked:
        request.write(last_chunk([]))
    return keep


def _cut(request: Request, why: str, side: Side) -> bool:
    """Reset the connection, so that the part that was sent doesn't look whole."""
    request.facts.cut = Cut(why, side)
    request.connection.abort()
    return False
