"""What the documents say."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def events_in_readme() -> list[str]:
    """The names in the table of the log's events."""
    table = README.read_text("utf-8").partition("\n| `event` | about |\n")[2].partition("\n\n")[0]
    return [name for row in table.splitlines()[1:] for name in re.findall("`(.+?)`", row.split("|")[1])]
