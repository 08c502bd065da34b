"""Files from a storage that breaks off, changes, refuses or lies about lengths."""

from __future__ import annotations

import asyncio
import errno
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.harness import Message, RawServer, read_message

from proxy.cli.download import MOST_TRIES, DownloadBroken, DownloadFailed, LinkRefused, _part, download

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the command has no loop
CONTENT = bytes(range(256)) * 1000


@dataclass
class Storage:
    """Answers like S3. ``cut``: the bytes after which an answer breaks off, by its number; None: never."""

    content: bytes = CONTENT
    etag: str = '"one"'
    length: bytes = b""
    cut: Callable[[int], int | None] = lambda _: None
    status: int = 0
    requests: list[Message] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_message(reader)
        self.requests.append(request)
        if self.status:
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % self.status)
            await writer.drain()
            return
        start, status, fields = 0, b"200 OK", []
        asked = request.values(b"range")
        if asked and request.values(b"if-range") == [self.etag.encode()]:
            found = re.fullmatch(rb"bytes=(\d+)-", asked[0])
            assert found is not None
            start, status, length = int(found[1]), b"206 Partial Content", len(self.content)
            fields.append(b"Content-Range: bytes %d-%d/%d" % (start, length - 1, length))
        if self.etag:
            fields.append(b"ETag: " + self.etag.encode())
        fields.append(b"Content-Length: " + (self.length or b"%d" % (len(self.content) - start)))
        writer.write(b"\r\n".join((b"HTTP/1.1 " + status, *fields, b"Connection: close", b"", b"")))
        cut = self.cut(len(self.requests))
        writer.write(self.content[start:] if cut is None else self.content[start : start + cut])
        await writer.drain()


def files_of(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def fetch(storage: Storage, path: Path) -> list[tuple[int, int | None]]:
    seen: list[tuple[int, int | None]] = []
    async with RawServer(storage) as server:
        length = await asyncio.to_thread(
            download,
            f"{server.url}/file?signature=x",
            path,
            lambda *progress: seen.append(progress),
            pause_s=0.001,
        )
    assert seen[-1][0] == length
    return seen


async def test_a_whole_file_has_its_name_and_leaves_nothing_else(tmp_path: Path) -> None:
    storage = Storage()
    seen = await fetch(storage, tmp_path / "file.csv")
    assert (tmp_path / "file.csv").read_bytes() == CONTENT
    assert files_of(tmp_path) == ["file.csv"]
    assert (seen[0], seen[-1]) == ((0, len(CONTENT)), (len(CONTENT), len(CONTENT)))
    [request] = storage.requests
    assert not [line for line in request.lines if line.lower().startswith((b"authorization", b"x-api-key"))]


async def test_an_impossible_length_is_no_length(tmp_path: Path) -> None:
    seen = await fetch(Storage(length=b"9" * 5_000), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), None)


