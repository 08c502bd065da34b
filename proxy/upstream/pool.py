"""The pools of connections to the clouds, one for each origin.

Hides keep-alive, the idle timeout, and how many connections are opened ahead of requests. Must not know
leases, projects, or the content of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Final

from proxy.errors import ConnectFailed
from proxy.origin import Origin
from proxy.process import STALLED_S
from proxy.upstream.connection import CloudConnection, Owner
from proxy.upstream.dial import Dialer

READ_BYTES: Final = 256 * 1024
"""Bytes that are read of a connection at once, at most."""
KEEP_ALIVE_S = 50.0
"""An idle connection is closed after this time: less than the 60 s of common load balancers."""
SURE_REUSE_S: Final = 5.0
"""The cloud is unlikely to be closing a connection that is idle for less than this time: it can carry a
request that can't be sent twice."""
SWEEP_S = 1.0
"""The time between two looks at all connections, or less for short time-outs."""
WARM_S = 3600.0
"""For this time after a lease arrived, a connection to its origin is held ready; leases come more often."""
COLD_S = (3.5, 30.0)
"""The least time between two looks at which connections are opened ahead to an origin: after a success, and
after a failure.

With one sweep a second, 3.5 s means every fourth sweep: soon enough for clouds that close an idle
connection after 5 s, as many servers do.
"""
FRESH = 0.75
"""The successor of a connection is opened after this share of the time that the connection can be idle."""
AT_ONCE_S = 2.0
"""Connections that were used within this time count as used at once; two sweeps are less far apart."""
RECENT_S = 600.0
"""For this time after several connections were used at once, as many are held ready; later only one is."""
MOST_READY: Final = 10
"""The most connections that are held ready: as many as Contentsquare lets a project use at once."""


class Pool(Owner):
    """Connections to one origin: idle ones, the latest used first, and busy ones."""

    def __init__(
        self, origin: Origin, dialer: Dialer, on_idle_lost: Callable[[], None] = lambda: None
    ) -> None:
        self.origin = origin
        self.loop = asyncio.get_running_loop()
        self.buffer = memoryview(bytearray(READ_BYTES))
        self._dialer = dialer
        self._on_idle_lost = on_idle_lost
        self._idle: deque[CloudConnection] = deque()
        self._busy: set[CloudConnection] = set()
        self._connecting = 0
        self._closed = False
        self._lasts_s = KEEP_ALIVE_S  # or less, where the cloud closed an idle connection sooner
        self._at_once = 1
        self._at_once_until = 0.0

    def __repr__(self) -> str:
        return f"<Pool {self.origin} {len(self._idle)} idle, {len(self._busy)} busy>"

    def take_idle(self, max_idle_s: float = KEEP_ALIVE_S) -> CloudConnection | None:
        """An idle connection, busy from now on; None if none was used within ``max_idle_s`` seconds."""
        if not max_idle_s:
            return None
        now = self.loop.time()
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_usable():  # EOF, or an answer without a request
                connection.close()
                continue
            if connection.last_activity >= now - max_idle_s:
                connection.last_activity = now
                self._busy.add(connection)
                return connection
            self._idle.append(connection)
            break
        return None

    async def connect(self) -> CloudConnection:
        """A new connection, busy from now on. Raises ConnectFailed."""
        connection = CloudConnection(self)
        self._connecting += 1
        try:
            await self._dialer.dial(self.origin, connection)
        finally:
            self._connecting -= 1
        connection.last_activity = self.loop.time()
        self._busy.add(connection)
        return connection

    def give_back(self, connection: CloudConnection) -> None:
        """The connection can carry an exchange, or another one."""
        self._busy.discard(connection)
        if self._closed:
            connection.close()
        else:
            self._idle.append(connection)

    def forget(self, connection: CloudConnection) -> None:
        """The connection is closed."""
        self._busy.discard(connection)
        if self._idle and connection in self._idle:
            self._idle.remove(connection)
            idle_s = self.loop.time() - connection.last_activity
            if idle_s >= COLD_S[0]:  # below that, no successor could be opened before the cloud closes it
                self._lasts_s = idle_s
            self._on_idle_lost()

    def sweep(self, idle_timeout_s: float) -> None:
        """Close idle connections that are too old or lost; fail exchanges whose way died or that are silent.

        ``idle_timeout_s`` is how long an exchange may be silent.
        """
        for connection in tuple(self._busy):
            connection.fail_if_silent(idle_timeout_s)
        oldest = self.loop.time() - KEEP_ALIVE_S
        while self._idle and self._idle[0].last_activity < oldest:
            self._idle.popleft().close()
            self._lasts_s = KEEP_ALIVE_S
        for connection in tuple(self._idle):
            if connection.is_lost():
                self._idle.remove(connection)  # first, for this end says nothing about the cloud's patience
                connection.close()
        self._note_use()

    def lacking(self) -> int:
        """How many connections fewer are ready than were used at once lately.

        A connection that will soon be too old doesn't count, so that its successor is opened in time.
        """
        oldest = self.loop.time() - FRESH * self._lasts_s
        ready = sum(1 for connection in self._idle if connection.last_activity > oldest)
        return max(0, self._at_once - len(self._busy) - self._connecting - ready)

    def _note_use(self) -> None:
        now = self.loop.time()
        lately = (one for one in self._idle if one.exchanges and one.last_activity >= now - AT_ONCE_S)
        used = min(max(1, len(self._busy) + sum(1 for _ in lately)), MOST_READY)
        if used >= self._at_once or self._at_once_until < now:
            self._at_once, self._at_once_until = used, now + RECENT_S

    def close(self) -> None:
        """Close idle connections now, and busy ones when their exchange ends."""
        self._closed = True
        self.drop_idle()

    def drop_idle(self) -> None:
        """Close the idle connections; busy ones go on."""
        while self._idle:
            self._idle.pop().close()

    @property
    def is_unused(self) -> bool:
        """Whether the pool has no connection and opens none."""
        return not (self._idle or self._busy or self._connecting)


