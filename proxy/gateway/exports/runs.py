"""Which run of an export is meant, and which files it has: asks Contentsquare and the files' storage.

Lenient about shapes, as client programs in the wild are. Sources: Contentsquare's Data Export API.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, cast

from proxy.contentsquare import FILES_LIVE_S, Api
from proxy.errors import ExportExpired, ExportNotReady, UpstreamError, UpstreamUnreachable
from proxy.gateway.exports.calls import RETRY_AFTER_S, OwnCalls
from proxy.gateway.exports.storage import Storage, StorageRefused, StoredFile
from proxy.gateway.exports.text import BadFile
from proxy.http1 import ResponseHead

NOT_READY_S: Final = 30
"""Seconds after which a caller should ask again for a run that isn't finished."""
LOOKS_AT_ONCE: Final = 4
"""Files that are looked at at once."""
SEGMENT: Final = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")
_SUCCESS: Final = ("success", "successful", "succeeded")
_STATE: Final = re.compile(r"[A-Za-z][A-Za-z _-]{0,31}\Z")
_DATES: Final = ("createdAt", "endDate", "startDate")
_Members = Mapping[str, object]


class Relayed(Exception):
    """Contentsquare refuses the look-up: its answer goes to the caller as it came."""

    def __init__(self, head: ResponseHead, content: bytes) -> None:
        super().__init__(head.status)
        self.head = head
        self.content = content


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run. ``format`` is "csv" or "jsonl"; ``files`` are in their order."""

    run_id: str
    format: str
    files: Sequence[StoredFile]

    @property
    def modified(self) -> float | None:
        """When the last file changed, in seconds since 1970; None where a storage doesn't tell."""
        dates = [file.modified for file in self.files]
        return None if None in dates else max(cast(list[float], dates), default=None)

    @property
    def stored_bytes(self) -> int | None:
        """The size of all files together; None where a storage doesn't tell."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(cast(list[int], sizes))


class RunFinder:
    """Finds a run of one job, by calls to Contentsquare that each take a slot for their time."""

    def __init__(self, calls: OwnCalls, storage: Storage, job_id: str) -> None:
        self._calls = calls
        self._storage = storage
        self._job_id = job_id
        self._target = f"/v1/exports/{job_id}"

    async def format(self) -> str:
        """The job's format, "csv" or "jsonl". Raises ProxyError or Relayed."""
        job = await self._payload("")
        found = _text(job, "format").lower()
        if found not in ("csv", "jsonl"):
            raise _unusable(f"it names no format of the job {self._job_id}")
        return found

    async def run(self, run_id: str | None, file_format: str) -> Run:
        """The run of that id; None: the newest successful one. Raises ProxyError or Relayed."""
        if run_id is None:
            run_id = await self._newest()
        found = await self._payload(f"/runs/{run_id}")
        if not _is_success(found):
            raise self._not_ready(f"its run {run_id} is {_state(found)}")
        files = await self._files(run_id, found)
        return Run(run_id, file_format, files)

    async def _newest(self) -> str:
        runs = await self._runs("state=success&order=desc&limit=20")
        by_age = sorted(filter(_is_success, runs), key=_age_key)
        ids = [run_id for run in by_age if (run_id := _id(run)) is not None]
        if ids:
            return ids[-1]
        runs = sorted(await self._runs("order=desc&limit=20"), key=_age_key)
        raise self._not_ready(f"its last run is {_state(runs[-1])}" if runs else "it has no run yet")

    async def _runs(self, query: str) -> list[_Members]:
        payload = await self._asked(f"/runs?{query}")
        if isinstance(payload, dict):  # a list within an object
            payload = next((value for value in payload.values() if isinstance(value, list)), None)
        if not isinstance(payload, list):
            raise _unusable("it has no list of runs")
        return [run for run in payload if isinstance(run, dict)]

    async def _files(self, run_id: str, run: _Members) -> Sequence[StoredFile]:
        listed = run.get("files")
        files = [file for file in listed if isinstance(file, dict)] if isinstance(listed, list) else []
        dates = [date for file in files if (date := _date(file, "expirationDate")) is not None]
        is_old = any(date < time.time() for date in dates) or _ended_at(run) < time.time() - FILES_LIVE_S
        if not files:
            if is_old:
                raise _expired(run_id)
            raise self._not_ready(f"its run {run_id} is a success, but has no files")
        if all(isinstance(file.get("partId"), int) for file in files):
            files.sort(key=lambda file: cast(int, file["partId"]))
        try:
            return await self._looks([file.get("url") for file in files])
        except StorageRefused as refused:
            if refused.says_expired or refused.status in (404, 410) or (refused.may_be_gone and is_old):
                raise _expired(run_id) from None
            raise storage_trouble(str(refused)) from None
        except UpstreamError as error:
            raise trouble_of(error) from None

    async def _looks(self, urls: Sequence[object]) -> Sequence[StoredFile]:
        room = asyncio.Semaphore(LOOKS_AT_ONCE)

        async def look(url: object) -> StoredFile:
            async with room:
                return await self._storage.look(url)

        looks = [asyncio.ensure_future(look(url)) for url in urls]
        try:
            return await asyncio.gather(*looks)
        finally:
            for one in looks:
                one.cancel()
            await asyncio.gather(*looks, return_exceptions=True)

    async def _payload(self, rest: str) -> _Members:
        payload = await self._asked(rest)
        if not isinstance(payload, dict):
            raise _unusable("it has no object as its payload")
        return payload

    async def _asked(self, rest: str) -> object:
        head, content = await self._calls.get(Api.DATA_EXPORT, f"{self._target}{rest}".encode())
        if head.status != 200:
            if 400 <= head.status < 500 and head.status != 429:
                raise Relayed(head, content)
            after = head.fields.only(b"retry-after") or b""
            raise UpstreamUnreachable(
                f"Contentsquare answered {head.status} to the question for the export's run. Try again.",
                proxy_status="http_response_incomplete",
                retry_after_s=min(120, int(after)) if after.isdigit() and len(after) < 6 else RETRY_AFTER_S,
            )
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            raise _unusable("it isn't JSON") from None
        return answer.get("payload", answer) if isinstance(answer, dict) else answer

    def _not_ready(self, why: str) -> ExportNotReady:
        return ExportNotReady(
            f"The export {self._job_id} is not ready: {why}. Ask again later.", retry_after_s=NOT_READY_S
        )