@pytest.mark.parametrize("etag", ['"one"', 'W/"weak"', ""])
async def test_a_break_is_mended_without_a_wrong_byte(etag: str, tmp_path: Path) -> None:
    storage = Storage(etag=etag, cut=lambda number: None if number > 6 else 9_000 * number)
    await fetch(storage, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [bool(request.values(b"range")) for request in storage.requests].count(True) == (
        3 if etag == '"one"' else 0
    )
    assert files_of(tmp_path) == ["file"]


async def test_a_later_call_goes_on_where_one_stopped(tmp_path: Path) -> None:
    cut = Storage(cut=lambda number: 100_000 if number == 1 else 0)
    with pytest.raises(DownloadBroken, match="100000 of 256000 bytes"):
        await fetch(cut, tmp_path / "file")
    assert not (tmp_path / "file").exists()
    assert len(cut.requests) >= MOST_TRIES
    storage = Storage()
    await fetch(storage, tmp_path / "file")
    assert storage.requests[-1].values(b"range") == [b"bytes=100000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


async def test_bytes_of_another_version_are_never_mixed(tmp_path: Path) -> None:
    cut = Storage(cut=lambda number: 100_000 if number == 1 else 0)
    with pytest.raises(DownloadFailed):
        await fetch(cut, tmp_path / "file")
    changed = Storage(content=CONTENT[::-1], etag='"two"')
    await fetch(changed, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT[::-1]
    assert files_of(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("status", "error", "tries"),
    [
        (403, LinkRefused, 1),
        (404, LinkRefused, 1),
        (302, DownloadFailed, 1),
        (503, DownloadFailed, MOST_TRIES),
    ],
)
async def test_a_refusal_is_told_with_the_storages_name(
    status: int, error: type[DownloadFailed], tries: int, tmp_path: Path
) -> None:
    storage = Storage(status=status)
    with pytest.raises(error, match=rf"127\.0\.0\.1: answered {status}") as failure:
        await fetch(storage, tmp_path / "file")
    assert ("are kept for 7 days" in str(failure.value)) == (error is LinkRefused)
    assert len(storage.requests) == tries
    assert not files_of(tmp_path)


@pytest.mark.parametrize("url", ["http://storage.example/file", "ftp://127.0.0.1/file", "None", "/file"])
async def test_only_https_and_loopback_are_called(url: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed):
        download(url, tmp_path / "file", lambda *_: None)


@pytest.mark.skipif(sys.platform == "win32", reason="a link takes a right there")
@pytest.mark.parametrize("etag", ['"one"', ""])
async def test_a_link_in_the_hidden_files_place_leads_nowhere(etag: str, tmp_path: Path) -> None:
    """Others may write to the folder, and the name can be guessed."""
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_bytes(b"precious")
    _part(path, etag or None).symlink_to(other)
    with pytest.raises(DownloadFailed, match="is a link"):
        await fetch(Storage(etag=etag), path)
    assert other.read_bytes() == b"precious"


async def test_a_second_download_of_a_file_leaves_the_first_alone(tmp_path: Path) -> None:
    path, has_begun, may_end = tmp_path / "file.csv", threading.Event(), threading.Event()

    def hold(here: int, _: int | None) -> None:
        if here:
            has_begun.set()
            assert may_end.wait(30)

    async with RawServer(Storage()) as server:
        url = f"{server.url}/file"
        first = asyncio.create_task(asyncio.to_thread(download, url, path, hold))
        try:
            assert await asyncio.to_thread(has_begun.wait, 30)
            with pytest.raises(DownloadFailed, match=r"file\.csv is being stored by another command"):
                await asyncio.to_thread(download, url, path, lambda *_: None)
        finally:
            may_end.set()
        assert await first == len(CONTENT)
    assert path.read_bytes() == CONTENT
    assert files_of(tmp_path) == ["file.csv"]


async def test_a_file_that_another_program_has_open_is_told_and_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows, a table in Excel can't be replaced."""
    path = tmp_path / "file.csv"
    path.write_bytes(b"old")

    def fails(*_: object) -> Path:
        raise PermissionError(errno.EACCES, "Access is denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fails)
        with pytest.raises(
            DownloadFailed, match=r"can't replace .*file\.csv \(Access is denied\); close the"
        ):
            await fetch(Storage(), path)
    assert path.read_bytes() == b"old"
    storage = Storage(cut=lambda _: 0)
    await fetch(storage, path)
    assert path.read_bytes() == CONTENT
    assert files_of(tmp_path) == ["file.csv"]


@pytest.mark.parametrize("name", ["file", "f" * 235])
async def test_a_path_that_can_not_be_made_is_not_another_commands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows takes 259 characters, unless an administrator has changed that."""

    def fails(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr("proxy.cli.download._opened", fails)
    with pytest.raises((FileNotFoundError, DownloadFailed)) as raised:
        await fetch(Storage(), tmp_path / name)
    assert isinstance(raised.value, DownloadFailed) is (name != "file")
    assert "another command" not in str(raised.value)
