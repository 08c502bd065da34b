"""Where export files may be fetched from; the addresses are those that are connected to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.storage import exporting
from support.texts import texts

from proxy.contentsquare import DOWNLOAD_HOSTS
from proxy.errors import UpstreamUnreachable
from proxy.gateway.exports.rules import address_fault, is_public, place_of
from proxy.origin import Origin

CSV = b"a,b\n1,2\n"


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://bucket.s3.eu-west-1.amazonaws.com/a/b.csv?X-Amz-Signature=1%2F2&x=~!*'()", DOWNLOAD_HOSTS),
        ("https://account.blob.core.windows.net/c/b.csv?sig=a%3D", DOWNLOAD_HOSTS),
        ("https://bucket.storage.googleapis.com/b.csv?X-Goog-Signature=1", DOWNLOAD_HOSTS),
        ("https://files.contentsquare.com/b.csv", DOWNLOAD_HOSTS),
        ("https://minio.example/b.csv", ["minio.example"]),
        ("https://minio.example:9000/b.csv", ["minio.example:9000"]),
        ("http://127.0.0.1:9000/b.csv", ["127.0.0.1:9000"]),
        ("http://localhost:9000/b.csv", ["localhost:9000"]),
    ],
)
def test_listed_hosts_are_allowed(url: str, allowed: Sequence[str]) -> None:
    origin, target = place_of(url, allowed)
    assert f"{origin}{target.decode()}" == url


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://bucket.amazonaws.com/b.csv", []),
        ("https://amazonaws.com/b.csv", DOWNLOAD_HOSTS),
        ("https://storage.googleapis.com/b.csv", DOWNLOAD_HOSTS),
        ("https://evilamazonaws.com/b.csv", DOWNLOAD_HOSTS),
        ("https://x.amazonaws.com.evil.example/b.csv", DOWNLOAD_HOSTS),
        ("https://evil.example/x.amazonaws.com", DOWNLOAD_HOSTS),
        ("https://x.amazonaws.com@evil.example/b.csv", DOWNLOAD_HOSTS),
        ("https://evil.example\\.amazonaws.com/b.csv", DOWNLOAD_HOSTS),
        ("https://evil.example#.amazonaws.com/b.csv", DOWNLOAD_HOSTS),
        ("https://x.amazonaws.com:8443/b.csv", DOWNLOAD_HOSTS),
        ("http://x.amazonaws.com/b.csv", DOWNLOAD_HOSTS),
        ("http://minio.example:9000/b.csv", ["minio.example:9000"]),
        ("http://127.0.0.1/b.csv", ["127.0.0.1"]),
        ("http://127.0.0.1:9000/b.csv", ["127.0.0.1"]),
        ("http://127.0.0.1:9001/b.csv", ["127.0.0.1:9000"]),
        ("https://10.0.0.1/b.csv", DOWNLOAD_HOSTS),
        ("https://[::1]/b.csv", DOWNLOAD_HOSTS),
    ],
)
def test_other_hosts_are_refused_without_the_signed_url(url: str, allowed: Sequence[str]) -> None:
    with pytest.raises(UpstreamUnreachable) as caught:
        place_of(url, allowed)
    assert "b.csv" not in caught.value.message


@given(
    texts(max_size=80), st.sampled_from(["", "https://", "https://x.amazonaws.com/", "http://127.0.0.1:1/"])
)
def test_no_url_leads_elsewhere_or_breaks_the_request(text: str, start: str) -> None:
    try:
        origin, target = place_of(start + text, [*DOWNLOAD_HOSTS, "127.0.0.1:1"])
    except UpstreamUnreachable:
        return
    assert origin == Origin("http", "127.0.0.1", 1) or origin.host.endswith(
        tuple(pattern[1:] for pattern in DOWNLOAD_HOSTS)
    )
    assert target.startswith(b"/")
    assert all(0x20 < byte < 0x7F for byte in target)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *((address, True) for address in ("52.218.0.1", "8.8.8.8", "2600:1f00::1", "64:ff9b::808:808")),
        *((address, False) for address in ("127.0.0.1", "127.8.8.8", "0.0.0.0", "::1", "::")),
        *((address, False) for address in ("10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1")),
        *((address, False) for address in ("169.254.169.254", "fe80::1%eth0", "fd00:ec2::254")),
        *((address, False) for address in ("224.0.0.1", "ff02::1", "255.255.255.255", "192.0.2.1")),
        *((address, False) for address in ("::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::1")),
    ],
)
def test_addresses_that_are_not_on_the_internet(address: str, public: bool) -> None:
    assert is_public(address) is public
    origin = Origin("https", "bucket.amazonaws.com", 443)
    fault = address_fault(origin, address, DOWNLOAD_HOSTS)
    assert (fault is None) is public
    assert fault is None or (address in fault and "contentsquare.allowed_downloads" in fault)
    assert address_fault(origin, address, ["bucket.amazonaws.com"]) is None


async def test_a_listed_pattern_that_resolves_to_this_machine_is_not_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: object, **named: int) -> list[object]:
        if host.endswith(".example"):
            asked.append(host)
            loopback: object = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
            public: object = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("198.41.0.4", port))
            return [public, loopback]
        return real(host, port, *args, **named)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    allowed = {"allowed_downloads": ["*.storage.example"]}
    async with exporting(CSV, contentsquare=allowed) as run:
        run.cloud.runs[0]["files"][0]["url"] = "https://bucket.storage.example/part.csv"
        answer = await run.get()
        assert (answer.status, answer.error_code) == (502, "PROXY_UPSTREAM_UNREACHABLE")
        assert b"destination_ip_prohibited" in answer.values(b"proxy-status")[0]
        assert "127.0.0.1, which is not on the Internet" in answer.content.decode()
        assert not answer.values(b"retry-after")
        assert asked == ["bucket.storage.example"]


async def test_the_storage_is_reached_through_the_http_proxy_like_a_cloud(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with exporting(CSV, contentsquare={"allowed_downloads": ["*.amazonaws.com"]}) as run:
        run.cloud.runs[0]["files"][0]["url"] = "https://bucket.amazonaws.com/part.csv?secret=1"
        monkeypatch.setenv("HTTPS_PROXY", url)
        answer = await run.get()
        assert (answer.status, answer.error_code) == (502, "PROXY_UPSTREAM_UNREACHABLE")
        assert "HTTP proxy refused the tunnel" in answer.content.decode()
    server.close()
    assert heads[0].startswith(b"CONNECT bucket.amazonaws.com:443 HTTP/1.1\r\n")
    assert b"secret" not in heads[0]