def storage_trouble(what: str, proxy_status: str = "connection_terminated") -> UpstreamUnreachable:
    """The answer where a storage doesn't hand a file over, for now."""
    return UpstreamUnreachable(
        f"The export's files can't be fetched: {what}. Try again.",
        proxy_status=proxy_status,
        retry_after_s=RETRY_AFTER_S,
    )


def trouble_of(error: UpstreamError) -> UpstreamUnreachable:
    """The answer where files can't be fetched; it asks for another try only where that can help."""
    if isinstance(error, BadFile) or error.proxy_status == "destination_ip_prohibited":
        return UpstreamUnreachable(
            f"The export's files can't be used: {error}.", proxy_status=error.proxy_status
        )
    return storage_trouble(str(error), error.proxy_status)


def _expired(run_id: str) -> ExportExpired:
    days = FILES_LIVE_S // 86_400
    return ExportExpired(
        f"The files of run {run_id} are gone: Contentsquare keeps them for {days} days. Have the job run"
        " again, or ask for a newer run."
    )


def _unusable(why: str) -> UpstreamUnreachable:
    return UpstreamUnreachable(
        f"Contentsquare's answer about the export can't be used: {why}.",
        proxy_status="http_protocol_error",
        retry_after_s=RETRY_AFTER_S,
    )


def _is_success(run: _Members) -> bool:
    return _text(run, "state", "status").lower() in _SUCCESS


def _state(run: _Members) -> str:
    """The run's state for people; a foreign text that looks like none is not repeated."""
    state = _text(run, "state", "status")
    shown = state if _STATE.match(state) else "not finished"
    rate = run.get("completionRate")
    return f"{shown} ({rate} % done)" if isinstance(rate, int | float) and shown == state else shown


def _id(run: _Members) -> str | None:
    value = _text(run, "jobRunId", "runId", "id")
    return value if SEGMENT.match(value) else None


def _age_key(run: _Members) -> tuple[float, int]:
    """Older runs sort before newer ones."""
    run_id = _id(run) or ""
    return _ended_at(run), int(run_id) if run_id.isdigit() else 0


def _ended_at(run: _Members) -> float:
    """The latest date in a run, in seconds since 1970; infinite where it names none."""
    dates = [date for name in _DATES if (date := _date(run, name)) is not None]
    return max(dates, default=float("inf"))


def _date(members: _Members, name: str) -> float | None:
    try:
        date = datetime.fromisoformat(_text(members, name))
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _text(members: _Members, *names: str) -> str:
    """The first member of one of these names that is a text or a whole number, as text; "" without one."""
    for name in names:
        value = members.get(name)
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return str(value)
    return ""
