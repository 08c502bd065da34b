"""`proxy.upstream.loop`: which addresses are our own listeners, and which Via is ours."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest

from proxy.errors import LoopDetected
from proxy.upstream.dns import NameResolver
from proxy.upstream.loop import HOSTS_FILE, VIA_NAME, OwnListeners, is_own_via

OUR_ADDRESS = "192.0.2.7"
"""An address of this machine, where `machine` is used."""


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A packet to our own address comes from there; one to another address comes from ours, too."""

    def source_for(_family: int, peer: tuple[str, int]) -> str | None:
        return {"192.0.2.66": None}.get(peer[0], OUR_ADDRESS)

    monkeypatch.setattr("proxy.upstream.loop.source_for", source_for)


def is_own(listener: str, address: str, port: int = 443) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        OwnListeners([(listener, 443), ("127.0.0.9", 8277)]).refuse("a.example", port, [(family, address)])
    except LoopDetected:
        return True
    return False


def test_the_error_names_the_hosts_file() -> None:
    with pytest.raises(LoopDetected, match=re.escape(HOSTS_FILE)) as caught:
        OwnListeners([("::1", 443)]).refuse("a.example", 443, [(socket.AF_INET6, "::1")])
    assert caught.value.proxy_status == "proxy_loop_detected"
    assert str(caught.value).startswith("a.example:443 is this proxy itself (::1)")


@pytest.mark.parametrize(
    ("listener", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("::1", "::1"),
        ("::1", "::"),
        ("0.0.0.0", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.2"),
        ("0.0.0.0", OUR_ADDRESS),
        ("::", "::1"),
        ("::", "127.0.0.1"),
        ("::", OUR_ADDRESS),
        (OUR_ADDRESS, OUR_ADDRESS),
        ("fe80::1%eth0", "fe80::1%2"),
    ],
)
def test_an_address_of_ours_is_refused_at_the_listeners_port_only(listener: str, address: str) -> None:
    assert is_own(listener, address)
    assert not is_own(listener, address, 8443)


@pytest.mark.parametrize(
    ("listener", "address"),
    [
        ("127.0.0.1", "127.0.0.2"),
        ("127.0.0.1", "::1"),
        ("::1", "127.0.0.1"),
        ("0.0.0.0", "::1"),
        ("0.0.0.0", "198.51.100.1"),
        ("0.0.0.0", "192.0.2.66"),  # no way leads there
        ("::", "2001:db8::1"),
        (OUR_ADDRESS, "127.0.0.1"),
    ],
)
def test_any_other_address_is_not(listener: str, address: str) -> None:
    assert not is_own(listener, address)


def test_the_systems_own_word_about_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert is_own("0.0.0.0", "127.0.0.1")
    assert not is_own("0.0.0.0", "192.0.2.1")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "api.contentsquare.example"])
async def test_a_name_is_refused_by_the_address_that_it_has_now(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = socket.getaddrinfo

    def getaddrinfo(name: Any, *args: Any, **options: Any) -> Any:
        led_here = name == "api.contentsquare.example" and not options.get("flags")
        return look_up("127.0.0.1" if led_here else name, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    resolver = NameResolver(OwnListeners([("127.0.0.1", 443), ("::1", 443)]))
    with pytest.raises(LoopDetected):
        await resolver.addresses(host, 443)
    assert await resolver.addresses(host, 444)


@pytest.mark.parametrize(
    ("values", "own"),
    [
        ([b"1.1 " + VIA_NAME], True),
        ([b"1.0 fred", b"HTTP/1.1 " + VIA_NAME + b" (a comment), 1.1 nginx"], True),
        ([b"1.1 csq-proxy", b"1.1 csq-proxy-0123456789abcdef"], False),
        ([], False),
    ],
)
def test_only_a_via_of_this_process_is_ours(values: list[bytes], *, own: bool) -> None:
    assert is_own_via(values) is own
