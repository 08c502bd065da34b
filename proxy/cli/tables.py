"""Tables for people: on a narrow terminal a long text is wrapped, and no part of it is lost.

Hides rich. Must not know what the tables show.
"""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Column, Table

_NARROW = 110
"""Characters in a line. On a narrower terminal, the columns beside a long text become short."""


class Terminal(Console):
    """Standard output for tables. As for `proxy.cli.console.say`, a reader that has left is no error."""

    def on_broken_pipe(self) -> None:
        """The reader has left, as in ``csq-proxy check | head -1``: rich would exit with 1."""
        sys.stdout = None  # rich, too, writes there in this case

    @property
    def is_narrow(self) -> bool:
        """Whether the columns beside a long text must be short."""
        return self.width < _NARROW


def table(*columns: Column | str) -> Table:
    """An empty table. A `Column` is a column with its own rule for narrow terminals."""
    folding = (Column(one, overflow="fold") if isinstance(one, str) else one for one in columns)
    return Table(*folding, box=box.SIMPLE)
