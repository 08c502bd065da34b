"""Tables for people: on a narrow terminal a long text is wrapped, and no part of it is lost.

Hides rich. Must not know what the tables show.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Column, Table
from rich.text import Text

from proxy.foreign import shown

if TYPE_CHECKING:
    from rich.segment import Segment

_NARROW = 110
"""Characters in a line. On a narrower terminal, the columns beside a long text become short."""


class Terminal(Console):
    """Standard output (or error) for tables and colours.

    As for `proxy.cli.console.say`, a reader that has left is no error, and what a terminal would obey is
    escaped in every text.
    """

    def on_broken_pipe(self) -> None:
        """The reader has left, as in ``csq-proxy check | head -1``: rich would exit with 1."""
        if self.stderr:
            sys.stderr = None
        else:
            sys.stdout = None  # rich, too, writes there in this case

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The parts of a line; rich calls this for each text, in a table too, before it breaks the lines."""
        if isinstance(renderable, str):
            renderable = self.render_str(renderable)
        if (
            isinstance(renderable, Text)
            and (plain := shown(renderable.plain, keep="\n\t")) != renderable.plain
        ):
            renderable = Text(plain, renderable.style, overflow=renderable.overflow)
        return super().render(renderable, options)

    @property
    def is_narrow(self) -> bool:
        """Whether the columns beside a long text must be short."""
        return self.width < _NARROW


def table(*columns: Column | str) -> Table:
    """An empty table. A `Column` is a column with its own rule for narrow terminals."""
    folding = (Column(one, overflow="fold") if isinstance(one, str) else one for one in columns)
    return Table(*folding, box=box.SIMPLE)
