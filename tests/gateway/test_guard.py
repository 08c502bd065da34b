"""Who may call: Host, Origin, Sec-Fetch-Site, the form of the target, the method."""

from __future__ import annotations

import itertools

import pytest
from support.cases import together

from proxy.errors import BadRequest, BadTarget, HostRefused, MethodRefused, OriginRefused, ProxyError
from proxy.gateway.guard import Guard
from proxy.http1 import RequestHead, parse_request_head

OWN = b"127.0.0.1:8277"


def check(
    start: bytes = b"GET /v1/x", *lines: bytes, host: bytes | None = OWN, guard: Guard | None = None
) -> bytes:
    """What the guard makes of a request; the target in origin-form."""
    host_line = [] if host is None else [b"Host: " + host]
    version = b" HTTP/1.0" if host is None else b" HTTP/1.1"
    head = parse_request_head(b"\r\n".join((start + version, *host_line, *lines)))
    return (guard or Guard(8277, ["Proxy.Internal:8277", "csq-proxy"])).check(head)


@pytest.mark.parametrize(
    "host",
    [
        b"127.0.0.1:8277",
        b"localhost:8277",
        b"LocalHost:8277",
        b"[::1]:8277",
        b"proxy.internal:8277",
        b"PROXY.INTERNAL:8277",
        b"csq-proxy",
        b"127.0.0.1",
        b"LOCALHOST",
        b"[::1]",
    ],
)
def test_loopback_names_with_our_port_or_none_and_allowed_hosts_are_accepted(host: bytes) -> None:
    assert check(host=host) == b"/v1/x"


@pytest.mark.parametrize(
    "host",
    [
        b"127.0.0.1:",
        b"127.0.0.1:80",
        b"127.0.0.1:1",
        b"127.0.0.1:08277",
        b"127.0.0.2:8277",
        b"0.0.0.0:8277",
        b"2130706433:8277",
        b"127.0.0.1.nip.io:8277",
        b"localhost.:8277",
        b"localhost.evil.example:8277",
        b"evil.example",
        b"evil.example:8277",
        b"proxy.internal",
        b"csq-proxy:8277",
        b"127.0.0.1,evil.example",
        b"127%2e0.0.1:8277",
        b"[::]:8277",
        b"[0:0:0:0:0:0:0:1]:8277",
        b"[v1.a:b]:8277",
        b"[::ffff:127.0.0.1]:8277",
    ],
)
def test_any_other_host_is_a_421_against_dns_rebinding(host: bytes) -> None:
    with pytest.raises(HostRefused) as caught:
        check(host=host)
    assert (caught.value.code, caught.value.status) == ("PROXY_HOST_REFUSED", 421)
    assert "server.allowed_hosts" in caught.value.message


@together(
    "host",
    [
        b"",
        b":8277",
        b"127.0.0.1 :8277",
        b"127.0.0.1: 8277",
        b"127.0.0.1:8277/",
        b"127.0.0.1:8277?",
        b"127.0.0.1:8277#",
        b"127.0.0.1:+8277",
        b"127.0.0.1:8277:8277",
        b"127.0.0.1:port",
        b"http://127.0.0.1:8277",
        b"a@127.0.0.1:8277",
        b"evil.example@127.0.0.1:8277",
        b"127.0.0.1:8277@evil.example",
        b"127.0.0.1:8277, evil.example",
        b"evil example",
        b"evil\\example",
        b'"localhost"',
        b"100%:8277",
        b"%zz",
        b"::1",
        b"::1:8277",
        b"[::1",
        b"[::1]8277",
        b"[]",
        b"[:::1]:8277",
        b"[127.0.0.1]:8277",
        b"[1:2:3:4:5:6:7:8:9]",
        b"[fe80::1%eth0]",
        b"[v1.]",
        b"\xef\xbc\x91.0.0.1:8277",
        b"caf\xe9.example",
    ],
)
@pytest.mark.parametrize("start", [b"GET /v1/x", b"GET http://127.0.0.1:8277/v1/x", b"OPTIONS *"])
def test_a_host_that_is_no_authority_is_a_400(start: bytes, host: bytes) -> None:  # RFC 9112, section 3.2
    with pytest.raises(BadRequest) as caught:
        check(start, host=host)
    assert (caught.value.code, caught.value.status) == ("PROXY_BAD_REQUEST", 400)


