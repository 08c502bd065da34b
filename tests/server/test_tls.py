"""A listener that speaks TLS: plain HTTP on it, slow handshakes, and answers that are read slowly."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from support.certificates import tls_files
from support.harness import WAIT_S, Gateway, Upstream, free_port, gateway, read_message, until
from support.snippets import TODAY

from proxy.cli.snippets.text import text_of
from proxy.errors import ConfigError
from proxy.server import linger, tls
from proxy.server.caller_socket import MOST_UNWRITTEN_BYTES

if sys.platform != "win32":
    import fcntl

SIZE = 1_000_000
LARGE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE + b"x" * SIZE


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def test_a_file_that_is_away_is_not_called_a_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"server\.tls_cert: .*{os.strerror(errno.ENOENT)}"):
        tls.server_tls(tmp_path / "cert.pem", tmp_path / "key.pem")


def test_nothing_is_unacknowledged_on_a_closed_socket() -> None:
    """The stop asks for connections that have been closed a moment ago, too."""
    sock = socket.socket()
    sock.close()
    assert tls.unacknowledged(sock) == 0


@contextlib.asynccontextmanager
async def secured(
    authority: trustme.CA, folder: Path, answer: bytes | None = None, drain_timeout: float = 1
) -> AsyncIterator[Gateway]:
    pair = authority.issue_cert("localhost", "127.0.0.1")
    files = tls_files(folder, pair)
    upstream = Upstream() if answer is None else Upstream(answer)
    async with gateway(upstream, server={"port": 0, "drain_timeout": drain_timeout, **files}) as proxy:
        yield proxy


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize(
    ("names", "host", "shown"),
    [
        (["localhost"], "localhost", "localhost"),
        (["localhost", "proxy.corp"], "127.0.0.1", "localhost"),
        (["localhost", "127.0.0.1"], "localhost", "127.0.0.1"),
        (["127.0.0.1"], "localhost", "127.0.0.1"),
        (["notlocalhost", "localhost.corp"], "127.0.0.1", "127.0.0.1"),
    ],
)
async def test_the_urls_name_a_host_of_the_certificate(
    names: list[str], host: str, shown: str, authority: trustme.CA, tmp_path: Path
) -> None:
    files = tls_files(tmp_path, authority.issue_cert(*names))
    async with gateway(server={"port": free_port(), "host": host, **files}) as proxy:
        overview = proxy.app.overview
        url = f"https://{shown}:{proxy.port}"
        assert overview.url == url
        assert f"{url}/shop/v1/" in text_of("curl", overview.settings, "shop", today=TODAY, own=["csq-proxy"])


async def test_the_urls_of_another_loopback_address_do_not_name_localhost(
    authority: trustme.CA, tmp_path: Path
) -> None:
    cert = Path(str(tls_files(tmp_path, authority.issue_cert("localhost"))["tls_cert"]))
    for host, shown in (("127.0.0.1", "localhost"), ("::1", "localhost"), ("127.0.0.2", "127.0.0.2")):
        assert tls.host_in_urls(host, cert) == shown


plain = pytest.mark.skipif(sys.platform == "win32", reason="its loop can't wait without reading")


@plain
@pytest.mark.parametrize(
    "pieces",
    [
        (b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n",),
        (b"GET /v1/x HTTP/1.0\r\n\r\n",),
        (b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3,),
        (b"P", b"OST /v1/x HTTP/1.1\r\n", b"Host: localhost\r\nContent-Length: 3\r\n\r\n", b"abc"),
        (
            b"POST /v1/x HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n",
            *[b"x" * 100_000] * 80,
        ),
    ],
    ids=["HTTP/1.1", "HTTP/1.0", "pipelined", "in-pieces", "with-much-content"],
)
async def test_plain_http_on_a_tls_port_is_told_to_use_https(
    pieces: tuple[bytes, ...], authority: trustme.CA, tmp_path: Path
) -> None:
    async with secured(authority, tmp_path) as proxy:
        reader, writer = await proxy.connect()
        for piece in pieces:  # all of it is taken, as by a client that reads only after its request
            writer.write(piece)
            async with asyncio.timeout(WAIT_S):
                await writer.drain()
            await asyncio.sleep(0)
        answer = await read_message(reader)
        assert (answer.status, answer.values(b"connection")) == (400, [b"close"])
        assert b"https://" in answer.body
        assert len(answer.values(b"date")) == 1
        assert await reader.read() == b""
        writer.close()
        await until(lambda: not list(proxy.app._listeners.connections()))


@plain
@pytest.mark.parametrize("leaves", [True, False])
async def test_a_plain_caller_that_sends_on_or_leaves_is_let_go(
    leaves: bool, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert linger.LINGER_S == 5
    monkeypatch.setattr("proxy.server.tls.LINGER_S", 0.1)
    async with secured(authority, tmp_path) as proxy:
        reader, writer = await proxy.connect()
        writer.write(b"GET /v1/x HTTP/1.1\r\n")
        if leaves:
            writer.transport.abort()
        else:
            assert (await read_message(reader)).status == 400
        await until(lambda: not list(proxy.app._listeners.connections()))


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"], ids=["silent", "begun"])
async def test_a_handshake_that_takes_too_long_is_given_up(
    sent: bytes, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tls.HANDSHAKE_TIMEOUT_S == 10
    monkeypatch.setattr("proxy.server.site.HANDSHAKE_TIMEOUT_S", 0.1)
    async with secured(authority, tmp_path) as proxy:
        reader, writer = await proxy.connect()
        writer.write(sent)
        await until(lambda: list(proxy.app._listeners.connections()))  # counted before its handshake
        async with asyncio.timeout(WAIT_S):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        await until(lambda: not list(proxy.app._listeners.connections()))


async def test_a_slow_handshake_holds_neither_others_nor_the_end_up(
    authority: trustme.CA, tmp_path: Path
) -> None:
    async with secured(authority, tmp_path) as proxy:
        for sent in (b"", b"\x16"):
            _, writer = await proxy.connect()
            writer.write(sent)
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=trusting(authority))
        writer.write(b"GET /v1/x HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % proxy.port)
        assert (await read_message(reader)).status == 200
        writer.close()
        async with asyncio.timeout(WAIT_S):
            await proxy.app.drain(asyncio.Event())
        assert not list(proxy.app._listeners.connections())


@pytest.mark.parametrize("is_drained", [False, True])
async def test_a_caller_that_reads_slowly_gets_all_of_the_last_answer(
    is_drained: bool, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``is_drained``: the system's buffer is empty at the first look, before the loop has filled it again."""
    monkeypatch.setattr(
        "proxy.server.caller_socket.SHUTDOWN_TIMEOUT_S", 0
    )  # less than the answer's end takes
    if is_drained:
        if sys.platform != "linux":
            pytest.skip("the system's buffer is asked for in another way")
        ask, looks = fcntl.ioctl, iter([bytes(4)])
        monkeypatch.setattr(fcntl, "ioctl", lambda *arguments: next(looks, None) or ask(*arguments))
    async with secured(authority, tmp_path, LARGE) as proxy:
        got = await asyncio.to_thread(read_slowly, trusting(authority), proxy.port)
        assert got.endswith(b"x" * SIZE)


