"""``csq-proxy export``: an export's files, through the running proxy, so that no credentials are needed here.

Makes the job where one is given, waits for its run, and stores the run's files. The calls to Contentsquare go
through the proxy, and the files come from the storage by their signed URLs.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from proxy.cli.console import fail, say, say_json
from proxy.cli.download import DownloadBroken, DownloadFailed, LinkRefused, OnProgress, download
from proxy.cli.running_proxy import Answer, Cut, RunningProxy, Unreachable
from proxy.config.checks import name_fault
from proxy.contentsquare import PROJECT_ID
from proxy.errors import CallerUnknown, ConfigError
from proxy.export_runs import NEWEST_FIRST, SEGMENT, Members, RunReport, listed, newest, payload_of, text

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TextColumn

    from proxy.cli.tables import Terminal

CALL_TIMEOUT_S = 330.0
"""Contentsquare may think for 300 s."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 15.0
_MOST_FAULTS = 5
"""Failed looks at a run in a row."""
_MOST_BARS = 10
_NARROW = 70
"""Characters in a line; on a narrower terminal, a file has no bar but its bytes."""
_AMOUNTS, _BAR, _BAR_AND_TIME = 28, 12, 21
"""Characters for a file's bytes and speed (``999.9/999.9 MB 999.9 MB/s``), for its bar, for bar and time."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class ExportFailed(Exception):
    """The files aren't here; the message is one line for people."""


class _Export(NamedTuple):
    """One job of a project, at the running proxy."""

    place: RunningProxy
    project: str
    job: str

    def newest_run(self) -> RunReport | None:
        """The newest run that has files, else the newest; None where the job has none yet."""
        runs = listed(_called(self.place, "GET", f"{self._path}/runs?{NEWEST_FIRST}"))
        if runs is None:
            raise ExportFailed(f"job {self.job}: the answer has no list of runs")
        run = newest(runs)
        return None if run is None else self.run(run)

    def run(self, known: RunReport) -> RunReport:
        """The run as it is now, with its files."""
        if known.run_id is None:
            raise ExportFailed(f"job {self.job}: the answer names no run")
        run = _called(self.place, "GET", f"{self._path}/runs/{known.run_id}")
        if not isinstance(run, dict):
            raise ExportFailed(f"job {self.job}: the answer holds no run")
        return replace(RunReport.of(run), run_id=known.run_id)

    @property
    def _path(self) -> str:
        return f"/{self.project}/v1/exports/{self.job}"


def export(
    place: RunningProxy, project: str, *, job_id: str | None, job: Path | None, out: Path, as_json: bool
) -> None:
    """Store the files of the job's newest run in ``out``, and print their paths, or JSON.

    Exits with 1 where that isn't possible. Raises ConfigError for arguments that can't be used.
    """
    name, slash, project_id = project.partition("/")
    fault = name_fault(name)
    if fault is not None or (slash and not PROJECT_ID.match(project_id)):
        why = fault or "an account's name is followed by / and a project's number"
        raise ConfigError(f"export: {project!r} is no project's name, such as shop-fr or acme/42: {why}")
    content = _checked(job_id, job)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out: the folder {out} can't be made ({error.strerror})") from None
    if not os.access(out, os.W_OK | os.X_OK):  # before a job is made
        raise ConfigError(f"--out: the folder {out} isn't yours to write to")
    made = None
    try:
        if content is not None:
            made = job_id = _make(place, project, content)
        one = _Export(place, project, str(job_id))
        with _state(as_json) as say_state:
            run = _wait(one, say_state)
        with _bars(as_json) as bar:
            stored = _store(one, run, out, bar)
    except (ExportFailed, Unreachable, DownloadFailed) as error:
        hint = _hint(made) if made or isinstance(error, DownloadBroken) else ""
        fail((f"{error}{hint}",), 1)
    except OSError as error:
        fail((f"--out: {out} can't be written ({error.strerror}){_hint(made)}",), 1)
    except KeyboardInterrupt:
        fail((f"stopped{_hint(made)}",), 1)
    if as_json:
        files = [{"path": str(path), "bytes": length} for path, length in stored]
        say_json({"job_id": one.job, "run_id": run.run_id, "state": run.state, "files": files}, indent=2)
    else:
        for path, length in stored:
            say(f"{path}  {length:,} bytes")


def _hint(made: str | None) -> str:
    """The way to go on, perhaps with a job that this command made."""
    if made is None:
        return "; to go on, run the same command again"
    return f"; job {made} is made: to go on, give --id {made} in place of --job"


def _checked(job_id: str | None, job: Path | None) -> bytes | None:
    """The content of the file with the job; None where an id is given. Raises ConfigError."""
    if (job_id is None) == (job is None):
        raise ConfigError("export: give --id with a job's number, or --job with a file that describes one")
    if job is None:
        if not SEGMENT.match(str(job_id)):
            raise ConfigError(f"--id: must be a job's number; {job_id!r} is none")
        return None
    try:
        content = job.read_bytes()
    except OSError as error:
        raise ConfigError(f"--job: {job} can't be read ({error.strerror})") from None
    given = ""
    try:
        given = content.decode(json.detect_encoding(content))
        described = json.loads(given)
    except (ValueError, RecursionError):
        described = None
    if not isinstance(described, dict):
        raise ConfigError(f"--job: {job} must hold a JSON object, as POST /v1/exports takes it")
    return given.encode()


def _make(place: RunningProxy, project: str, content: bytes) -> str:
    made = _called(place, "POST", f"/{project}/v1/exports", content)
    job_id = text(made, "jobId", "id") if isinstance(made, dict) else ""
    if not SEGMENT.match(job_id):
        raise ExportFailed("the answer to the new job names no jobId")
    return job_id