@pytest.mark.parametrize("host", [b"evil.example", b"127.0.0.1:1", b"[::1]:80", b"x"])
def test_with_a_target_in_absolute_form_the_targets_authority_counts(host: bytes) -> None:
    # RFC 9112, section 3.2.2
    assert check(b"GET http://localhost:8277/v1/x", host=host) == b"/v1/x"
    for target in (b"http://evil.example/v1/x", b"http://%b/v1/x" % host):
        for lines in ([], [b"Max-Forwards: 0"]):
            with pytest.raises(BadTarget):
                check(b"OPTIONS " + target, *lines, host=host)
    for own in (b"http://127.0.0.1:8277", b"http://" + host):  # the page's origin isn't the target's
        with pytest.raises(OriginRefused):
            check(b"GET http://localhost:8277/v1/x", b"Origin: " + own, host=host)
    assert check(b"GET http://localhost:8277/", b"Origin: http://LocalHost:8277", host=host) == b"/"


def test_on_port_80_the_port_may_be_left_out() -> None:
    for host in (b"localhost", b"127.0.0.1", b"[::1]", b"localhost:80"):
        assert check(host=host, guard=Guard(80)) == b"/v1/x"


def test_an_http_1_0_caller_without_host_is_let_in() -> None:
    assert check(host=None) == b"/v1/x"


@pytest.mark.parametrize(
    "method", [b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"PROPFIND"]
)
def test_methods_pass(method: bytes) -> None:
    assert check(method + b" /v1/x") == b"/v1/x"


@pytest.mark.parametrize("start", [b"TRACE /v1/x", b"CONNECT 127.0.0.1:8277", b"CONNECT evil.example:443"])
def test_trace_and_connect_are_a_405_that_lists_what_is_allowed(start: bytes) -> None:
    with pytest.raises(MethodRefused) as caught:
        check(start)
    assert (caught.value.code, caught.value.status) == ("PROXY_METHOD_REFUSED", 405)
    assert [name for name, _ in caught.value.fields] == [b"Allow"]


@pytest.mark.parametrize("site", [b"cross-site", b"same-site", b"CROSS-SITE", b"", b"whatever"])
def test_requests_of_other_sites_pages_are_a_403_by_sec_fetch_site(site: bytes) -> None:
    with pytest.raises(OriginRefused) as caught:
        check(b"GET /v1/x", b"Sec-Fetch-Site: " + site)
    assert (caught.value.code, caught.value.status) == ("PROXY_ORIGIN_REFUSED", 403)


@pytest.mark.parametrize("site", [b"none", b"same-origin"])
def test_requests_of_ones_own_page_or_of_the_address_bar_pass(site: bytes) -> None:
    assert check(b"GET /v1/x", b"Sec-Fetch-Site: " + site) == b"/v1/x"


@pytest.mark.parametrize(
    "origin",
    [
        b"http://evil.example",
        b"null",
        b"",
        b"http://127.0.0.1",
        b"http://127.0.0.1:8278",
        b"http://localhost:8277",
        b"http://127.0.0.1:8277.evil.example",
        b"http://127.0.0.1:8277/",
        b"http://127.0.0.1:8277 http://evil.example",
        b"file://127.0.0.1:8277",
        b"127.0.0.1:8277",
    ],
)
def test_requests_of_other_sites_pages_are_a_403_by_origin(origin: bytes) -> None:
    with pytest.raises(OriginRefused):
        check(b"POST /v1/x", b"Origin: " + origin)


@pytest.mark.parametrize(
    "origin", [b"http://127.0.0.1:8277", b"https://127.0.0.1:8277", b"HTTP://127.0.0.1:8277"]
)
def test_ones_own_origin_passes(origin: bytes) -> None:
    assert check(b"POST /v1/x", b"Origin: " + origin) == b"/v1/x"


