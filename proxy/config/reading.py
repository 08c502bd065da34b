"""A configuration that is read in a process of its own, so that what validates it takes no memory here.

pydantic and what it brings would stay in the serving process for its whole life. Both ends of the
conversation are here. What is asked for goes through the child's standard input, and the settings, with
their secrets, come through its standard output; nothing is in a file, in an argument, or in the
environment beyond what was there. Its standard input stays open, and the child ends when that does: when
it isn't waited for any longer, whatever we die of.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, Self

from proxy.errors import ConfigError
from proxy.process import harden, ignore_hangup

if TYPE_CHECKING:
    from proxy.config.settings import Settings

LIMIT_S = 300.0
"""For all of it: a secret command takes up to 10 s, and there may be many."""
_LEAVE_S = 3.0
"""For a child that isn't wanted any longer to end its secret command and itself."""
# With -P and our search path it has the modules that we have, and none of the working directory.
_CHILD = """
import gc, pickle, sys
gc.disable()
sys.path[:] = pickle.load(sys.stdin.buffer)
from proxy.config.reading import answer
answer()
"""


def read(config_file: Path | None, overrides: Mapping[str, Any]) -> Settings:
    """The settings, as `proxy.config.load.load` gives them. Blocks; raises ConfigError."""
    with Reading(config_file, overrides) as reading:
        return reading.settings()


class Reading:
    """A configuration on its way: begun when this is made, and given up where its context is left."""

    def __init__(self, config_file: Path | None, overrides: Mapping[str, Any]) -> None:
        self._asked = (config_file, overrides)
        self._begun_at = time.monotonic()
        self._child: subprocess.Popen[bytes] | None = None
        try:
            self._child = subprocess.Popen(  # noqa: S603 - this Python, with a fixed argument
                [sys.executable, "-P", "-c", _CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError:  # there are too many processes, say: we do it ourselves
            return
        with contextlib.suppress(OSError):  # it has died, which shows when its answer is read
            _stream(self._child.stdin).write(pickle.dumps(sys.path) + pickle.dumps(self._asked))
            _stream(self._child.stdin).flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._end(self._child)
            _stream(self._child.stdout).close()

    def settings(self) -> Settings:
        """Wait for the settings. Raises ConfigError."""
        if self._child is None:
            return _load(self._asked)
        watchdog = threading.Timer(LIMIT_S, self._end, (self._child,))
        watchdog.daemon = True
        watchdog.start()
        try:
            content = _stream(self._child.stdout).read()
        finally:
            watchdog.cancel()
        from proxy.config.settings import Settings  # noqa: PLC0415 - later than the start of the child

        found = _unpickled(content)
        if isinstance(found, Settings):
            return found
        raise ConfigError(*(found if isinstance(found, tuple) else (self._fault(self._child),)))

    def _fault(self, child: subprocess.Popen[bytes]) -> str:
        if time.monotonic() - self._begun_at >= LIMIT_S:
            return f"the configuration: reading it took more than {LIMIT_S:g} s; look after its files' disks"
        self._end(child)
        return (
            "the configuration: the process that reads it ended without an answer "
            f"(exit code {child.returncode}); csq-proxy check shows why"
        )

    @staticmethod
    def _end(child: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(OSError):
            _stream(child.stdin).close()
        try:
            child.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel, on a dead mount
                child.wait(_LEAVE_S)


def _stream(pipe: Any) -> BinaryIO:
    """A pipe that was asked for, and so is there."""
    stream: BinaryIO = pipe
    return stream


def _unpickled(content: bytes) -> object:
    try:
        return pickle.loads(content)  # noqa: S301 - our own child's, from a pipe that nobody else has
    except Exception:  # noqa: BLE001 - the kinds are many, and None says the same of all
        return None


def _load(asked: tuple[Path | None, Mapping[str, Any]]) -> Settings:
    from proxy.config.load import load  # noqa: PLC0415 - takes more memory than the rest of the proxy

    return load(*asked)


# In the child


def answer() -> NoReturn:
    """Be the child: take what is asked for, print the settings or the faults, end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends a secret command, too
    ignore_hangup()  # it asks our parent to reload, and may be sent to its whole group
    harden()
    asked = pickle.load(sys.stdin.buffer)  # noqa: S301 - our parent's
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        found: Settings | tuple[str, ...] = _load(asked)
    except ConfigError as error:
        found = error.faults
    sys.stdout.buffer.write(_pickled(found))
    sys.stdout.flush()
    os._exit(0)  # our parent is waiting, and there is nothing to tidy up


def _leave_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _pickled(found: object) -> bytes:
    """Secrets included, which nobody else's pickles are."""
    from proxy.secret import Secret  # noqa: PLC0415

    content = io.BytesIO()
    pickler = pickle.Pickler(content)
    pickler.dispatch_table = {
        Secret: lambda secret: (Secret, (secret.get_secret_value(),)),
        MappingProxyType: lambda mapping: (_read_only, (dict(mapping),)),
    }
    pickler.dump(found)
    return content.getvalue()


def _read_only(mapping: dict[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(mapping)
