"""Contents that are made on disk: their parts, their room, and their end."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.harness import WAIT_S, turns, until

from proxy.errors import ConnectionLost
from proxy.gateway.exports import content
from proxy.gateway.exports.content import Spool, Spools


@dataclass
class Source:
    """A content; it breaks at its end if ``is_broken``."""

    content: bytes
    is_broken: bool = False
    length: int | None = None
    takes_ranges: bool = False

    async def pieces(self, part: range | None) -> AsyncGenerator[bytes, None]:
        assert part is None
        for at in range(0, len(self.content), 100):
            yield self.content[at : at + 100]
        if self.is_broken:
            raise ConnectionLost("broken")


async def read(spool: Spool, part: range | None = None) -> bytes:
    return b"".join([piece async for piece in spool.pieces(part)])


def spools(limit: int = 10_000) -> Spools:
    made = Spools()
    made.limit = limit
    return made


@given(st.binary(min_size=1, max_size=2000), st.data())
async def test_a_part_is_a_slice(content: bytes, data: st.DataObject) -> None:
    spool = await spools().make(Source(content))
    assert spool is not None
    assert (spool.length, spool.takes_ranges) == (len(content), True)
    start = data.draw(st.integers(0, len(content) - 1))
    stop = data.draw(st.integers(start + 1, len(content)))
    assert await read(spool, range(start, stop)) == content[start:stop]
    assert await read(spool) == content
    spool.close()


async def test_the_room_is_that_of_all_together() -> None:
    room = spools(1000)
    first = await room.make(Source(bytes(600)))
    assert first is not None
    assert await room.make(Source(bytes(401))) is None
    assert room.used == 600
    second = await room.make(Source(bytes(400)))
    assert second is not None
    assert room.used == 1000
    first.close()
    first.close()
    second.close()
    assert room.used == 0


async def test_a_content_that_breaks_leaves_nothing() -> None:
    room = spools()
    with pytest.raises(ConnectionLost):
        await room.make(Source(bytes(500), is_broken=True))
    assert room.used == 0


async def test_readers_keep_the_file_that_is_deleted_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "READ_BYTES", 10)
    room = spools()
    spool = await room.make(Source(b"0123456789" * 3))
    assert spool is not None
    pieces = spool.pieces(None)
    assert await anext(pieces) == b"0123456789"
    spool.close()
    assert room.used == 30
    assert [piece async for piece in pieces] == [b"0123456789"] * 2
    assert room.used == 0
    assert spool._file.closed


async def test_without_a_folder_for_temporary_files_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert await spools().make(Source(b"a")) is None


async def test_a_full_disk_makes_nothing() -> None:
    class Full:
        closed = False

        def write(self, _piece: bytes) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            self.closed = True

    room = spools()
    spool = Spool(room, Full())  # type: ignore[arg-type]
    assert not await spool.append(b"a")
    spool.close()
    assert room.used == 0


async def test_a_file_whose_opening_is_not_waited_for_any_longer_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on, opened, open_file = threading.Event(), list[IO[bytes]](), tempfile.TemporaryFile

    def open_late() -> IO[bytes]:
        assert go_on.wait(WAIT_S)
        opened.append(open_file())
        return opened[0]

    monkeypatch.setattr(tempfile, "TemporaryFile", open_late)
    making = asyncio.create_task(spools().make(Source(b"x")))
    await turns()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    go_on.set()
    await until(lambda: opened and opened[0].closed)
