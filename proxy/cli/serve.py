"""How ``serve`` starts: in an order that is quick, and without what would stay in memory for nothing.

While a process of its own reads the configuration (`config.reading`), what serves is imported here. Typer,
which has pydantic in tow, is passed by as well where the command is written the usual way.
"""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from proxy.config.reading import Reading, read
from proxy.process import harden, ignore_hangup, interruptibly, raise_descriptor_limit
from proxy.server.passed_sockets import take


class Options(NamedTuple):
    """Those of ``serve``; None is not given."""

    config: Path | None = None
    host: str | None = None
    port: int | None = None


def usual(arguments: Sequence[str]) -> Options | None:
    """The options in a command line ``serve ...``; None for another or a faulty one: those are for Typer."""
    if arguments[:1] != ["serve"]:
        return None
    found: dict[str, str] = {}
    words = iter(arguments[1:])
    for word in words:
        name, equals, value = word.partition("=")
        found[name] = value if equals else next(words, "")
    known = all(name in ("--config", "--host", "--port") for name in found)
    if not known or not all(value and not value.startswith("-") for value in found.values()):
        return None
    config, host, port = (found.get(f"--{name}") for name in Options._fields)
    if port is not None and not (re.fullmatch("[0-9]{1,5}", port) and int(port) <= 65_535):
        return None
    return Options(Path(config) if config else None, host, int(port) if port else None)


def serve(options: Options) -> None:
    """Read the configuration and serve until stopped. Raises ConfigError, ListenError, SystemExit."""
    ignore_hangup()
    passed = take()  # before there are children, which must not inherit them
    harden()  # before there is a secret to protect
    raise_descriptor_limit()
    flags = {"server": {"host": options.host, "port": options.port}}
    with Reading(options.config, flags) as reading:
        with _no_garbage(), _no_certificates():
            from proxy.app import run as serving  # noqa: PLC0415 - meanwhile, for it takes as long
            from proxy.cli.summary import announce  # noqa: PLC0415
        with interruptibly():
            settings = reading.settings()
    serving.run(
        lambda: serving.serve(
            settings, announce=announce, reload=lambda file: read(file, flags), passed=passed
        )
    )


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Modules are none: to look for some takes a tenth of their time now, and some of every look later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _no_certificates() -> Iterator[None]:
    """Aiohttp makes a TLS context as it is imported, of which we use none: 40 ms and 2 MiB of certificates.

    Ours is `upstream.tls.tls_context`. If aiohttp's were used after all, it would trust nobody.
    """
    import ssl  # noqa: PLC0415 - later than the start of the child

    load = ssl.SSLContext.load_default_certs
    ssl.SSLContext.load_default_certs = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        ssl.SSLContext.load_default_certs = load  # type: ignore[method-assign]
