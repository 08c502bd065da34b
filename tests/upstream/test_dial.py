"""How a connection to a cloud is opened, and what each failure is called."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from pathlib import Path

import pytest
from support.clouds import closing, dialer, exchange, pool_of, refusal, silent
from support.descriptors import none_left
from support.harness import RawServer, Upstream, free_port
from support.ways import silent_dns  # noqa: F401 - a fixture
from support.windows import verifies_certificates

from proxy.upstream.tls import tls_context


async def test_nobody_listening_is_a_refused_connection() -> None:
    port = free_port()
    error = await refusal(pool_of(f"http://127.0.0.1:{port}"))
    assert error.proxy_status == "connection_refused"
    assert f"127.0.0.1:{port}" in str(error)


@pytest.mark.parametrize("host", ["127.0.0.1", "api.contentsquare.example"])
async def test_no_descriptor_left_is_not_called_a_fault_of_the_network(host: str) -> None:
    pool = pool_of(f"http://{host}:{free_port()}")
    with none_left():
        error = await refusal(pool)
    assert error.proxy_status == "proxy_internal_error"
    assert "EMFILE" in str(error)


async def test_a_name_that_cant_be_resolved_is_a_dns_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_args: object, **_options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    error = await refusal(pool_of("https://api.contentsquare.example"))
    assert error.proxy_status == "dns_error"
    assert "api.contentsquare.example" in str(error)


@pytest.mark.usefixtures("silent_dns")
async def test_a_name_server_that_says_nothing_is_told_as_dns() -> None:
    error = await refusal(pool_of("https://api.contentsquare.example", dialer(timeout_s=0.05)))
    assert error.proxy_status == "dns_timeout"
    assert "api.contentsquare.example" in str(error)
    assert "DNS" in str(error)


@pytest.mark.parametrize("code", [errno.ENETUNREACH, errno.EHOSTUNREACH])
async def test_a_computer_without_a_network_is_told_as_such(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(*_arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("proxy.upstream.dial._connect", connect)
    error = await refusal(pool_of("https://127.0.0.1"))
    assert error.proxy_status == "destination_ip_unroutable"
    assert "check its network" in str(error)


async def test_a_tls_peer_that_says_nothing_is_given_up() -> None:
    async with RawServer(silent) as server:
        pool = pool_of(f"https://localhost:{server.port}", dialer(timeout_s=0.05))
        error = await refusal(pool)
    # The second one on a machine so busy that TLS has not begun within the time.
    assert error.proxy_status in ("tls_protocol_error", "connection_timeout")
    assert "within 0.05 s" in str(error)


async def test_a_peer_that_does_not_speak_tls_is_a_tls_error() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with RawServer(script) as server:
        error = await refusal(pool_of(f"https://localhost:{server.port}"))
    assert error.proxy_status == "tls_protocol_error"


async def test_a_server_whose_authority_is_in_ca_file_is_trusted(
    server_side: ssl.SSLContext, ca_file: Path
) -> None:
    upstream = Upstream()
    async with RawServer(upstream, tls=server_side) as server:
        url = f"https://localhost:{server.port}"
        async with closing(pool_of(url, dialer(tls_context(ca_file)))) as pool:
            connection = await pool.connect()
            for _ in range(2):
                assert (await exchange(connection)).content == b"ok"
    assert len(upstream.requests) == 2


@verifies_certificates
async def test_an_unknown_authority_is_refused_and_the_message_names_ca_file(
    server_side: ssl.SSLContext,
) -> None:
    upstream = Upstream()
    async with RawServer(upstream, tls=server_side) as server:
        error = await refusal(pool_of(f"https://localhost:{server.port}"))
    assert error.proxy_status == "tls_certificate_error"
    assert "contentsquare.ca_file" in str(error)
    assert not upstream.requests


@verifies_certificates
async def test_a_certificate_for_another_name_is_refused(server_side: ssl.SSLContext, ca_file: Path) -> None:
    upstream = Upstream()
    async with RawServer(upstream, tls=server_side) as server:
        error = await refusal(pool_of(f"https://127.0.0.1:{server.port}", dialer(tls_context(ca_file))))
    assert error.proxy_status == "tls_certificate_error"
    assert not upstream.requests
