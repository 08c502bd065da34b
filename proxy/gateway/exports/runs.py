"""Which run of an export is meant, and which files it has: asks Contentsquare and the files' storage."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

from proxy.contentsquare import FILES_LIVE_S, Api
from proxy.errors import ExportExpired, ExportFailed, ExportNotReady, UpstreamError, UpstreamUnreachable
from proxy.export_runs import NEWEST_FIRST, Members, RunReport, listed, newest, payload_of, text
from proxy.gateway.exports.calls import RETRY_AFTER_S, OwnCalls
from proxy.gateway.exports.storage import Storage, StorageRefused, StoredFile
from proxy.gateway.exports.text import BadFile
from proxy.http1 import ResponseHead

NOT_READY_S: Final = 30
"""Seconds after which a caller should ask again for a run that isn't finished."""
LOOKS_AT_ONCE: Final = 4
"""Files that are looked at at once."""


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


@dataclass(eq=False, slots=True)
class Known:
    """What earlier look-ups of a job found, so that one call tells a caller that asks again and again.

    ``format`` None: not looked up yet. ``unfinished`` is the id of the job's newest run, where the job had
    no successful one and that run could still become one.
    """

    format: str | None = None
    unfinished: str | None = None


class RunFinder:
    """Finds a run of one job, by calls to Contentsquare that each take a slot for their time."""

    def __init__(self, calls: OwnCalls, storage: Storage, job_id: str, known: Known) -> None:
        self._calls = calls
        self._storage = storage
        self._job_id = job_id
        self._target = f"/v1/exports/{job_id}"
        self._known = known

    async def format(self) -> str:
        """The job's format, "csv" or "jsonl". Raises ProxyError or Relayed."""
        if self._known.format is None:
            found = text(await self._payload(""), "format").lower()
            if found not in ("csv", "jsonl"):
                raise _unusable(f"it names no format of the job {self._job_id}")
            self._known.format = found
        return self._known.format

    async def run(self, run_id: str | None) -> Run:
        """The run of that id; None: the newest successful one. Raises ProxyError or Relayed."""
        file_format = await self.format()
        if run_id is None:
            run_id, found = await self._newest()
        else:
            found = await self._one(run_id)
        if not found.is_success:
            raise self._not_ready(f"its run {run_id} is {found.words}")
        return Run(run_id, file_format, await self._files(run_id, found))

    async def _newest(self) -> tuple[str, RunReport]:
        """The newest successful run, and its id. Raises ExportNotReady where the job has none."""
        if (found := await self._known_run()) is not None:
            return found
        runs = await self._listed("")
        last = newest(runs)
        if len(runs) > 1 and last is not None and not last.is_success:  # an older one may be
            last = newest(await self._listed("&state=success")) or last
        if last is None:
            raise self._not_ready("it has no run yet")
        if last.is_success and last.run_id is not None:
            return last.run_id, await self._one(last.run_id)
        raise self._last_is(last)

    async def _known_run(self) -> tuple[str, RunReport] | None:
        """The run that was unfinished, as it is now; None without one, and where it gets no files."""
        run_id, self._known.unfinished = self._known.unfinished, None
        if run_id is None:
            return None
        with contextlib.suppress(Relayed):  # the run may have been deleted
            found = await self._one(run_id)
            if found.is_success:
                return run_id, found
            if not found.is_failure:
                raise self._last_is(replace(found, run_id=run_id))
        return None

    def _last_is(self, run: RunReport) -> ExportNotReady:
        """The answer where a job's newest run is no success, for now."""
        self._known.unfinished = None if run.is_failure else run.run_id
        return self._not_ready(f"its last run is {run.words}")

    async def _listed(self, query: str) -> list[RunReport]:
        runs = listed(await self._asked(f"/runs?{NEWEST_FIRST}{query}"))
        if runs is None:
            raise _unusable("it has no list of runs")
        return runs

    async def _one(self, run_id: str) -> RunReport:
        return RunReport.of(await self._payload(f"/runs/{run_id}"))

    async def _files(self, run_id: str, run: RunReport) -> Sequence[StoredFile]:
        is_old = run.expires_at < time.time()
        if not run.files:
            if is_old:
                raise _expired(run_id)
            raise self._not_ready(f"its run {run_id} is a success, but has no files")
        try:
            return await self._looks([file.get("url") for file in run.files])
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

    async def _payload(self, rest: str) -> Members:
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
        return payload_of(answer)

    def _not_ready(self, why: str) -> ExportNotReady:
        return ExportNotReady(
            f"The export {self._job_id} is not ready: {why}. Ask again later.", retry_after_s=NOT_READY_S
        )


def storage_trouble(what: str, proxy_status: str = "connection_terminated") -> ExportFailed:
    """The answer where a storage doesn't hand a file over, for now."""
    return ExportFailed(
        f"The export's files can't be fetched: {what}. Try again.",
        proxy_status=proxy_status,
        retry_after_s=RETRY_AFTER_S,
    )


def trouble_of(error: UpstreamError) -> ExportFailed:
    """The answer where files can't be fetched; it asks for another try only where that can help."""
    if isinstance(error, BadFile) or error.proxy_status == "destination_ip_prohibited":
        return ExportFailed(f"The export's files can't be used: {error}.", proxy_status=error.proxy_status)
    return storage_trouble(str(error), error.proxy_status)


def _expired(run_id: str) -> ExportExpired:
    days = FILES_LIVE_S // 86_400
    return ExportExpired(
        f"The files of run {run_id} are gone: Contentsquare keeps them for {days} days. Have the job run"
        " again, or ask for a newer run."
    )


def _unusable(why: str) -> ExportFailed:
    return ExportFailed(
        f"Contentsquare's answer about the export can't be used: {why}.",
        proxy_status="http_protocol_error",
        retry_after_s=RETRY_AFTER_S,
    )
