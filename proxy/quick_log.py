"""The quick way to a log line, for the one that every request has.

Hides that a line is rendered by structlog once, and only filled in from then on; it looks the same.
Must not know structlog: it is given how a line comes about, and where it goes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from proxy.sink import Sink

_MOST_TEMPLATES: Final = 64


class Rendering:
    """How a line comes about: by structlog's processors, or value by value.

    ``write_text`` is ``write_value`` for what is text; ``level`` is the standard library's, of the least
    that is written.
    """

    def __init__(
        self,
        level: int,
        processors: Sequence[Callable[[Any, str, Any], Any]],
        write_value: Callable[[Any], str],
        write_text: Callable[[str], str],
    ) -> None:
        self.level = level
        self.processors = processors
        self.write_value = write_value
        self.write_text = write_text


class Output:
    """Where lines go, and how they look now; nothing is logged before that is set."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.rendering = Rendering(logging.CRITICAL + 1, [], str, str)


class QuickLogger:
    """Logs as `proxy.log.get_logger` does, at a fraction of the cost, what comes often with the same keys.

    The line is rendered as any other once for each level, event and set of keys, and then filled in. It is
    written at the end of the event loop's turn, together with others. Follows each later
    `proxy.log.configure`; to be used in one thread.
    """

    def __init__(self, name: str, output: Output) -> None:
        self._name = name
        self._output = output
        self._templates: dict[tuple[str, str, tuple[str, ...]], str] = {}
        self._rendering = output.rendering
        self._second, self._second_text = 0, ""

    def is_enabled_for(self, level: int) -> bool:
        """Whether a line of this level of the standard library's is written."""
        return level >= self._output.rendering.level

    def log(self, level: str, event: str, values: Mapping[str, object]) -> None:
        """Write a line, whatever the configured level is."""
        rendering = self._output.rendering
        if rendering is not self._rendering:
            self._templates.clear()
            self._rendering = rendering
        kind = (level, event, tuple(values))
        template = self._templates.get(kind) or self._learn(kind)
        write, write_text = rendering.write_value, rendering.write_text
        filled: list[object] = [self._stamp()]
        for value in values.values():
            if (
                type(value) is int or type(value) is float
            ):  # written as Python writes them, in both renderings
                filled.append(value)
            else:
                filled.append(write_text(value) if isinstance(value, str) else write(value))
        self._output.sink.write_soon(template % tuple(filled))

    def _learn(self, kind: tuple[str, str, tuple[str, ...]]) -> str:
        level, event, keys = kind
        marks = {key: f"@{place}@" for place, key in enumerate(keys)}
        line: Any = {"timestamp": "@now@", "level": level, "logger": self._name, "event": event, **marks}
        for process in self._rendering.processors:
            line = process(None, level, line)
        template = str(line).replace("%", "%%").replace("@now@", "%s", 1)
        for mark in marks.values():
            template = template.replace(self._rendering.write_text(mark), "%s", 1)
        if len(self._templates) < _MOST_TEMPLATES:
            self._templates[kind] = template
        return template

    def _stamp(self) -> str:
        """The time as other lines have it; most of the text is made once a second."""
        second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second, self._second_text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{nanoseconds // 1000:06d}Z"
