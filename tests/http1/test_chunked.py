"""Chunked framing: what is refused, and that it means the same however it arrives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ProtocolViolation
from proxy.http1.chunked import MAX_CHUNK_LINE_BYTES, MAX_TRAILER_BYTES, ChunkedDecoder, chunk, last_chunk


def decode(*parts: bytes) -> tuple[bytes, ChunkedDecoder]:
    """The content of a message that comes in these parts; parts after its end are added to ``rest``."""
    decoder = ChunkedDecoder()
    content = b""
    for index, part in enumerate(parts):
        content += decoder.feed(part)
        if decoder.done:
            decoder.rest += b"".join(parts[index + 1 :])
            break
    return content, decoder


@pytest.mark.parametrize(
    ("body", "content"),
    [
        (b"0\r\n\r\n", b""),
        (b"000\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"A;ext=1\r\n0123456789\r\n0;last\r\n\r\n", b"0123456789"),
        (b'1 ;q="a,b"\r\nx\r\n0\r\n\r\n', b"x"),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
        (b"00000000000000a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"0" * 15 + b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"0" * 255 + b"A;x\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"0" * 241 + b"00000000000000a\r\n0123456789\r\n" + b"0" * 256 + b"\r\n\r\n", b"0123456789"),
    ],
)
def test_chunks_are_taken_apart(body: bytes, content: bytes) -> None:
    got, decoder = decode(body)
    assert (got, decoder.done, decoder.rest, decoder.trailers) == (content, True, b"", [])


@pytest.mark.parametrize(
    "body",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b" 1\r\n",
        b"1 \r\nx\r\n",
        b"1_0\r\n",
        b"1\nx\r\n0\r\n\r\n",
        b"1\r\nxx\r\n",
        b"1\r\nx\n0\r\n\r\n",
        b"1\r\nx0\r\n\r\n",
        b"1;a\x00\r\nx\r\n0\r\n\r\n",
        b"1;a\nb\r\nx\r\n0\r\n\r\n",
        b"1;a\rb\r\nx\r\n0\r\n\r\n",
        b"1000000000000000\r\n",
        b"0" * 240 + b"1000000000000000\r\n",
        b"0" * 256 + b"1\r\nx\r\n",
        b"0" * 257 + b"\r\n\r\n",
        b"\xb2\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\nA : b\r\n\r\n",
        b"0\r\n a: obs-fold\r\n\r\n",
        b"0\r\nA: \x00\r\n\r\n",
        b"0\r\nContent-Length: 3\r\n\r\n",
        b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"0\r\nHost: x\r\n\r\n",
        b"0\r\nOrigin: x\r\n\r\n",
    ],
)
def test_malformed_chunks_are_a_violation_however_they_are_split(body: bytes) -> None:
    for parts in ([body], [body[index : index + 1] for index in range(len(body))]):
        with pytest.raises(ProtocolViolation):
            decode(*parts, b"\r\n\r\n")


@pytest.mark.parametrize(
    "unfinished", [b"", b"5", b"5\r\nhel", b"5\r\nhello\r\n", b"0\r\n", b"0\r\nA: b\r\n"]
)
def test_a_message_without_its_last_line_is_not_done(unfinished: bytes) -> None:
    assert not decode(unfinished)[1].done


def test_trailers_and_what_follows_the_message_are_set_apart() -> None:
    _, decoder = decode(b"0\r\nX-Sum: 1\r\nx-empty:\r\n\r\nGET /next")
    assert [(field.name, field.value) for field in decoder.trailers] == [(b"x-sum", b"1"), (b"x-empty", b"")]
    assert decoder.rest == b"GET /next"
    assert last_chunk(decoder.trailers) == b"0\r\nX-Sum: 1\r\nx-empty:\r\n\r\n"


def test_endless_lines_are_a_violation_long_before_memory_is_full() -> None:
    with pytest.raises(ProtocolViolation):
        decode(*[b"1"] * (MAX_CHUNK_LINE_BYTES + 1))
    with pytest.raises(ProtocolViolation):
        decode(b"1;" + b"a" * MAX_CHUNK_LINE_BYTES)
    with pytest.raises(ProtocolViolation):
        decode(b"1;" + b"a" * MAX_CHUNK_LINE_BYTES + b"\r\nx\r\n")
    with pytest.raises(ProtocolViolation):
        decode(b"0\r\n", *[b"A: " + b"b" * 1000 + b"\r\n"] * (MAX_TRAILER_BYTES // 1000 + 1))


@pytest.mark.parametrize("wrong", [b"1\r\nxx\r\n", b"2\r\nx\r\n", b"1\r\nx\n\n", b"g\r\nx\r\n"])
def test_one_malformed_chunk_among_many_small_ones_is_a_violation(wrong: bytes) -> None:
    small = b"".join(chunk(b"\r\n"[:size] * size) for size in (1, 2, 1)) * 500
    assert decode(small)[0] == b"\r\r\n\r\n\r" * 500
    for parts in ([small + wrong + small], [small, wrong, small], [small + wrong[:1], wrong[1:] + small]):
        with pytest.raises(ProtocolViolation):
            decode(*parts)


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.lists(st.sampled_from([b"X-A: 1", b"X-B:", b"x-c: \xe9"]), max_size=2),
    st.binary(max_size=5),
    st.data(),
)
def test_any_split_of_a_chunked_message_gives_the_same_content(
    contents: list[bytes], trailers: list[bytes], rest: bytes, data: st.DataObject
) -> None:
    end = b"".join(line + b"\r\n" for line in trailers)
    message = b"".join(map(chunk, contents)) + b"0\r\n" + end + b"\r\n" + rest
    cuts = sorted(data.draw(st.lists(st.integers(0, len(message)), max_size=8)))
    parts = [message[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(message)], strict=True)]
    content, decoder = decode(*parts)
    assert content == b"".join(contents)
    assert decoder.done
    assert [field.line for field in decoder.trailers] == trailers
    assert decoder.rest == rest


@given(
    st.lists(st.sampled_from([b"0", b"1", b"a", b";x", b"\r", b"\n", b"\r\n", b"x: y", b" "]), max_size=14)
)
def test_a_byte_at_a_time_and_all_at_once_agree_on_every_input(pieces: list[bytes]) -> None:
    body = b"".join(pieces)

    def outcome(parts: list[bytes]) -> object:
        try:
            content, decoder = decode(*parts)
        except ProtocolViolation:
            return "violation"
        return content, decoder.done, decoder.rest, decoder.trailers

    assert outcome([body]) == outcome([body[index : index + 1] for index in range(len(body))])


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"", b"0", b"0" * 64, b"0" * 65, b"0" * 241, b"0" * 256, b"+", b"0x"]),
            st.sampled_from(
                [b"", b";", b" ;", b";a=b", b" \t;a", b"\t" * 65 + b";", b";" + b"a" * 65, b" ", b";\0"]
            ),
            st.sampled_from([b"x", b"\r\n", b"x" * 10, b"x" * 27, b"\r\n1\r\n" * 100, b""]),
            st.sampled_from([b"\r\n"] * 9 + [b"\n", b"\rx", b"x\r\n", b"", b"\r\n \r\n"]),
        ),
        max_size=4,
    )
)
def test_chunks_in_any_spelling_mean_the_same_a_byte_at_a_time_and_all_at_once(
    chunks: list[tuple[bytes, bytes, bytes, bytes]],
) -> None:
    body = b"".join(
        b"%b%X%b\r\n%b%b" % (zeros, len(content), extension, content, end)
        for zeros, extension, content, end in chunks
    )

    def outcome(parts: list[bytes]) -> object:
        try:
            content, decoder = decode(*parts)
        except ProtocolViolation:
            return "violation"
        return content, decoder.done, decoder.rest

    message = b"1\r\nx\r\n" + body + b"0\r\n\r\n"
    assert outcome([message]) == outcome([message[index : index + 1] for index in range(len(message))])


@pytest.mark.parametrize("cut", [0, 5, 1000, 5000])
def test_a_long_trailer_line_is_read_however_it_is_cut(cut: int) -> None:
    raw = b"0\r\nX-Long: " + b"y" * 6000 + b"\r\n\r\n"
    decoder = ChunkedDecoder()
    assert decoder.feed(raw[: len(raw) - cut]) + decoder.feed(raw[len(raw) - cut :]) == b""
    assert (decoder.done, [field.name for field in decoder.trailers]) == (True, [b"x-long"])


@pytest.mark.parametrize("raw", [b"1" * 5000, b"0\r\nX-Long: " + b"y" * 17_000])
def test_a_line_that_does_not_end_is_not_kept(raw: bytes) -> None:
    with pytest.raises(ProtocolViolation, match="too long"):
        ChunkedDecoder().feed(raw)