def _wait(one: _Export, say_state: Callable[[str], None]) -> RunReport:
    """Wait until the job has a run with files. Raises ExportFailed."""
    pause_s, faults = FIRST_PAUSE_S, 0
    run: RunReport | None = None
    has_answered = False
    while True:
        try:
            run, faults = one.newest_run() if run is None else one.run(run), 0
            has_answered = True
        except (_Passing, Unreachable) as error:
            faults += 1
            may_pass = has_answered or isinstance(error, (_Passing, Cut))
            if faults >= _MOST_FAULTS or not may_pass:
                raise
        if run is not None and run.is_success:
            if not run.files:
                raise ExportFailed(
                    f"job {one.job}: its run {run.run_id} has no files; files are kept for 7 days"
                )
            return run
        if run is not None and run.is_failure:
            raise ExportFailed(f"job {one.job}: its run {run.run_id} ended as {run.state}")
        state = "no answer" if faults else "not started" if run is None else run.words
        say_state(f"job {one.job}: {state}")
        time.sleep(pause_s)
        pause_s = min(LONGEST_PAUSE_S, pause_s * 1.5)


class _Passing(ExportFailed):
    """A failure that may pass by itself."""


def _called(place: RunningProxy, method: str, path: str, content: bytes | None = None) -> Any:
    """The payload of Contentsquare's answer. Raises ExportFailed."""
    answer = place.call(method, path, content, timeout_s=CALL_TIMEOUT_S)
    members = answer.json()
    if isinstance(members, dict) and members.get("errorCode") == CallerUnknown.code:
        raise place.refused(answer)
    if answer.status // 100 != 2 or members is None:
        kind = _Passing if answer.status >= 500 or answer.status == 429 else ExportFailed
        raise kind(f"{place.url}: {_fault(answer, members)}")
    return payload_of(members)


def _fault(answer: Answer, members: object) -> str:
    text = members.get("errorMessage") if isinstance(members, dict) else None
    return f"answered {answer.status}: {text or 'the answer is not as documented'}"


def _store(
    one: _Export, run: RunReport, out: Path, bar: Callable[[str], OnProgress]
) -> list[tuple[Path, int]]:
    """Download the run's files, each under the name ``JOB-RUN-NAME``."""
    stored: list[tuple[Path, int]] = []
    for place in range(len(run.files)):
        name = _name(run.files[place], place)
        path, on_progress = out / f"{one.job}-{run.run_id}-{name}", bar(name)
        try:
            length = download(_url(run.files[place]), path, on_progress)
        except LinkRefused:  # a long download of the files before: signatures end
            again = one.run(run)
            if len(again.files) != len(run.files):
                raise
            run = again
            length = download(_url(run.files[place]), path, on_progress)
        stored.append((path, length))
    return stored


def _url(file: Members) -> str:
    return str(file.get("url"))


def _name(file: Members, place: int) -> str:
    """A plain name for a file: the vendor's, or that of its URL, without what a file system may obey."""
    given = str(file.get("name") or _url(file).partition("?")[0])
    plain = _UNSAFE.sub("_", re.split(r"[/\\]", given)[-1]).strip(".")[-100:]
    return f"{place:03d}-{plain}" if plain else f"{place:03d}"


@contextmanager
def _state(as_json: bool) -> Iterator[Callable[[str], None]]:
    """A function that shows what is waited for, and the time so far."""
    from rich.progress import SpinnerColumn, TimeElapsedColumn  # noqa: PLC0415

    with _progress(as_json, SpinnerColumn("line"), _text_column(), TimeElapsedColumn()) as progress:
        task = progress.add_task("", total=None, visible=False)
        yield lambda text: progress.update(task, description=text, visible=True)


@contextmanager
def _bars(as_json: bool) -> Iterator[Callable[[str], OnProgress]]:
    """A function that makes a file's bar. The bars of the last files are shown."""
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415

    def numbers() -> Column:
        return Column(no_wrap=True, justify="right")

    width = _terminal().width
    amounts = (DownloadColumn(table_column=numbers()), TransferSpeedColumn(table_column=numbers()))
    if width < _NARROW:
        columns: tuple[ProgressColumn, ...] = (_text_column(width - _AMOUNTS), *amounts)
    else:
        name = _text_column(width - _AMOUNTS - _BAR_AND_TIME)
        columns = (name, BarColumn(_BAR), *amounts, TimeRemainingColumn(table_column=numbers()))
    with _progress(as_json, *columns) as progress:

        def bar(name: str) -> OnProgress:
            for task in progress.task_ids[: 1 - _MOST_BARS]:
                progress.remove_task(task)
            added = progress.add_task(name, total=None)
            return lambda here, length: progress.update(added, completed=here, total=length)

        yield bar


def _text_column(width: int | None = None) -> TextColumn:
    """A task's text, which is shortened where it is wider."""
    from rich.progress import TextColumn  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415

    column = Column(no_wrap=True, overflow="ellipsis", max_width=width)
    return TextColumn("{task.description}", markup=False, table_column=column)


def _progress(as_json: bool, *columns: ProgressColumn) -> Progress:
    """Progress on standard error where that is a terminal, until the work ends; nothing elsewhere."""
    from rich.progress import Progress  # noqa: PLC0415

    terminal = _terminal()
    is_shown = terminal.is_terminal and not as_json
    return Progress(*columns, console=terminal, disable=not is_shown, transient=True)


def _terminal() -> Terminal:
    from proxy.cli.tables import Terminal  # noqa: PLC0415

    return Terminal(stderr=True)
