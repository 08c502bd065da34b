"""One project's sharing: one answer for all who ask the same at once, and a stored one for a while.

Stands between the application and the `Forwarder`. Who asks first leads: its request is forwarded as
ever, and its answer recorded as it comes. Who asks the same meanwhile follows: it holds no slot, and gets
the answer once that is whole, or is let go (see `recording`). What is the same: caller, API, target,
and every field that goes upstream, so that an answer may vary with any of them. Hides all of that, and that
a call that may change data makes an end of what is stored and of what could still be followed. What HTTP
allows is `cache_rules`'s to say. Must not know configuration, or who may do what: who gets here may.
Sources: RFC 9111, sections 3, 4 and 5.2; RFC 9211.
"""

from __future__ import annotations

import asyncio

from proxy.contentsquare import changes_data, may_be_shared, may_be_stored
from proxy.errors import NotStored
from proxy.gateway.exchange import Exchange, P
from proxy.gateway.rewrite import end_of_head
from proxy.gateway.sharing.cache_rules import Terms, terms_of
from proxy.gateway.sharing.recording import Change, Key, Note, Recording, cache_status
from proxy.projects.stored import Answer, Shelf
from proxy.server.request import Request

PIECE_BYTES = 64 * 1024
"""Of a shared answer, written at once."""


class Sharing:
    """Shares one project's answers. ``keep_s``: how long one may be stored, in seconds; 0: not at all.

    Stands in for `Exchange.begin` and `Exchange.run`, and calls them for what does go forward.
    """

    def __init__(self, shelf: Shelf, keep_s: float) -> None:
        self.shelf = shelf
        self._keep_s = keep_s
        self._running: dict[Key, Recording] = {}
        self._epoch = 0

    def forget(self) -> None:
        """What was stored, and what is on its way, is good for no request that comes from now on."""
        self._epoch += 1
        self._running.clear()
        self.shelf.clear()

    def begin(self, exchange: Exchange[P]) -> bool:
        """As `Exchange.begin`. Raises NotStored."""
        found = self._find(exchange)
        if found is None:
            return exchange.begin()
        request = exchange.request
        connection = request.connection
        if isinstance(found, Recording) or len(found.content) > PIECE_BYTES:
            return False
        if connection.writing_paused or connection.unanswered > 1:
            return False  # answered one within the other, a long row of requests would be a deep stack
        exchange.answered(keep=_write_start(request, found, "hit"))
        return True

    async def run(self, exchange: Exchange[P]) -> bool:
        """As `Exchange.run`; goes on from `begin`, too. Raises ProxyError."""
        request = exchange.request
        found = self._find(exchange) if request.recorder is None else None
        while isinstance(found, Recording):
            answer = await found.follow(request)
            if answer is not None and (answer.age_s or 0.0) <= terms_of(request.head.section).max_age_s:
                return await _write(request, answer, "collapsed")
            if found.is_vacant:
                found = self._find(exchange, then=b"; collapsed=?0")
            else:
                request.recorder, found = Note(found.why + b"; collapsed=?0"), None
        return await (exchange.run() if found is None else _write(request, found, "hit"))

    def ended(self, recording: Recording) -> None:
        """Nobody can follow it any more; its answer is stored where that may be."""
        key, answer = recording.key, recording.answer
        if self._running.get(key) is recording:
            del self._running[key]
        if answer is None or recording.epoch != self._epoch or not answer.is_fresh_at(_now()):
            return
        stored = self.shelf.get(key)
        if stored is None or stored.asked_at <= answer.asked_at:
            self.shelf.put(key, answer, len(key[2]) + len(key[3]))

    def _find(self, exchange: Exchange[P], *, then: bytes = b"") -> Answer | Recording | None:
        """What has the answer, stored or still to come; None: it goes forward, with its recorder set.

        ``then`` is what Cache-Status says of it besides why. Raises NotStored.
        """
        request, target = exchange.request, exchange.target
        terms = terms_of(request.head.section)
        if request.head.method != b"GET" or terms.key is None or not may_be_shared(target):
            request.recorder = self._apart(request.head.method, target, terms)
            return None
        caller = request.caller if isinstance(request.caller, str) else None
        key = (caller, exchange.api, target, terms.key)
        stored, why = self._look(key, terms)
        if stored is not None:
            return stored
        if not terms.is_alone and (running := self._running.get(key)) is not None:
            return running
        keep_s = self._keep_s
        if keep_s and (terms.no_store or not may_be_stored(target)):
            keep_s = 0.0
        recording = Recording(self, request, key, self._epoch, why + then, keep_s=keep_s)
        request.recorder = recording
        if not terms.is_alone:
            self._running[key] = recording
        return None

    def _apart(self, method: bytes, target: bytes, terms: Terms) -> Note:
        """For what can't be shared; what may change data ends what is, as it begins and as it ends."""
        members = b"fwd=bypass" if method == b"GET" else b"fwd=method"
        if not (terms.may_change_data or changes_data(method, target)):
            return Note(members)
        self.forget()
        return Change(members, self.forget)

    def _look(self, key: Key, terms: Terms) -> tuple[Answer | None, bytes]:
        """A stored answer on these terms; without one, why it goes forward (RFC 9211, section 2.2)."""
        stored, why = self.shelf.get(key), b"fwd=miss"
        if stored is not None:
            now = _now()
            if not stored.is_fresh_at(now):
                why = b"fwd=stale"
            elif terms.is_alone or not _is_fit(stored, terms, now):
                why = b"fwd=request"
            else:
                self.shelf.used(stored)
                return stored, b""
        if terms.only_if_cached:
            raise NotStored(
                "Nothing fresh is stored for this request; leave only-if-cached out.",
                fields=((b"Cache-Status", b"csq-proxy; detail=only-if-cached"),),
            )
        return None, why


def _now() -> float:
    return asyncio.get_running_loop().time()


def _is_fit(stored: Answer, terms: Terms, now: float) -> bool:
    return stored.age_at(now) <= terms.max_age_s and now + terms.min_fresh_s < stored.fresh_until


def _write_start(request: Request, answer: Answer, shared: str) -> bool:
    """Write the head and the first piece of another request's answer; whether it says to keep."""
    request.shared, request.status, request.head_sent = shared, 200, True
    now, keep = _now(), request.may_keep
    lines = [answer.head]
    if shared == "hit":
        lines.append(cache_status(b"hit; ttl=%d\r\n" % (answer.fresh_until - now)))
    else:
        lines.append(cache_status(b"fwd=miss; collapsed\r\n"))
    if shared == "hit" or answer.age_s is not None:  # RFC 9111, section 5.1
        lines.append(b"Age: %d\r\n" % answer.age_at(now))
    lines += (end_of_head(request.head, keep=keep), answer.content[:PIECE_BYTES])
    request.write(b"".join(lines))
    request.answer_bytes = min(len(answer.content), PIECE_BYTES)
    return keep


async def _write(request: Request, answer: Answer, shared: str) -> bool:
    """Write another request's answer, as fast as the caller takes it; whether the connection can be kept."""
    keep = _write_start(request, answer, shared)
    connection, content = request.connection, memoryview(answer.content)
    for start in range(PIECE_BYTES, len(content), PIECE_BYTES):
        if connection.writing_paused:
            await connection.drained()
        if request.transport.is_closing():
            return False
        piece = content[start : start + PIECE_BYTES]
        request.transport.write(piece)
        request.answer_bytes += len(piece)
    return keep
