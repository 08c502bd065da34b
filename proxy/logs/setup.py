"""Logging: structlog set up once, for our own events and for the standard library's records.

Hides structlog, the choice of rendering, and two promises: no line holds a registered secret
(`redactor`, by value, on the lines as they are about to be written), and no stream stops the program
or holds it up (`proxy.logs.sink`; `dropped_lines` counts what was lost). Knows nothing of what is logged.

Events are past-tense snake_case, with values as keys::

    log = get_logger(__name__)
    log.info("token_fetched", project="shop", expires_in=3600)
"""

from __future__ import annotations

import enum
import json
import logging
import os
import sys
from json.encoder import encode_basestring
from typing import IO, TYPE_CHECKING, cast

from proxy.logs.quick_log import Output, QuickLogger, Rendering
from proxy.logs.redact import Redactor
from proxy.logs.sink import Sink

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

_LONG_KEYS = ("exception", "stack")
_FIRST_KEYS = ("timestamp", "level", "logger", "event")
_QUOTED_IN_TEXT = frozenset(" \t=\r\n\"'")

redactor = Redactor()
"""The one that every line goes through."""
_sink = Sink(redactor.redact)
_output = Output(_sink)
redactor.before_discard = _sink.flush


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
            line = f"unprintable log record of {record.name}: {record.msg!r}"
        _sink.write(line)


_handler = _SinkHandler()


def configure(level: str, format: str, stream: IO[str] | None = None) -> None:  # noqa: A002 - the setting's name
    """Sets logging up, or anew, for the whole process.

    ``level`` and ``format`` are those of the ``[log]`` table; ``format`` "auto" is text on a terminal and
    JSON lines elsewhere. ``stream`` None is standard error.
    """
    _sink.stream = sys.stderr if stream is None else stream
    is_terminal = _is_terminal(_sink.stream)
    as_text = format == "text" or (format == "auto" and is_terminal)
    number = logging.getLevelNamesMapping()[level.upper()]
    rendering = _text(number, colors=is_terminal and _wants_colors()) if as_text else _json(number)
    _output.rendering = rendering
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    start: list[Processor] = [add_logger_name, structlog.stdlib.add_log_level, stamp]
    structlog.configure(
        processors=[*start, *rendering.processors],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        context_class=dict,
        logger_factory=_NamedSink,
        cache_logger_on_first_use=False,
    )
    _handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=start,
            processors=[ProcessorFormatter.remove_processors_meta, *rendering.processors],
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


def quick_logger(name: str) -> QuickLogger:
    """A logger for what is logged very often with the same keys; see there."""
    return QuickLogger(name, _output)


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


def _text(level: int, *, colors: bool) -> Rendering:
    # The plain traceback: rich's shows local variables, and so secrets.
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors, exception_formatter=structlog.dev.plain_traceback, sort_keys=False
    )
    return Rendering(level, [_escape_controls, renderer], repr, _text_value)


def _json(level: int) -> Rendering:
    return Rendering(
        level, [structlog.processors.format_exc_info, _render_json], _json_value, encode_basestring
    )


def _text_value(value: str) -> str:
    """As `structlog.dev.ConsoleRenderer` shows it, after `_escape_controls`."""
    value = _escaped(value)
    return value if _QUOTED_IN_TEXT.isdisjoint(value) else repr(value)


def _json_value(value: object) -> str:
    return json.dumps(value, default=_plain, ensure_ascii=False)


def _escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """No value moves the cursor or begins a line of its own."""
    for key, value in event.items():
        if isinstance(value, str) and key not in _LONG_KEYS:
            event[key] = _escaped(value)
    return event


def _escaped(value: str) -> str:
    if value.isprintable():
        return value
    # Redacted before it is escaped: the renderer may escape it once more.
    return redactor.redact(value).encode("unicode_escape").decode()


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    ordered = {key: event.pop(key) for key in _FIRST_KEYS if key in event}
    ordered.update(event)
    try:
        return json.dumps(ordered, default=_plain, ensure_ascii=False)
    except (TypeError, ValueError):  # keys that JSON doesn't have, circles
        return json.dumps({str(key): repr(value) for key, value in ordered.items()}, ensure_ascii=False)


def _plain(value: object) -> object:
    return value.value if isinstance(value, enum.Enum) else str(value)