@together("path", [b"/v1/x", b"/", b"/-/status", b"/-/metrics", b"/-/page.cssx", b"/-", b"/shop/-/"])
@pytest.mark.parametrize(
    "referer",
    [
        b"http://evil.example/",
        b"https://wiki.corp/page?q=http://127.0.0.1:8277/",
        b"http://127.0.0.1:8278/-/",
        b"http://127.0.0.1/",
        b"http://127.0.0.1:8277.evil.example/",
        b"http://127.0.0.1:8277@evil.example/",
        b"http://localhost:8277/",
        b"//evil.example/",
        b"android-app://com.example/",
        b"127.0.0.1:8277",
        b"null",
    ],
)
def test_requests_of_other_sites_pages_are_a_403_by_referer(referer: bytes, path: bytes) -> None:
    with pytest.raises(OriginRefused):
        check(b"GET " + path, b"Referer: " + referer)


@pytest.mark.parametrize(
    "referer",
    [
        b"http://127.0.0.1:8277/-/",
        b"HTTP://127.0.0.1:8277",
        b"https://127.0.0.1:8277/x?y",
        b"http://127.0.0.1:8277#x",
        b"/-/",
        b"about:blank",
        b"",
    ],
)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_ones_own_referer_and_one_that_no_page_sends_pass(referer: bytes, method: bytes) -> None:
    assert check(method + b" /v1/x", b"Referer: " + referer) == b"/v1/x"


OPENED = (b"Sec-Fetch-Mode: navigate", b"Sec-Fetch-Dest: document", b"Referer: http://wiki.corp/")


@pytest.mark.parametrize(
    "path", [b"/-/", b"/-/page.css", b"/-/page.js", b"/-/?x", b"http://127.0.0.1:8277/-/"]
)
def test_a_get_of_the_page_and_its_files_may_have_a_foreign_referer(path: bytes) -> None:
    assert check(b"GET " + path, b"Referer: http://wiki.corp/") == path.removeprefix(b"http://" + OWN)
    for method in (b"POST", b"PUT", b"HEAD"):
        with pytest.raises(OriginRefused):
            check(method + b" " + path, b"Referer: http://wiki.corp/")


@pytest.mark.parametrize("site", [b"cross-site", b"same-site"])
def test_a_link_of_another_site_opens_the_page_and_nothing_else(site: bytes) -> None:
    line = b"Sec-Fetch-Site: " + site
    assert check(b"GET /-/", line, *OPENED) == b"/-/"
    assert check(b"GET /-/?x", line, b"Sec-Fetch-User: ?1", *OPENED) == b"/-/?x"
    for start, lines in (
        (b"GET /v1/x", OPENED),
        (b"GET /", OPENED),
        (b"GET /-/page.js", OPENED),
        (b"GET /-/status", OPENED),
        (b"POST /-/", OPENED),
        (b"GET /-/", OPENED[:1]),
        (b"GET /-/", OPENED[1:]),
        (b"GET /-/", (OPENED[0], b"Sec-Fetch-Dest: iframe")),
        (b"GET /-/", (*OPENED, b"Sec-Fetch-Dest: iframe")),
        (b"GET /-/", (*OPENED, b"Origin: http://wiki.corp")),
    ):
        with pytest.raises(OriginRefused):
            check(start, line, *lines)


def test_one_bad_field_among_good_ones_is_enough() -> None:
    with pytest.raises(OriginRefused):
        check(b"GET /v1/x", b"Sec-Fetch-Site: none", b"Sec-Fetch-Site: cross-site")
    with pytest.raises(OriginRefused):
        check(b"GET /v1/x", b"Origin: http://127.0.0.1:8277", b"Origin: http://evil.example")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://127.0.0.1:8277/v1/x?a=%7e", b"/v1/x?a=%7e"),
        (b"HTTP://LOCALHOST:8277/v1", b"/v1"),
        (b"https://csq-proxy//v1", b"//v1"),
        (b"http://127.0.0.1:8277", b"/"),
        (b"http://127.0.0.1:8277?a=b", b"/?a=b"),
        (b"http://[::1]:8277/", b"/"),
    ],
)
def test_absolute_form_that_names_us_is_taken_as_the_path(target: bytes, path: bytes) -> None:
    assert check(b"GET " + target) == path


