"""Logging: structlog set up once, for our own events and for the standard library's records.

Hides structlog, the choice of rendering, and two promises: no line holds a registered secret
(`redactor`, by value, on the line as it is about to be written), and no failing stream stops
the program (`dropped_lines` counts what was lost). Knows nothing of what is logged.

Events are past-tense snake_case, with values as keys::

    log = get_logger(__name__)
    log.info("token_fetched", project="shop", expires_in=3600)
"""

from __future__ import annotations

import base64
import enum
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import quote, quote_plus

# structlog loads rich wherever it is installed, for tracebacks that we don't draw with it: that would
# cost 3 MiB and a tenth of the start-up.
_hidden = [name for name in ("rich", "rich.console", "rich.traceback") if name not in sys.modules]
sys.modules.update(dict.fromkeys(_hidden))  # type: ignore[arg-type]  # None makes an import fail

import structlog  # noqa: E402
from structlog.stdlib import ProcessorFormatter, add_logger_name  # noqa: E402

for _name in _hidden:
    del sys.modules[_name]

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

REDACTED = "[redacted]"
SHORTEST_SECRET = 6
"""Shorter values aren't redacted: they would blank out ordinary words."""

_KEY_LENGTH = 16
_LONG_RUN = re.compile(rf"[A-Za-z0-9_-]{{{_KEY_LENGTH},}}")
_LONG_KEYS = ("exception", "stack")
_FIRST_KEYS = ("timestamp", "level", "logger", "event")


class Redactor:
    """Replaces registered secrets in text, also where they are URL-quoted, escaped or in base64.

    A secret that was added twice has to be discarded twice: an old and a new configuration may
    hold the same one. Thousands of them cost a line hardly more than one: each form is found by a
    run of characters within it, where it has a long one, and searched for only where it hasn't.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._added: dict[str, int] = {}
        self._forms_of: dict[str, frozenset[str]] = {}
        self._by_key: dict[str, tuple[str, ...]] = {}  # forms with a long run, by the last characters of it
        self._keyless: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Redactor secrets={len(self._added)}>"

    def __call__(self, _logger: WrappedLogger, _method: str, line: Any) -> str:
        """As structlog's last processor, after the one that renders the line."""
        return self.redact(line)

    def add(self, secret: str, *, is_token: bool = False) -> None:
        """Redacts a secret from now on; one shorter than `SHORTEST_SECRET` is ignored.

        ``is_token`` is for the many that nobody puts into Basic or a query: no base64 of them is kept.
        """
        if len(secret) < SHORTEST_SECRET:
            return
        with self._lock:
            count = self._added.get(secret, 0)
            self._added[secret] = count + 1
            if not count:
                forms = frozenset(_forms(secret, base64_too=not is_token))
                self._forms_of[secret] = forms
                for form in forms:
                    self._enter(form)

    def discard(self, secret: str) -> None:
        """Takes back one `add`; an unknown secret is ignored."""
        with self._lock:
            count = self._added.pop(secret, 0)
            if count > 1:
                self._added[secret] = count - 1
            elif count:
                for form in self._forms_of.pop(secret):
                    self._strike(form)

    def redact(self, text: str) -> str:
        """The text with every registered secret replaced."""
        found = [form for form in self._keyless if form in text]
        if self._by_key:
            for run in _LONG_RUN.finditer(text):
                for end in range(run.start() + _KEY_LENGTH, run.end() + 1):
                    found += self._by_key.get(text[end - _KEY_LENGTH : end], ())
        # Longest first, so that a secret within another one doesn't leave the rest of it standing.
        for form in sorted(found, key=len, reverse=True) if found else ():
            text = text.replace(form, REDACTED)
        return text

    # Two secrets may share a form, so each is entered and struck out as often as it occurs.

    def _enter(self, form: str) -> None:
        key = _key_of(form)
        if key is None:
            self._keyless = (*self._keyless, form)
        else:
            self._by_key[key] = (*self._by_key.get(key, ()), form)

    def _strike(self, form: str) -> None:
        key = _key_of(form)
        if key is None:
            self._keyless = _without(self._keyless, form)
        elif left := _without(self._by_key[key], form):
            self._by_key[key] = left
        else:
            del self._by_key[key]


def _key_of(form: str) -> str | None:
    """The end of the last long run: a token's signature, where its beginning is like every other's."""
    runs = _LONG_RUN.findall(form)
    return runs[-1][-_KEY_LENGTH:] if runs else None


def _without(forms: tuple[str, ...], form: str) -> tuple[str, ...]:
    place = forms.index(form)
    return forms[:place] + forms[place + 1 :]


def _forms(secret: str, *, base64_too: bool) -> Iterator[str]:
    """The ways in which a secret may stand in a line."""
    escaped = json.dumps(secret, ensure_ascii=False)
    yield secret
    yield from (escaped[1:-1], json.dumps(escaped, ensure_ascii=False)[3:-3])
    yield from (json.dumps(secret)[1:-1], repr(secret)[1:-1], secret.encode("unicode_escape").decode())
    yield secret.replace("\\", "\\\\").replace("'", "\\'")
    yield from (quote(secret, safe=""), quote(secret), quote_plus(secret))
    if base64_too:
        yield from _base64_forms(secret.encode())


