"""Ways to a cloud that die in silence: the kernel drops what arrives at one socket (Linux only); dead DNS."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from support.harness import WAIT_S

from proxy.upstream.connection import CloudConnection

_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_DROP_ALL = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0))  # BPF: return 0 bytes

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops what arrives at a socket")


def kill_way(*ends: CloudConnection | asyncio.StreamWriter) -> None:
    """From now on nothing that is sent to these ends of a connection arrives; not even TCP's answers."""
    program = struct.pack("@HP", 1, ctypes.addressof(_DROP_ALL))
    for sock in _sockets(ends):
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def revive_way(*ends: CloudConnection | asyncio.StreamWriter) -> None:
    """What is sent to these ends arrives again."""
    for sock in _sockets(ends):
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def _sockets(ends: Iterable[CloudConnection | asyncio.StreamWriter]) -> Iterator[socket.socket]:
    for end in ends:
        transport = end._transport if isinstance(end, CloudConnection) else end.transport
        assert transport is not None
        yield transport.get_extra_info("socket")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead ways are found within some 2 s instead of 15. The kernel's shortest time for a probe is 1 s."""
    monkeypatch.setattr("proxy.upstream.pool.SWEEP_S", 0.05)
    monkeypatch.setattr("proxy.upstream.way.DEAD_S", 1.5)
    monkeypatch.setattr("proxy.upstream.way.PROBE_AFTER_S", 1)
    monkeypatch.setattr("proxy.upstream.way.PROBE_EVERY_S", 1)


@pytest.fixture
def silent_dns(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No name server answers: a lookup ends with the test. Addresses need none."""
    ended = threading.Event()
    look_up: Any = socket.getaddrinfo

    def getaddrinfo(*arguments: Any, flags: int = 0, **options: Any) -> Any:
        if not flags & socket.AI_NUMERICHOST:
            ended.wait(WAIT_S)
        return look_up(*arguments, flags=flags, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield
    ended.set()
