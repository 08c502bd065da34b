"""The requests that the proxy answers itself: below ``/-/``, OAuth's two paths, ``*``, ``/``, icons."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable

from proxy.admin import admin
from proxy.admin.admin import Admin
from proxy.contentsquare import oauth_path
from proxy.errors import MethodRefused
from proxy.gateway import policy
from proxy.gateway.callers import Caller
from proxy.gateway.entrance import take_place
from proxy.gateway.exports.exports import PREFIX, Exports
from proxy.gateway.generation import Generation
from proxy.gateway.oauth import LocalOAuth
from proxy.http1 import RequestHead
from proxy.server.answer import write_answer, write_json
from proxy.server.request import Request

_ICON = b"/favicon.ico"
"""A browser asks for the icon beside any page that it shows, also beside a refusal."""
_OWN_SECOND = frozenset((b"", b"-", b"?"))
"""The second bytes of ``*``, ``/``, ``/?a`` and ``/-/a``."""
MOST_UNDER_WAY = 4
"""Answers about the proxy's state that one caller may take at once; callers without a key count as one."""
_BUSY = (
    f"{MOST_UNDER_WAY} answers about the proxy are under way to callers with the same key, or without a key,"
    " and are not read; read them, or close their connections."
)
_ALWAYS = (b"/-/healthy", b"/-/ready")
"""Short answers for those who watch over the process: they never wait for others."""


def asks_for_page(head: RequestHead, target: bytes) -> bool:
    """Whether a browser opens ``/``: such a request accepts HTML, which no answer of Contentsquare's is."""
    if target != b"/" and not target.startswith(b"/?"):
        return False
    accepted = b",".join(head.fields.values(b"accept")).lower()
    return b"text/html" in accepted and head.method in (b"GET", b"HEAD")


def may_be_own(target: bytes) -> bool:
    """Whether `asks_for_page`, `is_own` or `oauth_path` may find the target, perhaps without a key in it."""
    return (
        target[1:2] in _OWN_SECOND
        or target[: len(_ICON)] == _ICON
        or target.partition(b"oauth")[1] != b""  # `find` takes twice as long
    )


def is_own(target: bytes) -> bool:
    """Whether the proxy answers requests for this target; `oauth_path` finds its other targets."""
    return target.startswith(admin.PREFIX) or target in (b"/-", b"*", _ICON)


def is_for_exports(target: bytes) -> bool:
    """Whether an export's files are asked for: its connection needs a known caller's place."""
    return target.startswith(PREFIX) and oauth_path(target) is None


class OwnPaths:
    """Answers these requests. ``quit_`` ends the process soon; None where a caller can't ask for that."""

    def __init__(
        self, pages: Admin, files: Exports, oauth: LocalOAuth, quit_: Callable[[], None] | None
    ) -> None:
        self._pages = pages
        self._files = files
        self._oauth = oauth
        self._quit = quit_
        self._rooms: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MOST_UNDER_WAY))

    async def answer(
        self, request: Request, generation: Generation, caller: Caller | None, target: bytes
    ) -> bool:
        """Answer a request; whether the connection can be kept. Raises ProxyError."""
        if asks_for_page(request.head, target):
            # Without a key: one that is typed for ``/`` would go out with every later call (RFC 7617, 2.2).
            return write_answer(request, 303, b"", fields=((b"Location", admin.PAGE), (b"Vary", b"Accept")))
        if oauth_path(target) is not None:
            return await self._oauth.answer(request, target)
        if is_for_exports(target):
            return await self._files.answer(request, generation, caller, target)
        request.connection.admit(whole=caller is None)  # a probe is answered without a place, too
        if target in (b"*", _ICON):
            return write_answer(request, 204, b"")
        if target.partition(b"?")[0] == admin.QUIT and generation.settings.server.allow_quit and self._quit:
            policy.check_quit(caller)
            if request.head.method != b"POST":
                raise MethodRefused("Use POST here.", fields=((b"Allow", b"POST"),))
            self._quit()
            return write_json(request, 202, {"stopping": True})
        if target.partition(b"?")[0] in _ALWAYS:
            return await self._page(request, caller, target)
        room = self._rooms["" if caller is None else caller.name]
        await take_place(room, _BUSY)
        try:
            return await self._page(request, caller, target)
        finally:
            room.release()

    async def _page(self, request: Request, caller: Caller | None, target: bytes) -> bool:
        own = caller.name if caller is not None and caller.is_limited else None
        if caller is None or caller.projects is None:
            return await self._pages.answer(request, target, own=own)
        return await self._pages.answer(request, target, caller.may_use, own=own)
