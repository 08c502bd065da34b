"""One file from a signed URL: resumed after a break, and under its final name only once it is whole.

Speaks with the storage alone: neither a token nor a key goes there, and no redirect is followed.
Sources: RFC 9110, sections 13.1.5 (If-Range), 14.2 (Range) and 14.4 (Content-Range).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urlsplit

from proxy.cli.running_proxy import NoRedirect
from proxy.origin import Origin
from proxy.process import replace, try_lock
from proxy.upstream.tls import verify_alike

TIMEOUT_S = 60.0
"""The longest wait for the next bytes."""
MOST_TRIES = 6
"""Tries in a row that bring no new byte."""
PAUSE_S = 1.0
"""Before the second of them; it doubles each time."""
_CHUNK = 256 * 1024
_LENGTH = re.compile(r"\d{1,18}\Z", re.ASCII)
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})\Z")
_LONGEST_PATH = 259
"""The characters of a path that Windows takes, where nobody has changed that."""
_EXPIRED = (401, 403, 404, 410)
"""Statuses by which a storage refuses a URL for good."""

OnProgress = Callable[[int, int | None], None]
"""Called with the bytes that are here, and with all of the file; None where the length isn't known."""


class DownloadFailed(Exception):
    """The file isn't here; the message is one line for people."""


class DownloadBroken(DownloadFailed):
    """A part of the file may be here, and a later call goes on with it."""


class LinkRefused(DownloadFailed):
    """The storage refuses the signed URL: its time is over, or the file is gone."""


class _Broken(Exception):
    """The connection failed or ended too early; the rest can be asked for."""


class _Answer(Protocol):
    status: int
    headers: http.client.HTTPMessage

    def read(self, amount: int) -> bytes: ...

    def close(self) -> None: ...


def download(url: str, path: Path, on_progress: OnProgress, *, pause_s: float = PAUSE_S) -> int:
    """Store the file at ``path``, and return its length in bytes.

    Until the file is whole, its bytes are in a hidden file beside it. A later call goes on with that one if
    the storage still has the same version. Raises DownloadFailed, and OSError where nothing can be written.
    """
    work = _Download(url, path, on_progress, _opener(url))
    tries, before = 0, -1
    while True:
        try:
            return work.run()
        except _Broken as broken:
            here = sum(part.stat().st_size for part in _parts(path))
            tries, before = (tries + 1, before) if here <= before else (1, here)
            if tries >= MOST_TRIES:
                raise DownloadBroken(f"{_host(url)}: {broken}") from None
        time.sleep(pause_s * 2 ** (tries - 1))


def _opener(url: str) -> urllib.request.OpenerDirector:
    """The way to the storage: by the system's HTTP proxy, not to a loopback host. Raises DownloadFailed."""
    parts = urlsplit(url)
    try:
        is_loopback = Origin.parse(f"{parts.scheme}://{parts.netloc}").is_loopback
    except ValueError:
        raise DownloadFailed("the run's answer holds no URL of a file") from None
    if parts.scheme != "https" and not is_loopback:
        raise DownloadFailed(f"{parts.hostname}: its URL has no TLS, so others could change the file")
    context = ssl.create_default_context()
    verify_alike(context)
    ways = [urllib.request.ProxyHandler({})] if is_loopback else []
    return urllib.request.build_opener(NoRedirect(), urllib.request.HTTPSHandler(context=context), *ways)


