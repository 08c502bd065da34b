"""Secrets that change where no change can be watched: in a password manager behind a command, say.

After a failure that may mean a wrong secret, and at a manual refresh, the source of the secret is asked
again. Hides the pauses between two questions, and that all projects with the same command share one run of
it. Knows nothing of tokens or of the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import shlex
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TypeVar

from proxy.blocking import in_thread
from proxy.config.secrets import AT_ONCE, SecretUnusable, Source
from proxy.config.settings import Credentials
from proxy.errors import TokenFetchError
from proxy.logs import redactor
from proxy.secret import Secret
from proxy.tokens import SYSTEM_CLOCK, Clock
from proxy.tokens.standby import may_be_the_credentials

T = TypeVar("T")

PAUSE_S = (2.0, 300.0)
"""From one question to the next: the first pause, then twice as long each time, up to the last."""
MANUAL_PAUSE_S = 1.0
"""The least time between two questions that people ask for."""
ASK_TIMEOUT_S = 15.0
"""How long a token fetch waits for an answer: a command has 10 s, and others may be before it."""
REFRESH_WAIT_S = 2.0
"""How long a manual refresh waits for an answer before it fetches with the secret at hand."""
REDACTED_SECRETS = 3
"""For each source: the secret in use, and secrets before it, which an error may still quote."""


class _State:
    """The answers of one source. ``in_vain`` counts the questions since a token came with its secret.

    ``suspect`` tells that a failure since then may mean a wrong secret.
    """

    def __init__(self) -> None:
        self.latest: Secret | None = None
        self.asking: asyncio.Future[Secret] | None = None
        self.asked_at = self.next_at = -math.inf
        self.in_vain = 0
        self.suspect = False
        self.redacted: deque[str] = deque()


class Renewals:
    """The latest secrets of all sources; one for the process.

    ``on_event`` is called with ``secret_changed`` and ``secret_source_failed``; never with a secret.
    """

    def __init__(
        self,
        clock: Clock = SYSTEM_CLOCK,
        on_event: Callable[[str, Mapping[str, object]], None] = lambda *_: None,
    ) -> None:
        self._now = clock.monotonic
        self._on_event = on_event
        self._states: dict[Source, _State] = {}
        self._room = asyncio.Semaphore(AT_ONCE)

    def latest(self, pair: Credentials) -> Credentials:
        """The pair with the latest secret of its source: from the configuration, or from a later question."""
        state = self._state(pair)
        secret = None if state is None else state.latest
        if secret is None or secret.read_at <= pair.client_secret.read_at or secret == pair.client_secret:
            return pair
        return pair.model_copy(update={"client_secret": secret})

    def can_ask(self, pair: Credentials) -> bool:
        """Whether the secret has a source; a text in the configuration has none."""
        return isinstance(pair.client_secret.source, Source)

    def pause_s(self, pair: Credentials) -> float:
        """Seconds until `ask` may ask the source again."""
        state = self._state(pair)
        return 0.0 if state is None else max(0.0, state.next_at - self._now())

    def is_suspect(self, pair: Credentials) -> bool:
        """Whether the source was asked after a failure, and no token came with its secret since."""
        state = self._state(pair)
        return state is not None and state.suspect

    async def ask(self, pair: Credentials, *, manually: bool = False) -> Credentials:
        """Ask the source, or join a question under way; in a pause, ask nothing. Returns `latest`.

        A failure is an event, and the secret at hand stays. Takes at most `ASK_TIMEOUT_S`.
        """
        source = pair.client_secret.source
        if isinstance(source, Source):
            state = self._states.setdefault(source, _State())
            state.suspect = state.suspect or not manually
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ASK_TIMEOUT_S), self._room:
                    now = self._now()
                    due_at = min(state.next_at, state.asked_at + MANUAL_PAUSE_S if manually else math.inf)
                    if state.asking is None and now >= due_at:
                        self._begin(source, state, self.latest(pair).client_secret)
                    if state.asking is not None:
                        await asyncio.wait((state.asking,))
        return self.latest(pair)

    def succeeded(self, pair: Credentials) -> None:
        """A token came with this pair."""
        if (state := self._state(pair)) is not None:
            state.in_vain, state.suspect = 0, False

    def close(self) -> None:
        """End the questions under way, and redact the secrets no longer."""
        for state in self._states.values():
            if state.asking is not None:
                state.asking.cancel()
            for text in state.redacted:
                redactor.discard(text)
            state.redacted.clear()

    def _state(self, pair: Credentials) -> _State | None:
        source = pair.client_secret.source
        return self._states.get(source) if isinstance(source, Source) else None

    def _begin(self, source: Source, state: _State, known: Secret) -> None:
        state.asked_at = self._now()
        state.asking = in_thread(source.read)
        state.asking.add_done_callback(functools.partial(self._on_answer, source, state, known))

    def _on_answer(
        self, source: Source, state: _State, known: Secret, answer: asyncio.Future[Secret]
    ) -> None:
        first, last = PAUSE_S
        state.asking = None
        state.next_at = self._now() + min(last, math.ldexp(first, min(state.in_vain, 16)))
        state.in_vain += 1
        shown = str(source.file) if source.file else shlex.join(source.command[:1])
        if answer.cancelled():
            return
        if (error := answer.exception()) is not None:
            text = str(error) if isinstance(error, SecretUnusable) else type(error).__name__
            self._on_event("secret_source_failed", {"source": shown, "error": text})
            return
        secret = answer.result()
        if secret != known:
            text = secret.get_secret_value()
            redactor.add(text)  # before a request uses it
            state.redacted.append(text)
            if len(state.redacted) > REDACTED_SECRETS:
                redactor.discard(state.redacted.popleft())
            self._on_event("secret_changed", {"source": shown})
        state.latest = secret


class ProjectSecrets:
    """The use of `Renewals` by one project with these ``pairs`` of credentials.

    ``on_changed`` is called after a change of a secret that was noticed outside of `using_latest`.
    """

    def __init__(
        self,
        renewals: Renewals,
        pairs: Sequence[Credentials],
        *,
        clock: Clock,
        spawn: Callable[[Coroutine[object, object, None]], asyncio.Task[None]],
        on_changed: Callable[[], None],
    ) -> None:
        self.latest = renewals.latest
        self._renewals = renewals
        self._pairs = [pair for pair in pairs if renewals.can_ask(pair)]
        self._clock = clock
        self._spawn = spawn
        self._on_changed = on_changed
        self._asking: dict[int, asyncio.Task[None]] = {}  # by the place of the pair
        self._refreshing: asyncio.Task[None] | None = None

    async def using_latest(self, pair: Credentials, call: Callable[[Credentials], Awaitable[T]]) -> T:
        """The result of ``call`` with the latest secret of the pair.

        After a failure that may be the secret's, its source is asked, and a changed secret is used at once.
        An unchanged one is asked for again later. Raises `TokenFetchError`.
        """
        used = self.latest(pair)
        try:
            result = await call(used)
        except TokenFetchError as caught:
            error = caught
        else:
            self._renewals.succeeded(pair)
            return result
        if pair not in self._pairs or not may_be_the_credentials(error):
            raise error
        newest = await self._renewals.ask(pair)
        self._ask_until_changed_or_good(pair)
        if newest.client_secret == used.client_secret:
            raise error
        result = await call(newest)
        self._renewals.succeeded(pair)
        return result

    def refresh(self, fetch_all: Callable[[], None]) -> None:
        """Ask all sources, then call ``fetch_all``; and once more if a slow answer brings a change."""
        if not self._pairs or (self._refreshing is not None and not self._refreshing.done()):
            fetch_all()
        else:
            self._refreshing = self._spawn(self._refresh(fetch_all))

    def stop(self) -> None:
        """Ask no more."""
        for task in self._asking.values():
            task.cancel()

    def _ask_until_changed_or_good(self, pair: Credentials) -> None:
        place = self._pairs.index(pair)
        task = self._asking.get(place)
        if task is None or task.done():
            self._asking[place] = self._spawn(self._ask_repeatedly(pair))

    async def _ask_repeatedly(self, pair: Credentials) -> None:
        refused = self.latest(pair).client_secret
        while self._renewals.is_suspect(pair):
            await self._clock.sleep(max(0.01, self._renewals.pause_s(pair)))
            if self._renewals.is_suspect(pair) and (
                (await self._renewals.ask(pair)).client_secret != refused
            ):
                self._on_changed()
                return

    async def _refresh(self, fetch_all: Callable[[], None]) -> None:
        before = self._secrets()
        questions = [self._spawn(self._ask_manually(pair)) for pair in self._pairs]
        await asyncio.wait(questions, timeout=REFRESH_WAIT_S)
        for _ in range(2):
            if (now := self._secrets()) != before:
                self._on_changed()
            fetch_all()
            await asyncio.wait(questions)
            if self._secrets() == now:
                return
            before = now

    async def _ask_manually(self, pair: Credentials) -> None:
        await self._renewals.ask(pair, manually=True)

    def _secrets(self) -> list[Secret]:
        return [self.latest(pair).client_secret for pair in self._pairs]