@pytest.mark.parametrize(
    "target",
    [
        b"http://evil.example/v1/x",
        b"http://evil.example:8277/",
        b"http://127.0.0.1/v1/x",
        b"http://a@127.0.0.1:8277/",
        b"http://127.0.0.1:8277@evil.example/",
        b"http://evil.example\\@127.0.0.1:8277/",
        b"http://127.0.0.1:8277#@evil.example/",
        b"http://127.0.0.1:8277\\evil.example/",
        b"http:///v1/x",
        b"http:/v1/x",
        b"ftp://127.0.0.1:8277/",
        b"://127.0.0.1:8277/",
        b"//127.0.0.1:8277x"[2:],
        b"*",
        b"v1/x",
        b"@evil.example/",
        b":8277/",
        b".evil.example/",
    ],
)
def test_any_other_target_that_is_no_path_is_a_400(target: bytes) -> None:
    with pytest.raises(BadTarget) as caught:
        check(b"GET " + target)
    assert (caught.value.code, caught.value.status) == ("PROXY_BAD_TARGET", 400)


def test_options_may_ask_about_the_whole_server() -> None:
    assert check(b"OPTIONS *") == b"*"


def test_a_target_that_looks_like_an_authority_stays_a_path() -> None:
    assert check(b"GET //evil.example/v1") == b"//evil.example/v1"


def test_the_host_is_checked_before_the_target_and_the_origin() -> None:
    for lines in ([], [b"Origin: http://evil.example"]):
        for target in (b"/", b"*", b"v1/x", b"ftp://127.0.0.1:8277/"):
            with pytest.raises(ProxyError) as caught:
                check(b"GET " + target, *lines, host=b"evil.example")
            assert caught.value.code == "PROXY_HOST_REFUSED"


@pytest.mark.parametrize("port", [80, 443])
def test_a_default_port_is_left_out_of_host(port: int) -> None:
    for host in (b"localhost", b"127.0.0.1", b"[::1]", b"localhost:%d" % port):
        assert check(host=host, guard=Guard(port)) == b"/v1/x"


# Requests of one connection share their fields, and a guard remembers the fields that it accepted

STARTS = (b"GET /v1/x", b"POST /a", b"OPTIONS /v1/x", b"OPTIONS *", b"TRACE /", b"CONNECT /", b"LOOK /b")
FORMS = (b"GET http://127.0.0.1:8277/v1/x", b"GET http://evil.example/", b"GET http://localhost:8277")
SECTIONS: tuple[tuple[bytes, ...], ...] = (
    (b"Host: " + OWN,),
    (b"Host: LOCALHOST",),
    (b"Host: evil.example",),
    (b"Host: " + OWN, b"Max-Forwards: 0"),
    (b"Host: " + OWN, b"Origin: http://127.0.0.1:8277"),
    (b"Host: " + OWN, b"Origin: http://evil.example"),
    (b"Host: " + OWN, b"Referer: http://evil.example/"),
    (b"Host: " + OWN, b"Via: 1.1 other"),
)


@pytest.mark.parametrize("section", SECTIONS)
def test_what_was_checked_before_with_the_same_fields_changes_no_verdict(section: tuple[bytes, ...]) -> None:
    ours, other = Guard(8277), Guard(80)

    def verdict(guard: Guard, head: RequestHead) -> object:
        try:
            return guard.check(head)
        except ProxyError as error:
            return type(error)

    for first, second in itertools.product((*STARTS, *FORMS), repeat=2):
        heads = [
            parse_request_head(b"\r\n".join((start + b" HTTP/1.1", *section))) for start in (first, second)
        ]
        shared = parse_request_head(b"\r\n".join((second + b" HTTP/1.1", *section)), heads[0].section)
        assert shared.section is heads[0].section
        verdict(ours, heads[0])
        for guard in (ours, other, ours):
            assert verdict(guard, shared) == verdict(guard, heads[1])
            heads[1].section.guard = None