@dataclass(frozen=True, slots=True)
class _Download:
    """One try after the other for one file."""

    url: str
    path: Path
    on_progress: OnProgress
    opener: urllib.request.OpenerDirector

    def run(self) -> int:
        """One try. Raises `_Broken` where a further one may help."""
        with contextlib.closing(self._ask({})) as answer:
            etag, length = answer.headers["ETag"], _length(answer)
            part = _part(self.path, etag)
            start = part.stat().st_size if part.exists() and part.suffix == ".part" else 0
            if not start or (length is not None and start > length):
                return self._store(answer, part, 0, length)
        if start == length:  # it could not be given its name
            return self._store(None, part, start, length)
        with contextlib.closing(self._ask({"Range": f"bytes={start}-", "If-Range": etag})) as answer:
            if answer.status == 200:
                return self._store(answer, part, 0, _length(answer))
            found = _RANGE.match(answer.headers["Content-Range"] or "")
            if found is None or int(found[1]) != start:
                part.unlink()
                raise _Broken("sent another part than the one that was asked for")
            return self._store(answer, part, start, int(found[2]))

    def _store(self, answer: _Answer | None, part: Path, start: int, length: int | None) -> int:
        """Write the content behind the first ``start`` bytes; a whole file gets its name.

        ``answer`` None: all is here.
        """
        for other in _parts(self.path):
            if other != part:
                other.unlink()  # of another version
        here = start
        with self._owned(part, start) as file:
            self.on_progress(here, length)
            while answer is not None and (chunk := _read(answer)):
                file.write(chunk)
                here += len(chunk)
                self.on_progress(here, length)
        if length is not None and here != length:
            raise _Broken(f"the connection ended after {here} of {length} bytes")
        try:
            replace(part, self.path)
        except PermissionError as error:  # Windows
            raise DownloadFailed(
                f"can't replace {self.path} ({error.strerror}); close the program that has it open"
            ) from None
        return here

    @contextlib.contextmanager
    def _owned(self, part: Path, start: int) -> Iterator[IO[bytes]]:
        """The hidden file, open behind ``start``.

        Raises DownloadFailed if another command writes to it, and OSError.
        """
        taken = DownloadFailed(f"{self.path} is being stored by another command; wait for it")
        try:
            opened = open(part, "r+b" if start else "ab", opener=_opened)  # noqa: SIM115 - cuts nothing yet
        except FileNotFoundError:
            if start:
                raise taken from None
            if len(str(part.absolute())) > _LONGEST_PATH:
                raise DownloadFailed(
                    f"{self.path}: Windows takes {_LONGEST_PATH} characters in a path; choose a folder with"
                    " a shorter one"
                ) from None
            raise
        except OSError:
            if part.is_symlink():
                raise DownloadFailed(f"{part} is a link to another file; remove it") from None
            raise
        with opened as file:
            if not _locked(file) or not part.exists():  # it has its final name by now
                raise taken
            file.truncate(start)
            file.seek(start)
            yield file

    def _ask(self, fields: dict[str, str]) -> _Answer:
        asked = urllib.request.Request(self.url, headers={"Accept-Encoding": "identity", **fields})  # noqa: S310
        try:
            answer: _Answer = self.opener.open(asked, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in _EXPIRED:
                raise LinkRefused(
                    f"{_host(self.url)}: answered {error.code} to the file's URL; files are kept for 7 days"
                ) from None
            if error.code < 500 and error.code not in (408, 429):
                raise DownloadFailed(f"{_host(self.url)}: answered {error.code}") from None
            raise _Broken(f"answered {error.code}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise _Broken(str(reason) or type(reason).__name__) from None
        return answer


def _opened(path: str, flags: int) -> int:
    """Open a file that is no link: another user who may write to the folder could lead us elsewhere."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _locked(file: IO[bytes]) -> bool:
    try:
        return try_lock(file.fileno())
    except OSError:  # a file system without locks
        return True


def _read(answer: _Answer) -> bytes:
    try:
        return answer.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"the connection broke ({type(error).__name__})") from None


def _length(answer: _Answer) -> int | None:
    found = _LENGTH.match(answer.headers["Content-Length"] or "")
    return None if found is None else int(found[0])


def _part(path: Path, etag: str | None) -> Path:
    """The hidden file for the bytes of one version; without a strong ETag, a version can't be recognised."""
    if etag is None or not etag.startswith('"'):
        return path.with_name(f".{path.name}.new")
    return path.with_name(f".{path.name}.{hashlib.sha256(etag.encode()).hexdigest()[:12]}.part")


def _parts(path: Path) -> list[Path]:
    start, others = f".{path.name}.", path.parent.iterdir()
    return [one for one in others if one.name.startswith(start) and one.suffix in (".part", ".new")]


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""
