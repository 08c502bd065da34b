"""The gateway's rules, seen from both ends on raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time

import pytest
from support.cuts import reset
from support.harness import OK, WAIT_S, Message, TokenServer, Upstream, gateway, read_message, turns

from proxy.gateway.gateway import Gateway
from proxy.origin import Origin
from proxy.server.connection import CallerConnection
from proxy.upstream.connection import CloudConnection
from proxy.upstream.dial import Dialer
from proxy.upstream.loop import VIA_NAME

ONE = {"client_id": "id-1", "client_secret": "secret-1", "apis": ["data-export"]}


async def test_a_request_reaches_the_cloud_with_the_token_and_without_the_prefix() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        answer = await proxy.call(b"GET /shop/v1/segments?a=%7e&b=", b"Accept: */*", b"X-Empty:")
        assert (answer.status, answer.body) == (200, b"ok")
        request = upstream.requests[0]
        assert request.start_line == b"GET /v1/segments?a=%7e&b= HTTP/1.1"
        assert request.lines == [
            b"Host: 127.0.0.1:%d" % proxy.upstream.port,
            b"Accept: */*",
            b"X-Empty:",
            b"Via: 1.1 " + VIA_NAME,
            b"Authorization: Bearer token-1",
        ]


async def test_what_the_cloud_answers_arrives_as_it_was_sent() -> None:
    head = (
        b"HTTP/1.1 200 Fine, thanks\r\nDate: yesterday\r\nServer: X\r\nset-cookie: a=1\r\nX-Latin: \xe9\r\n"
        b"Set-Cookie: b=2\r\nContent-Encoding: gzip\r\nContent-Length: 8"
    )
    async with gateway(Upstream(head + b"\r\n\r\nnot gzip")) as proxy:
        answer = await proxy.call(b"GET /v1/x")
        assert answer.plain_head == head
        assert answer.body == b"not gzip"


async def test_chunked_answers_stay_chunked_and_keep_the_connection() -> None:
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 2000 + b"0\r\n\r\n"
    async with gateway(Upstream(raw)) as proxy:
        reader, writer = await proxy.connect()
        for _ in range(3):
            writer.write(proxy.request(b"GET /v1/x"))
            answer = await read_message(reader)
            assert answer.content == b"x" * 2000
        assert proxy.upstream.connections == 1


async def test_an_answer_without_length_is_delimited_by_chunks_for_the_caller() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")

    async with gateway(script) as proxy:
        assert (await proxy.call(b"GET /v1/x")).content == b"until the end"


@pytest.mark.parametrize(
    "sent", [b"Content-Length: 10\r\n\r\nfive5", b"Transfer-Encoding: chunked\r\n\r\na\r\nfive5"]
)
async def test_a_body_cut_short_aborts_the_caller(sent: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n" + sent)
        await writer.drain()
        await asyncio.sleep(0.02)

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x"))
        with pytest.raises(ConnectionError):
            await reader.read()


async def test_a_content_length_upload_arrives_with_its_length() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        await proxy.call(b"POST /v1/exports", b"Content-Length: 5", body=b"hello")
        assert upstream.requests[0].values(b"content-length") == [b"5"]
        assert upstream.requests[0].body == b"hello"


async def test_a_chunked_upload_arrives_chunked() -> None:
    upstream = Upstream()
    async with gateway(upstream) as proxy:
        body = b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\n\r\n"
        await proxy.call(b"POST /v1/exports", b"Transfer-Encoding: chunked", body=body)
        assert upstream.requests[0].content == b"hello world"


async def test_a_refused_token_is_replaced_and_the_request_replayed_with_its_body() -> None:
    def answer(request: Message) -> bytes:
        if request.values(b"authorization") == [b"Bearer token-1"]:
            return b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nlate"
        return OK

    upstream = Upstream(answer)
    async with gateway(upstream, projects={"shop": ONE}) as proxy:
        got = await proxy.call(b"POST /v1/exports", b"Content-Length: 5", body=b"hello")
        assert (got.status, got.body) == (200, b"ok")
        assert [request.body for request in upstream.requests] == [b"hello", b"hello"]
        assert len(proxy.token.requests) == 2


async def test_what_is_too_long_to_be_replayed_is_the_callers_to_send_again_with_a_fresh_token() -> None:
    def answer(request: Message) -> bytes:
        if request.values(b"authorization") == [b"Bearer token-1"]:
            return b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nlate"
        return OK

    upstream, length, content = Upstream(answer), b"Content-Length: 100000", b"x" * 100_000
    async with gateway(upstream, projects={"shop": ONE}) as proxy:
        refused = await proxy.call(b"POST /v1/exports", length, body=content)
        assert (refused.status, refused.error_code) == (503, "PROXY_TOKEN_UNAVAILABLE")
        assert refused.values(b"retry-after") == [b"2"]
        assert len(upstream.requests) == 1
        assert (await proxy.call(b"POST /v1/exports", length, body=content)).status == 200
        assert upstream.requests[-1].values(b"authorization") == [b"Bearer token-2"]
        assert len(proxy.token.requests) == 2


async def test_an_upstream_that_always_says_401_gets_one_replay_and_a_clear_answer() -> None:
    upstream = Upstream(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
    async with gateway(upstream) as proxy:
        answers = [await proxy.call(b"GET /v1/x") for _ in range(3)]
        assert [answer.error_code for answer in answers] == ["PROXY_TOKEN_REFUSED"] * 3
        assert answers[0].status == 502
        assert len(upstream.requests) == 4
        assert len(proxy.token.requests) == 2


async def test_a_read_survives_a_keep_alive_connection_that_died() -> None:
    served = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        await read_message(reader)
        served += 1
        writer.write(OK)
        await writer.drain()
        await reader.read(1)  # the second request is taken, and the connection dropped unanswered

    async with gateway(script) as proxy:
        for _ in range(3):
            assert (await proxy.call(b"GET /v1/x")).status == 200
        assert served == 3


@pytest.mark.parametrize(
    ("start", "line"),
    [(b"POST /v1/exports", b"Content-Length: 0"), (b"GET /v1/exports/1", b"X-HTTP-Method-Override: DELETE")],
)
async def test_a_changing_request_is_never_sent_twice_by_us(start: bytes, line: bytes) -> None:
    attempts = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        request = await read_message(reader)
        if line in request.lines:
            attempts += 1
            return
        writer.write(OK)
        await writer.drain()
        await read_message(reader)
        attempts += 1

    async with gateway(script) as proxy:
        assert (await proxy.call(b"GET /v1/x")).status == 200
        answer = await proxy.call(start, line)
        assert (answer.status, answer.error_code) == (502, "PROXY_UPSTREAM_UNREACHABLE")
        assert attempts == 1


async def test_a_caller_that_leaves_frees_its_slot_and_the_upstream_connection() -> None:
    started, gone = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        started.set()
        await reader.read(1)
        gone.set()

    async with gateway(script) as proxy:
        _, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x"))
        await writer.drain()
        slots = next(iter(proxy.app.projects())).slots
        await started.wait()
        reset(writer)
        async with asyncio.timeout(WAIT_S):
            await gone.wait()
        assert slots.in_use == 0


async def test_silence_before_an_answer_is_a_504() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with gateway(script, contentsquare={"idle_timeout": 0.05}) as proxy:
        answer = await proxy.call(b"GET /v1/x")
        assert (answer.status, answer.error_code) == (504, "PROXY_UPSTREAM_TIMEOUT")


async def test_an_unreachable_cloud_is_a_502_that_names_the_step() -> None:
    async with gateway(token=TokenServer(endpoint="http://127.0.0.1:1")) as proxy:
        answer = await proxy.call(b"GET /v1/x")
        assert (answer.status, answer.error_code) == (502, "PROXY_UPSTREAM_UNREACHABLE")
        assert answer.values(b"proxy-status") == [b"csq-proxy; error=connection_refused"]


async def test_an_early_answer_ends_the_upload() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await writer.drain()
        await reader.read()

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /v1/exports", b"Content-Length: 1000000", body=b"x" * 1000))
        answer = await read_message(reader)
        assert (answer.status, answer.body) == (413, b"big")
        assert answer.values(b"connection") == [b"close"]
        assert await reader.read() == b""


async def test_interim_answers_and_expect_are_the_clouds_to_give() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Expect: 100-continue" in head
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        assert await reader.readexactly(5) == b"hello"
        writer.write(OK)
        await writer.drain()

    async with gateway(script) as proxy:
        reader, writer = await proxy.connect()
        writer.write(proxy.request(b"POST /v1/exports", b"Content-Length: 5", b"Expect: 100-continue"))
        assert (await read_message(reader)).status == 100
        assert (await read_message(reader)).lines == [b"Link: x"]
        writer.write(b"hello")
        assert (await read_message(reader)).status == 200


async def test_the_usual_request_is_begun_and_answered_without_the_connections_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with gateway() as proxy:
        assert (await proxy.call(b"GET /v1/x")).status == 200  # leaves a connection to the cloud behind
        monkeypatch.setattr(Gateway, "run", None)
        reader, writer = await proxy.connect()
        for method in (b"GET", b"POST", b"GET"):
            content = b"" if method == b"GET" else b"abc"
            writer.write(
                proxy.request(method + b" /v1/x", b"Content-Length: %d" % len(content), body=content)
            )
            assert (await read_message(reader)).status == 200
        writer.write(proxy.request(b"GET /v1/x") * 8)
        for _ in range(8):
            assert (await read_message(reader)).status == 200
        [project] = proxy.app.projects()
        assert (project.running, project.slots.in_use) == (0, 0)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", b""])
async def test_a_caller_that_leaves_as_a_second_try_is_due_holds_nothing(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_message(reader)
        writer.write(OK)
        await read_message(reader)
        writer.write(answer)
        writer.close()

    left = asyncio.Event()

    def leave(connection: CallerConnection) -> None:
        go_on(connection)
        connection.connection_lost(None)
        left.set()

    async with gateway(script) as proxy:
        assert (await proxy.call(b"GET /v1/x")).status == 200
        go_on = CallerConnection.interrupted
        monkeypatch.setattr(CallerConnection, "interrupted", leave)
        monkeypatch.setattr(Gateway, "run", None)
        _, writer = await proxy.connect()
        writer.write(proxy.request(b"GET /v1/x"))
        async with asyncio.timeout(WAIT_S):
            await left.wait()
        [project] = proxy.app.projects()
        assert (project.running, project.slots.in_use) == (0, 0)
        assert [(kind, count) for kind, _, count in project.measures.of(project.apis[0]).answers()] == [
            ("abandoned", 1),
            ("2xx", 1),
        ]
        writer.transport.abort()


async def test_a_bug_as_an_answer_ends_cuts_its_caller_off_and_holds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[object] = []
    async with gateway() as proxy:
        assert (await proxy.call(b"GET /v1/x")).status == 200
        [project] = proxy.app.projects()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        with monkeypatch.context() as broken:
            broken.setattr(project.slots, "note_answer", None)
            reader, writer = await proxy.connect()
            writer.write(proxy.request(b"GET /v1/x"))
            async with asyncio.timeout(WAIT_S):
                with contextlib.suppress(ConnectionError):
                    await reader.read()
        await turns()
        assert (project.running, project.slots.in_use) == (0, 0)
        assert len(told) == 1
        assert (await proxy.call(b"GET /v1/x")).status == 200


@pytest.mark.parametrize(
    ("given", "sent"), [(b"0" * 12 + b"12", b"11"), (b"9" * 12, b"999999999"), (b"9" * 5000, b"999999999")]
)
async def test_max_forwards_of_any_length_is_counted_down(given: bytes, sent: bytes) -> None:
    cloud = Upstream()
    async with gateway(cloud) as proxy:
        answer = await proxy.call(b"OPTIONS /v1/x", b"Max-Forwards: " + given)
        assert answer.status == 200
        assert cloud.requests[-1].values(b"max-forwards") == [sent]


async def test_a_token_that_ends_while_a_connection_is_made_is_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    issued: dict[bytes, float] = {}
    ages: list[float] = []

    class Token(TokenServer):
        async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await super().__call__(reader, writer)
            issued[b"Bearer token-%d" % len(self.requests)] = time.monotonic()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            [token] = (await read_message(reader)).values(b"authorization")
            ages.append(time.monotonic() - issued[token])
            writer.write(OK)
            await writer.drain()

    dial = Dialer.dial

    async def slowly(self: Dialer, origin: Origin, connection: CloudConnection) -> None:
        await asyncio.sleep(1.2)
        await dial(self, origin, connection)

    monkeypatch.setattr(Dialer, "dial", slowly)
    async with gateway(script, token=Token(expires_in=1)) as proxy:
        assert (await proxy.call(b"GET /v1/x")).status == 200
    assert len(ages) == 1
    assert ages[0] < 1.15  # and not what connecting took


async def test_an_answer_that_nobody_asked_for_is_never_the_next_requests() -> None:
    # Threads, so that the event loop finds the request and the stray answer at once.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: list[socket.socket] = []

        def serve(cloud: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while request := cloud.recv(65_536):
                    content = request.split(b" ")[1]
                    cloud.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(listener.accept()[0])
                    threading.Thread(target=serve, args=(taken[-1],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        vendor = {"allowed_endpoints": [url.removeprefix("http://")]}
        async with gateway(token=TokenServer(endpoint=url), contentsquare=vendor) as proxy:
            reader, writer = await proxy.connect()
            writer.write(proxy.request(b"GET /v1/1"))
            assert (await read_message(reader)).body == b"/v1/1"
            sock = writer.get_extra_info("socket")
            os.write(sock.fileno(), proxy.request(b"GET /v1/2"))
            time.sleep(0.02)  # noqa: ASYNC251 - the loop has to be busy
            taken[0].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray")
            time.sleep(0.02)  # noqa: ASYNC251
            assert (await read_message(reader)).body == b"/v1/2"
        listener.shutdown(socket.SHUT_RDWR)
        for cloud in taken:
            cloud.close()
