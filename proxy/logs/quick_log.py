"""The quick way to a log line, for the one that every request has.

Hides that structlog renders a key's part of a line once, and only the value is put in from then on; the
line looks the same. Must not know structlog: it is given how a line comes about, and where it goes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from proxy.logs.sink import Sink

_MOST_KNOWN: Final = 256
"""Values of one key whose parts of a line are kept, and beginnings of lines."""
_TIME: Final = "@time@"
_VALUE: Final = "@value@"


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

    def frame(self, logger: str, level: str, event: str) -> tuple[str, str, str]:
        """What stands before a line's time, between it and the values, and behind them."""
        line = self._line({"timestamp": _TIME, "level": level, "logger": logger, "event": event, "_": _VALUE})
        start, _, rest = line.partition(_TIME)
        head, _, tail = rest.partition(self.write_text(_VALUE))
        return start, head.removesuffix(self.lead("_")), tail

    def lead(self, key: str) -> str:
        """What stands before a key's value."""
        keys = (f"{key}_", key)
        line = self._line({"event": "", keys[0]: _VALUE, keys[1]: _VALUE})
        return line.split(self.write_text(_VALUE))[1]

    def _line(self, event: Any) -> str:
        for process in self.processors:
            event = process(None, "", event)
        return str(event)


class Output:
    """Where lines go, and how they look now; nothing is logged before that is set."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.rendering = Rendering(logging.CRITICAL + 1, [], str, str)


class Key:
    """Makes one key's parts of the lines of a `QuickLogger`."""

    def __init__(self, name: str, rendering: Rendering) -> None:
        self._name = name
        self._known: dict[object, str] = {}
        self.follow(rendering)

    def follow(self, rendering: Rendering) -> None:
        """Lines look like this from now on."""
        self._known.clear()
        self._rendering = rendering
        self._lead = rendering.lead(self._name)

    def recurring(self, value: object) -> str:
        """The part for a value that is likely to come again; all of a key's are to be of one type."""
        part = self._known.get(value)
        return self._learn(value) if part is None else part

    def single(self, value: object) -> str:
        """The part for any other value."""
        if type(value) is int or type(value) is float:  # as Python writes them, in every rendering
            return self._lead + str(value)
        if isinstance(value, str):
            return self._lead + self._rendering.write_text(value)
        return self._lead + self._rendering.write_value(value)

    def _learn(self, value: object) -> str:
        part = self.single(value)
        # An escaped text had its redaction; one that is a secret only later would not be found in it.
        if not isinstance(value, str) or value.isprintable():
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[value] = part
        return part


class QuickLogger:
    """Logs as `logs.setup.get_logger` does, at a fraction of the cost, what comes often with the same keys.

    A line is a list of parts: it is begun with `begin`, filled with those that `Key` makes, at least one, and
    given to `write`. It is written at the end of the event loop's turn, together with others. Follows each
    later `logs.setup.configure`; to be used in one thread.
    """

    def __init__(self, name: str, output: Output) -> None:
        self._name = name
        self._output = output
        self._keys: list[Key] = []
        self._rendering = output.rendering
        self._starts: dict[tuple[str, str], tuple[str, str]] = {}
        self._tail = ""
        self._second, self._second_text = 0, ""

    def key(self, name: str) -> Key:
        """A key of the lines to come."""
        key = Key(name, self._rendering)
        self._keys.append(key)
        return key

    def is_enabled_for(self, level: int) -> bool:
        """Whether a line of this level of the standard library's is written."""
        return level >= self._output.rendering.level

    def begin(self, level: str, event: str) -> list[str]:
        """A line's beginning, whatever the configured level is."""
        if self._output.rendering is not self._rendering:
            self._follow(self._output.rendering)
        start, head = self._starts.get((level, event)) or self._learn(level, event)
        return [start, self._stamp(), head]

    def write(self, line: list[str]) -> None:
        """The line is complete."""
        line.append(self._tail)
        self._output.sink.write_soon("".join(line))

    def _follow(self, rendering: Rendering) -> None:
        self._rendering = rendering
        self._starts.clear()
        for key in self._keys:
            key.follow(rendering)

    def _learn(self, level: str, event: str) -> tuple[str, str]:
        start, head, self._tail = self._output.rendering.frame(self._name, level, event)
        if len(self._starts) < _MOST_KNOWN:
            self._starts[level, event] = start, head
        return start, head

    def _stamp(self) -> str:
        """The time as other lines have it; most of the text is made once a second."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._second_text = second, time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
        microseconds = str(1_000_000 + int((now - second) * 1_000_000))
        return f"{self._second_text}{microseconds[1:]}Z"
