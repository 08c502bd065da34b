"""How one request takes part in its project's shared answers: it is given one, follows one, or leads.

Stands between the gateway and an exchange: the gateway calls `try_now` and `run` in place of
`Exchange.try_now` and `tries.run`, and they call those where the request is forwarded.

A request that leads is forwarded as usual, and its answer is recorded as it comes. An identical request that
comes meanwhile follows: it holds no slot, and gets the whole answer, or is let go (see `recording`). Two
requests are identical if caller, API, target and every field that goes upstream are the same, because an
answer may vary with any of them. A request that may change data ends the sharing of all earlier answers.

A stored answer is also one to a HEAD, and to a GET with Range: the caller gets the part (RFC 9110, section
14.2). Where nothing is stored, both are forwarded alone; an answer of 200 to the latter is whole, and stored.

`cache_rules` decides about HTTP's rules. Must not know configuration, or what a caller may do: the
gateway has checked that before.
Sources: RFC 9111, sections 3, 4 and 5.2; RFC 9211.
"""

from __future__ import annotations

import asyncio

from proxy.contentsquare import may_be_shared, may_be_stored
from proxy.gateway import tries
from proxy.gateway.exchange import Exchange
from proxy.gateway.rewrite import end_of_head, part_head
from proxy.gateway.sharing.cache_rules import Terms, key_of, terms_of
from proxy.gateway.sharing.recording import Change, Note, Recording, cache_status
from proxy.http1.ranges import NotSatisfiable, asked_range
from proxy.projects.shared_answers import Key, RunningAnswer, SharedAnswers
from proxy.projects.stored import Answer
from proxy.server.request import Request

_READS = frozenset((b"GET", b"HEAD"))
PIECE_BYTES = 64 * 1024
"""A shared answer is written in pieces of this size."""


def try_now(exchange: Exchange, answers: SharedAnswers) -> bool:
    """Answer the request from the store, or as `Exchange.try_now` does; False: `run` must answer it."""
    found = _find(exchange, answers)
    if found is None:
        return exchange.try_now()
    request = exchange.request
    connection = request.connection
    if isinstance(found, RunningAnswer) or len(found.content) > PIECE_BYTES:
        return False
    if connection.writing_paused or connection.unanswered > 1:
        return False  # each answer begins the next request: many in a row would be a deep stack
    keep, _ = _write_start(request, found, "hit")
    exchange.finish(keep=keep)
    return True


async def run(exchange: Exchange, answers: SharedAnswers) -> bool:
    """Answer the request by a shared answer, or as `tries.run` does; returns and raises the same."""
    request = exchange.request
    found = _find(exchange, answers) if exchange.recorder is None else None
    while isinstance(found, RunningAnswer):
        answer = await found.follow(request)
        if answer is not None and (answer.age_s or 0.0) <= terms_of(request.head.fields).max_age_s:
            return await _write(request, answer, "collapsed")
        if found.is_vacant:
            found = _find(exchange, answers, then=b"; collapsed=?0")
        else:
            exchange.recorder, found = Note(found.why + b"; collapsed=?0"), None
    return await (tries.run(exchange) if found is None else _write(request, found, "hit"))


def _find(exchange: Exchange, answers: SharedAnswers, *, then: bytes = b"") -> Answer | RunningAnswer | None:
    """The answer for this request, stored or still on its way.

    None: the request has to be forwarded, and its recorder is set. In Cache-Status, ``then`` follows the
    reason.
    """
    request, target = exchange.request, exchange.target
    fields_key, method = key_of(request.head.section), request.head.method
    reads = method in _READS and not exchange.changes
    if not reads or fields_key is None or not may_be_shared(target):
        exchange.recorder = _unshared(exchange, answers)
        return None
    terms = terms_of(request.head.fields)
    key = (request.facts.caller, exchange.api, target, fields_key)
    stored, why = _stored(answers, key, terms)
    if stored is not None:
        return stored
    keep_s = answers.keep_s
    if keep_s and (terms.no_store or not may_be_stored(target)):
        keep_s = 0.0
    if method == b"HEAD" or (terms.is_of_part and not keep_s):
        exchange.recorder = _unshared(exchange, answers)
        return None
    is_alone = terms.is_alone or terms.is_of_part
    if not is_alone and (running := answers.running(key)) is not None:
        return running
    running = answers.lead(key, request, why + then, alone=is_alone)
    exchange.recorder = Recording(request, running, keep_s=keep_s)
    return None


def _unshared(exchange: Exchange, answers: SharedAnswers) -> Note:
    """The recorder of a request whose answer can't be shared.

    A request that may change data ends the sharing of other answers, both as it begins and as it ends.
    """
    members = b"fwd=bypass" if exchange.request.head.method == b"GET" else b"fwd=method"
    if not exchange.changes:
        return Note(members)
    answers.forget()
    return Change(members, answers.forget)


def _stored(answers: SharedAnswers, key: Key, terms: Terms) -> tuple[Answer | None, bytes]:
    """A stored answer on these terms; without one, why the request is forwarded (RFC 9211, section 2.2)."""
    stored = answers.shelf.get(key)
    if stored is None:
        return None, b"fwd=miss"
    now = _now()
    if not stored.is_fresh_at(now):
        return None, b"fwd=stale"
    if terms.is_alone or stored.age_at(now) > terms.max_age_s:
        return None, b"fwd=request"
    answers.shelf.used(stored)
    return stored, b""


def _now() -> float:
    return asyncio.get_running_loop().time()


def _write_start(request: Request, answer: Answer, shared: str) -> tuple[bool, memoryview]:
    """Write the head and the first piece of a shared answer.

    Returns whether the connection can be kept, and the rest of the content.
    """
    part, head = _part(request, answer), answer.head
    request.facts.shared, request.status, request.head_sent = shared, 200, True
    if part is not None:
        request.status, head = 206, part_head(head, part, len(answer.content))
    now, keep = _now(), request.may_keep
    lines = [head]
    if shared == "hit":
        lines.append(cache_status(b"hit; ttl=%d\r\n" % (answer.fresh_until - now)))
    else:
        lines.append(cache_status(b"fwd=miss; collapsed\r\n"))
    if shared == "hit" or answer.age_s is not None:  # RFC 9111, section 5.1
        lines.append(b"Age: %d\r\n" % answer.age_at(now))
    content = memoryview(answer.content)
    if part is not None:
        content = content[part.start : part.stop]
    if request.head.method == b"HEAD":
        content = content[:0]
    request.answer_bytes = min(len(content), PIECE_BYTES)
    lines += (end_of_head(keep=keep), bytes(content[:PIECE_BYTES]))
    request.write(b"".join(lines))
    return keep, content[PIECE_BYTES:]


def _part(request: Request, answer: Answer) -> range | None:
    """The part of the content that a GET asks for; None for all of it, and for a range without any of it."""
    if request.head.method != b"GET":
        return None
    try:
        return asked_range(request.head.fields, len(answer.content), b"", None)
    except NotSatisfiable:
        return None  # a server may ignore Range (RFC 9110, section 14.2)


async def _write(request: Request, answer: Answer, shared: str) -> bool:
    """Write a shared answer, as fast as the caller takes it; whether the connection can be kept."""
    keep, content = _write_start(request, answer, shared)
    connection = request.connection
    for start in range(0, len(content), PIECE_BYTES):
        await connection.drained()
        if request.transport.is_closing():
            return False
        piece = content[start : start + PIECE_BYTES]
        request.transport.write(piece)
        request.answer_bytes += len(piece)
    return keep