def _base64_forms(secret: bytes) -> Iterator[str]:
    """The characters that a secret makes in base64 at any place, as in ``user:secret`` of Basic.

    Three bytes make four characters, so there are three alignments; characters that depend on
    the neighbours, too, are left out.
    """
    for before in range(3):
        start = (8 * before + 5) // 6
        end = 8 * (before + len(secret)) // 6
        if end - start < SHORTEST_SECRET:
            continue
        padded = b"\0" * before + secret
        yield base64.b64encode(padded).decode()[start:end]
        yield base64.urlsafe_b64encode(padded).decode()[start:end]


redactor = Redactor()
"""The one that every line goes through."""


class Sink:
    """Writes lines to a stream, one write a line, and never raises for what the stream does.

    ``dropped`` counts the lines that couldn't be written: the pipe is closed, the disk is full.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.dropped = 0
        self.stream = stream

    def write(self, line: str) -> None:
        """Writes a line without its line break."""
        try:
            self._write(f"{line}\n")
        except (OSError, ValueError, AttributeError):
            # ValueError is a closed file's; AttributeError that of no stream at all (pythonw).
            self.dropped += 1

    def _write(self, text: str) -> None:
        stream = cast("IO[str]", self.stream)
        binary = getattr(stream, "buffer", None)
        if binary is None:
            stream.write(text)
            stream.flush()
            return
        # Past the buffers, so that a line that failed doesn't stay in one and come out in pieces.
        raw = getattr(binary, "raw", binary)
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        while rest:
            written = raw.write(rest)
            if not written:
                raise BlockingIOError
            rest = rest[written:]
        if raw is binary:
            raw.flush()


class _NamedSink:
    """What structlog calls a logger: the end of the line, here with the name of its beginning."""

    __slots__ = ("name",)

    def __init__(self, name: str = "") -> None:
        self.name = name

    def write(self, line: str) -> None:
        _sink.write(line)

    debug = info = warning = error = critical = exception = write


class _SinkHandler(logging.Handler):
    """The standard library's records, into the same sink."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a record with wrong arguments must not stop the program
            line = redactor.redact(f"unprintable log record of {record.name}: {record.msg!r}")
        _sink.write(line)


_sink = Sink()
_handler = _SinkHandler()


def configure(level: str, format: str, stream: IO[str] | None = None) -> None:  # noqa: A002 - the setting's name
    """Sets logging up, or anew, for the whole process.

    ``level`` and ``format`` are those of the ``[log]`` table; ``format`` "auto" is text on a terminal and
    JSON lines elsewhere. ``stream`` None is standard error.
    """
    _sink.stream = sys.stderr if stream is None else stream
    is_terminal = _is_terminal(_sink.stream)
    as_text = format == "text" or (format == "auto" and is_terminal)
    rendering = _text(colors=is_terminal and _wants_colors()) if as_text else _json()
    number = logging.getLevelNamesMapping()[level.upper()]
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    start: list[Processor] = [add_logger_name, structlog.stdlib.add_log_level, stamp]
    structlog.configure(
        processors=[*start, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        context_class=dict,
        logger_factory=_NamedSink,
        cache_logger_on_first_use=False,
    )
    _handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=start,
            processors=[ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.setLevel(number)
    if _handler not in root.handlers:
        root.addHandler(_handler)
    logging.captureWarnings(True)


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger whose lines carry ``name``; it follows every later `configure`."""
    return cast("FilteringBoundLogger", structlog.get_logger(name))


def dropped_lines() -> int:
    """How many lines couldn't be written since the process began."""
    return _sink.dropped


def _is_terminal(stream: IO[str] | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _wants_colors() -> bool:
    # https://no-color.org: set and not empty. Windows' consoles may not understand the sequences.
    return sys.platform != "win32" and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _text(*, colors: bool) -> list[Processor]:
    # The plain traceback: rich's shows local variables, and so secrets.
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors, exception_formatter=structlog.dev.plain_traceback, sort_keys=False
    )
    return [_escape_controls, renderer, redactor]


def _json() -> list[Processor]:
    return [structlog.processors.format_exc_info, _render_json, redactor]


def _escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """No value moves the cursor or begins a line of its own."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable() and key not in _LONG_KEYS:
            # Redacted before it is escaped: the renderer may escape it once more.
            event[key] = redactor.redact(value).encode("unicode_escape").decode()
    return event


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    ordered = {key: event.pop(key) for key in _FIRST_KEYS if key in event}
    ordered.update(event)
    try:
        return json.dumps(ordered, default=_plain, ensure_ascii=False)
    except (TypeError, ValueError):  # keys that JSON doesn't have, circles
        return json.dumps({str(key): repr(value) for key, value in ordered.items()}, ensure_ascii=False)


def _plain(value: object) -> object:
    return value.value if isinstance(value, enum.Enum) else str(value)
