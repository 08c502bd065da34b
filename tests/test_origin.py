"""`proxy.origin`: what the token belongs to, compared as one value."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cases import together
from support.texts import texts

from proxy.origin import Origin


@pytest.mark.parametrize(
    ("url", "origin", "text"),
    [
        (
            "https://api.contentsquare.com",
            ("https", "api.contentsquare.com", 443),
            "https://api.contentsquare.com",
        ),
        (
            "https://api.contentsquare.com/",
            ("https", "api.contentsquare.com", 443),
            "https://api.contentsquare.com",
        ),
        (
            "HTTPS://API.Contentsquare.com",
            ("https", "api.contentsquare.com", 443),
            "https://api.contentsquare.com",
        ),
        (
            "https://api.contentsquare.com:443",
            ("https", "api.contentsquare.com", 443),
            "https://api.contentsquare.com",
        ),
        ("https://a.example:8443", ("https", "a.example", 8443), "https://a.example:8443"),
        ("http://localhost:80", ("http", "localhost", 80), "http://localhost"),
        ("http://localhost:443", ("http", "localhost", 443), "http://localhost:443"),
        ("http://127.0.0.1:9000", ("http", "127.0.0.1", 9000), "http://127.0.0.1:9000"),
        ("https://[::1]:9000", ("https", "::1", 9000), "https://[::1]:9000"),
        ("https://[2001:DB8::1]", ("https", "2001:db8::1", 443), "https://[2001:db8::1]"),
        (f"https://{63 * 'a'}.example", ("https", f"{63 * 'a'}.example", 443), f"https://{63 * 'a'}.example"),
        (f"https://{126 * 'a.'}a", ("https", f"{126 * 'a.'}a", 443), f"https://{126 * 'a.'}a"),
    ],
)
def test_a_base_url_is_scheme_host_and_port(url: str, origin: tuple[str, str, int], text: str) -> None:
    assert Origin.parse(url) == origin
    assert str(Origin.parse(url)) == text


@together(
    "url",
    [
        "",
        "api.contentsquare.com",
        "//api.contentsquare.com",
        "ftp://api.contentsquare.com",
        "https://",
        "https:///",
        "https://user@api.contentsquare.com",
        "https://user:word@api.contentsquare.com",
        "https://@api.contentsquare.com",
        "https://api.contentsquare.com/v1",
        "https://api.contentsquare.com?",
        "https://api.contentsquare.com?a=b",
        "https://api.contentsquare.com#",
        "https://api.contentsquare.com/#x",
        "https://api.contentsquare.com:",
        "https://api.contentsquare.com:0",
        "https://api.contentsquare.com:65536",
        "https://api.contentsquare.com:x",
        "https://api.contentsquare.com:+443",
        "https://api.contentsquare.com.",
        "https://.contentsquare.com",
        "https://-a.example",
        "https://a_b.example",
        "https://a b.example",
        "https://a\\b.example",
        "https://a%2eexample",
        "https://caf\u00e9.example",
        "https://\uff41.example",
        "https://a.example\n",
        "\thttps://a.example",
        "https://a.exa\nmple",
        "https://[::1",
        "https://::1",
        "https://[v1.x]",
        "https://a.example//",
        f"https://{64 * 'a'}.example",
        f"https://{127 * 'a.'}a.a",
    ],
)
def test_what_isnt_a_plain_base_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the words are for people, and partly urllib's
        Origin.parse(url)


@given(text=texts() | texts().map("https://".__add__) | st.text("htps:/.a1[]@?#\\%:", max_size=30))
def test_any_text_is_refused_or_round_trips(text: str) -> None:
    with suppress(ValueError):
        origin = Origin.parse(text)
        assert Origin.parse(str(origin)) == origin
        assert text.lower().startswith(f"{origin.scheme}://")
        assert origin.host in text.lower()


@pytest.mark.parametrize(
    ("url", "is_tls", "is_loopback", "is_ip", "authority"),
    [
        ("https://api.contentsquare.com", True, False, False, "api.contentsquare.com"),
        ("http://localhost:8080", False, True, False, "localhost:8080"),
        ("http://127.0.0.1", False, True, True, "127.0.0.1"),
        ("http://127.9.9.9:81", False, True, True, "127.9.9.9:81"),
        ("http://[::1]:443", False, True, True, "[::1]:443"),
        ("https://10.0.0.1:443", True, False, True, "10.0.0.1"),
        ("https://localhost.example", True, False, False, "localhost.example"),
        ("https://127.0.0.1.example", True, False, False, "127.0.0.1.example"),
    ],
)
def test_an_origin_knows_its_kind_and_its_host_field(
    url: str, is_tls: bool, is_loopback: bool, is_ip: bool, authority: str
) -> None:
    origin = Origin.parse(url)
    assert (origin.is_tls, origin.is_loopback, origin.is_ip) == (is_tls, is_loopback, is_ip)
    assert origin.authority == authority


def test_scheme_and_port_are_part_of_the_comparison() -> None:
    base = Origin.parse("https://a.example")
    assert base != Origin.parse("http://a.example:443")
    assert base != Origin.parse("https://a.example:8443")
    assert len({base, Origin.parse("https://A.example:443/")}) == 1
