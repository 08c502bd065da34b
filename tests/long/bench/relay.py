"""A longer way on loopback: what is sent arrives a fixed time later, in its order and at any rate.

A connection's first bytes wait a round trip more, as TCP's handshake would take it: the kernel's own, to
the relay, can't be made to last. Looking up a name takes what it takes on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future

from bench.processes import HOST

_CHUNK = 1 << 16
_TICK_S = 1e-6
"""So much later at least than the bytes before: the event loop keeps no order among equal times."""


@contextlib.contextmanager
def relayed(port: int, *, one_way_s: float) -> Iterator[int]:
    """A port that leads to ``port``; a thread of its own carries what goes there and back."""
    ready: Future[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        stop = asyncio.Event()
        async with _relay(port, one_way_s=one_way_s) as own_port:
            ready.set_result((own_port, asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    own_port, loop, stop = ready.result(10)
    try:
        yield own_port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@contextlib.asynccontextmanager
async def _relay(port: int, *, one_way_s: float) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await _carry(reader, writer, port, one_way_s)

    server = await asyncio.start_server(carry, HOST, 0, backlog=1024)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, one_way_s: float
) -> None:
    connected_at = asyncio.get_running_loop().time() + 2 * one_way_s
    writers = [writer]
    try:
        far_reader, far_writer = await asyncio.open_connection(HOST, port)
        writers.append(far_writer)
        await asyncio.gather(
            _pass_on(reader, far_writer, one_way_s, connected_at),
            _pass_on(far_reader, writer, one_way_s, 0.0),
        )
    finally:
        for each in writers:
            each.transport.abort()
        for each in writers:
            with contextlib.suppress(ConnectionError):
                await each.wait_closed()


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, one_way_s: float, not_before: float
) -> None:
    """Until the end, which arrives later as well."""
    loop = asyncio.get_running_loop()
    due = 0.0
    while True:
        data = await reader.read(_CHUNK)
        due = max(loop.time() + one_way_s, not_before + one_way_s, due + _TICK_S)
        if not data:
            break
        loop.call_at(due, _write, writer, data)
    await asyncio.sleep(due + _TICK_S - loop.time())
    writer.close()


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.is_closing():
        writer.write(data)
