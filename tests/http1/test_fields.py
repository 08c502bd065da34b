"""Field lines: heads share the names, and a head means the same whether it shares them or not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ProtocolViolation
from proxy.http1 import FieldNames, RequestHead, parse_request_head, parse_response_head

GET = b"GET / HTTP/1.1\r\nHost: x"
OK = b"HTTP/1.1 200 OK"


def request(*lines: bytes) -> RequestHead:
    return parse_request_head(b"\r\n".join((GET, *lines)))


def test_what_was_found_out_about_names_is_kept_only_for_few_and_short_options() -> None:
    names = FieldNames([b"host", b"accept"])
    few = frozenset((b"host",))
    assert names.kept(few) is names.kept(few)
    for drop in (
        frozenset(b"option-%d" % number for number in range(4096)),
        frozenset((b"host", b"o" * 32 * 1024)),
    ):
        assert names.kept(drop) == [name not in drop for name in names.names]
        assert names.kept(drop) is not names.kept(drop)
    for number in range(100):
        names.kept(frozenset((b"option-%d" % number,)))
    late = frozenset((b"late",))
    assert names.kept(late) is names.kept(late)


def test_names_that_come_after_many_others_are_learnt_all_the_same() -> None:
    for number in range(1000):
        request(b"X-%d: 1" % number)
    first, second = (request(b"Late: %d" % number).fields for number in (1, 2))
    assert first != second
    assert first.names is second.names


LINES = [
    b"Date: 1",
    b"date: 2",
    b"Date:",
    b"Dat: x",
    b"Dates: x",
    b"A: b",
    b"a",
    b": a",
    b" A: b",
    b"D ate: x",
]


@given(
    before=st.lists(st.sampled_from([b"Date", b"date", b"Dates", b"A", b"a"]), max_size=4),
    lines=st.lists(st.sampled_from(LINES), max_size=4),
)
def test_a_head_is_read_alike_whatever_came_before_it(before: list[bytes], lines: list[bytes]) -> None:
    def read(names: FieldNames | None) -> object:
        try:
            head = parse_response_head(b"\r\n".join((OK, *lines)), names)
        except ProtocolViolation as exc:
            return str(exc)
        return [(field.name, field.value, field.line) for field in head.fields]

    assert read(FieldNames(before)) == read(None)


def test_names_are_shared_with_the_head_before_where_they_are_spelt_alike() -> None:
    def names(line: bytes, before: FieldNames | None = None) -> FieldNames:
        return parse_response_head(OK + b"\r\nDate: 1\r\n" + line, before).fields.names

    first = names(b"ETag: " + b"1" * 5000)
    assert names(b"ETag: 2", first) is first
    for other in (b"etag: 2", b"ETags: 2", b"ETag: 2\r\nAge: 1", b"Age: 2"):
        assert names(other, first) is not first