class Upstreams:
    """The pools, one per origin. `run` watches the time-outs, and opens connections ahead to warm origins.

    ``clock_jump_s`` gives the seconds that the machine slept since the last call, 0.0 if it didn't.
    """

    def __init__(
        self, dialer: Dialer, *, idle_timeout_s: float, clock_jump_s: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._dialer = dialer
        self._idle_timeout_s = idle_timeout_s
        self._clock_jump_s = clock_jump_s
        self._pools: dict[Origin, Pool] = {}
        self._warm_until: dict[Origin, float] = {}
        self._cold_until: dict[Origin, float] = {}
        self._woken = asyncio.Event()

    def pool(self, origin: Origin) -> Pool:
        """The pool of an origin."""
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = Pool(origin, self._dialer, self._woken.set)
        return pool

    def warm(self, origin: Origin) -> None:
        """A lease for this origin has arrived: hold connections ready, to spare requests DNS, TCP and TLS."""
        self._warm_until[origin] = asyncio.get_running_loop().time() + WARM_S
        self._woken.set()

    async def run(self) -> None:
        """Watch the time-outs until cancelled."""
        interval_s = min(SWEEP_S, self._idle_timeout_s / 4)
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            while True:
                due_at = loop.time() + interval_s
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(interval_s):
                        await self._woken.wait()
                self._woken.clear()
                if loop.time() - due_at > STALLED_S:  # the answers that came meanwhile are read first
                    continue
                self._sweep()
                for origin in self._lacking():
                    group.create_task(self._open_ahead(origin))

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        self._warm_until = {origin: until for origin, until in self._warm_until.items() if until >= now}
        has_slept = self._clock_jump_s() > 0
        for origin, pool in tuple(self._pools.items()):
            if has_slept:
                pool.drop_idle()
            pool.sweep(self._idle_timeout_s)
            if pool.is_unused and origin not in self._warm_until:
                del self._pools[origin]

    def _lacking(self) -> list[Origin]:
        """The warm origins that need more connections now, each as often as it needs one."""
        now = asyncio.get_running_loop().time()
        return [
            origin
            for origin in self._warm_until
            if self._cold_until.get(origin, 0.0) <= now
            for _ in range(self.pool(origin).lacking())
        ]

    async def _open_ahead(self, origin: Origin) -> None:
        loop, pool = asyncio.get_running_loop(), self.pool(origin)
        pause_s, longer_s = COLD_S
        self._cold_until[origin] = loop.time() + pause_s
        try:
            pool.give_back(await pool.connect())
        except ConnectFailed:  # if it still fails then, the next request reports it
            self._cold_until[origin] = loop.time() + longer_s

    def close(self) -> None:
        """Close all idle connections."""
        for pool in self._pools.values():
            pool.close()
