"""NO_PROXY as curl reads it, with ports and ``*.`` besides; and the exceptions of Windows and macOS."""

from __future__ import annotations

import urllib.request

import pytest

from proxy.origin import Origin
from proxy.upstream.no_proxy import is_excepted, is_named

CLOUD = "https://api.eu-west-1.contentsquare.com"


@pytest.mark.parametrize(
    ("no_proxy", "named"),
    [
        ("*.contentsquare.com", True),
        (".contentsquare.com", True),
        ("contentsquare.com", True),
        ("Contentsquare.COM", True),
        ("contentsquare.com.", True),
        ("api.eu-west-1.contentsquare.com", True),
        ("com", True),
        ("*", True),
        ("other, *", True),
        ("a.example,contentsquare.com", True),
        (" a.example ,\tcontentsquare.com ", True),
        ("a.example contentsquare.com", True),
        ("contentsquare.com:443", True),
        ("*.contentsquare.com:443", True),
        ("*:443", True),
        ("contentsquare.com:8443", False),
        ("*:80", False),
        ("", False),
        (" , ,", False),
        (".", False),
        ("*.", False),
        (":443", False),
        ("square.com", False),
        ("contentsquare.co", False),
        ("api.contentsquare.com", False),
        ("x.api.eu-west-1.contentsquare.com", False),
        ("0.0.0.0/0", False),
        ("10.0.0.1", False),
    ],
)
def test_an_entry_names_a_host_and_all_below_it(no_proxy: str, named: bool) -> None:
    assert is_named(no_proxy, Origin.parse(CLOUD)) is named


@pytest.mark.parametrize(
    ("no_proxy", "url", "named"),
    [
        ("10.1.2.3", "https://10.1.2.3", True),
        ("10.1.2.3:443", "https://10.1.2.3", True),
        ("10.1.2.3:444", "https://10.1.2.3", False),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.9.9.9/8", "https://10.1.2.3", True),
        ("10.0.0.0/16", "https://10.1.2.3", False),
        ("10.0.0.0/99", "https://10.1.2.3", False),
        ("2.3", "https://10.1.2.3", False),
        ("*", "https://10.1.2.3", True),
        ("2001:db8::1", "https://[2001:db8::1]", True),
        ("[2001:db8::1]", "https://[2001:db8::1]", True),
        ("[2001:DB8:0::1]:443", "https://[2001:db8::1]", True),
        ("[2001:db8::1]:80", "https://[2001:db8::1]", False),
        ("2001:db8::/32", "https://[2001:db8::1]", True),
        ("fc00::/7", "https://[2001:db8::1]", False),
        ("10.0.0.0/8", "https://[2001:db8::1]", False),
    ],
)
def test_an_entry_names_an_address_or_a_network(no_proxy: str, url: str, named: bool) -> None:
    assert is_named(no_proxy, Origin.parse(url)) is named


@pytest.mark.parametrize("answer", [True, False, 1, 0])
def test_the_systems_exceptions_are_asked_with_the_host_alone(
    answer: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def proxy_bypass(host: str) -> bool:
        asked.append(host)
        return answer

    monkeypatch.setattr(urllib.request, "getproxies_environment", dict)
    monkeypatch.setattr(urllib.request, "proxy_bypass", proxy_bypass)
    assert is_excepted(Origin.parse(CLOUD)) is bool(answer)
    assert asked == ["api.eu-west-1.contentsquare.com"]


@pytest.mark.parametrize(
    ("exceptions", "excepted"),
    [
        (["*.contentsquare.com"], True),
        (["*.local", "169.254/16"], False),
        ([CLOUD.removeprefix("https://")], True),
    ],
)
def test_the_exceptions_of_macos_hold(
    exceptions: list[str], excepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the function of Python's that asks macOS, with settings of ours."""
    settings = {"exclude_simple": True, "exceptions": exceptions}
    monkeypatch.setattr("socket.gethostbyname", lambda _: "192.0.2.1")
    monkeypatch.setattr(urllib.request, "getproxies_environment", dict)
    monkeypatch.setattr(
        urllib.request,
        "proxy_bypass",
        lambda host: urllib.request._proxy_bypass_macosx_sysconf(host, settings),  # type: ignore[attr-defined]
    )
    assert is_excepted(Origin.parse(CLOUD)) is excepted