@pytest.mark.skipif(sys.platform == "win32", reason="the system's buffer takes all of the answer there")
async def test_a_caller_that_reads_nothing_has_no_more_of_the_answer_kept_than_without_tls(
    authority: trustme.CA, tmp_path: Path
) -> None:
    async with secured(authority, tmp_path, LARGE) as proxy:
        with await asyncio.to_thread(asked, trusting(authority), proxy.port):
            await until(lambda: any(one.writing_paused for one in proxy.app._listeners.connections()))
            [connection] = proxy.app._listeners.connections()
            assert connection.transport is not None
            # A read from the cloud comes on top: 256 KiB.
            assert connection.transport.get_write_buffer_size() < 6 * MOST_UNWRITTEN_BYTES


def asked(context: ssl.SSLContext, port: int) -> ssl.SSLSocket:
    """A client that has sent a request, and keeps nothing of the answer in buffers of its own."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(WAIT_S)
    sock.connect(("127.0.0.1", port))
    end = context.wrap_socket(sock, server_hostname="localhost")
    end.sendall(b"GET /v1/x HTTP/1.1\r\nHost: localhost:%d\r\nConnection: close\r\n\r\n" % port)
    return end


def read_slowly(context: ssl.SSLContext, port: int) -> bytes:
    """One answer, up to its end, by a client that keeps nothing in buffers of its own."""
    with asked(context, port) as end:
        got = b""
        while data := end.recv(16384):
            got += data
            time.sleep(0.005)
        return got


async def test_a_caller_that_never_answers_the_end_of_tls_does_not_hold_the_stop_up(
    authority: trustme.CA, tmp_path: Path
) -> None:
    async with secured(authority, tmp_path, drain_timeout=WAIT_S) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port)) as sock:
            sock.setblocking(True)
            await asyncio.to_thread(silent_after_one_answer, sock, trusting(authority), proxy.port)
            begun = asyncio.get_running_loop().time()
            await asyncio.wait_for(proxy.app.drain(asyncio.Event()), WAIT_S)
            assert not list(proxy.app._listeners.connections())
            assert asyncio.get_running_loop().time() - begun < tls.SHUTDOWN_TIMEOUT_S + 10


def silent_after_one_answer(sock: socket.socket, context: ssl.SSLContext, port: int) -> None:
    """Speak TLS by hand: the other end's close_notify is never read."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    end = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    while True:
        try:
            end.do_handshake()
            break
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(16384))
    end.write(b"GET /v1/x HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % port)
    sock.sendall(outgoing.read())
    assert sock.recv(16384)
