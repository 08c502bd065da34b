"""Tables for people: on a narrow terminal a text goes on in its next line, and nothing of it is lost.

Hides rich. Must not know what is shown.
"""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Column, Table

_NARROW = 110
"""Characters in a line below which a long text needs what its neighbours can do without."""


class Terminal(Console):
    """Where tables go. Like `proxy.cli.console.say`, it doesn't mind that nobody reads it."""

    def on_broken_pipe(self) -> None:
        """Whoever read it has left, as in ``csq-proxy check | head -1``: rich would end us with 1."""
        sys.stdout = None  # what rich, too, takes for nowhere

    @property
    def is_narrow(self) -> bool:
        """Whether columns beside a long text have to be short."""
        return self.width < _NARROW


def table(*columns: Column | str) -> Table:
    """An empty table. A `Column` is for one that is told otherwise how to be narrow."""
    folding = (Column(one, overflow="fold") if isinstance(one, str) else one for one in columns)
    return Table(*folding, box=box.SIMPLE)
