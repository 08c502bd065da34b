"""The content of an export file: the exportable fields, and the rows made of them.

A row follows from the file's seed and its own number, so any part of a file can be made without
the rest, and the same file is the same each time.
"""

from __future__ import annotations

import csv
import io
import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from proxy.sandbox.wire import bad_request

FIELDS = {
    "sessions": {
        "project_id": "integer",
        "user_id": "string",
        "session_id": "string",
        "session_time": "datetime",
        "session_number_of_views": "integer",
        "session_duration_msec": "integer",
        "device_id": "integer",
        "device": "string",
        "country": "string",
        "browser": "string",
        "platform": "string",
        "is_bounce": "boolean",
        "cart_amount": "number",
        "custom_var": "string",
        "dynamic_var": "string",
    },
    "views": {
        "project_id": "integer",
        "user_id": "string",
        "session_id": "string",
        "view_id": "string",
        "view_time": "datetime",
        "view_number": "integer",
        "view_duration_msec": "integer",
        "path": "string",
        "query": "string",
        "title": "string",
        "device": "string",
        "country": "string",
        "custom_var": "string",
        "dynamic_var": "string",
    },
}
CUSTOM_VARS = ("page_template", "logged_in", "language", "stock_status")
DYNAMIC_VARS = {"ab_test": "string", "basket_value": "number", "voucher": "string"}
ROWS_PER_PIECE = 500
MAX_CUSTOM_VARS = 20
"""The highest position of a custom variable."""

_DEVICES = ("desktop", "mobile", "tablet")
_COUNTRIES = ("FR", "GB", "DE", "ES", "IT", "US")
_BROWSERS = ("Chrome", "Safari", "Firefox", "Edge", "Samsung Internet")
_PLATFORMS = ("Windows", "iOS", "Android", "macOS", "Linux")
_TITLES = ("Accueil", "Women", "Men's shoes", 'The "Best of" page', "Größen, Maße", "Checkout")
_PATHS = ("/", "/women", "/men/shoes", "/best-of", "/sizes", "/checkout")


@dataclass(frozen=True, slots=True)
class Column:
    """A field of a job: ``label`` is its name in the file, ``of`` which custom or dynamic variable."""

    field: str
    alias: str
    of: str

    @property
    def label(self) -> str:
        """The column's name in the file."""
        return self.alias or (f"{self.field}_{self.of}" if self.of else self.field)

    def described(self) -> dict[str, object]:
        """The field as the API shows it."""
        shown: dict[str, object] = {"fieldName": self.field}
        if self.alias:
            shown["aliasName"] = self.alias
        if self.field == "custom_var":
            shown["customVarPosition"] = int(self.of)
        if self.field == "dynamic_var":
            shown["dynamicVarKey"] = self.of
        return shown


def column(item: Any, scope: str) -> Column:
    """One item of a job's ``fields``. Raises Fault 400."""
    given = item if isinstance(item, dict) else {}
    field, alias = given.get("fieldName"), given.get("aliasName", "")
    of: Any = ""
    if not isinstance(field, str) or field not in FIELDS[scope]:
        raise bad_request(f"Each of fields needs a fieldName that is exportable with scope {scope}.")
    if not isinstance(alias, str):
        raise bad_request("aliasName must be a string.")
    if field == "custom_var":
        of = str(given.get("customVarPosition"))
        if not (of.isascii() and of.isdigit() and 1 <= int(of) <= MAX_CUSTOM_VARS):
            raise bad_request(f"customVarPosition must be between 1 and {MAX_CUSTOM_VARS}.")
    if field == "dynamic_var":
        of = given.get("dynamicVarKey")
        if not isinstance(of, str) or of not in DYNAMIC_VARS:
            raise bad_request("dynamicVarKey must be one of the project's dynamic variables.")
    return Column(field, alias, of)


@dataclass(frozen=True, slots=True)
class ExportFile:
    """A file of a run: its place, and everything that decides its content."""

    path: str
    format: str
    compressed: bool
    columns: tuple[Column, ...]
    seed: str
    first_row: int
    rows: int
    start: datetime
    end: datetime
    project_id: int
    device: str

    @property
    def name(self) -> str:
        """The last segment of the path."""
        return self.path.rpartition("/")[2]

    @property
    def content_type(self) -> str:
        """By the format and the compression."""
        if self.compressed:
            return "application/gzip"
        return "text/csv" if self.format == "CSV" else "application/x-ndjson"

    def pieces(self) -> Iterator[bytes]:
        """The file's bytes, some hundred rows at a time."""
        plain = self._csv_pieces() if self.format == "CSV" else self._jsonl_pieces()
        return _gzipped(plain) if self.compressed else plain

    def _jsonl_pieces(self) -> Iterator[bytes]:
        labels = [column.label for column in self.columns]
        for rows in self._row_groups():
            lines = [json.dumps(dict(zip(labels, row, strict=True)), ensure_ascii=False) for row in rows]
            yield ("\n".join(lines) + "\n").encode(errors="replace")

    def _csv_pieces(self) -> Iterator[bytes]:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.label for column in self.columns])
        yield text.getvalue().encode(errors="replace")
        for rows in self._row_groups():
            text.seek(0)
            text.truncate()
            writer.writerows(rows)
            yield text.getvalue().encode(errors="replace")

    def _row_groups(self) -> Iterator[list[list[object]]]:
        for first in range(self.first_row, self.first_row + self.rows, ROWS_PER_PIECE):
            last = min(first + ROWS_PER_PIECE, self.first_row + self.rows)
            dice = random.Random(f"{self.seed} {first}")
            yield [self._row(dice, number) for number in range(first, last)]

    def _row(self, dice: random.Random, number: int) -> list[object]:
        page = dice.randrange(len(_PATHS))
        views = dice.randint(1, 14)
        moment = self.start + timedelta(
            seconds=round(dice.random() * ((self.end - self.start).total_seconds() - 1))
        )
        device = dice.choice(_DEVICES) if self.device == "all" else self.device
        session = f"{dice.getrandbits(64):016x}"
        values: dict[str, object] = {
            "project_id": self.project_id,
            "user_id": f"{dice.getrandbits(64):016x}",
            "session_id": session,
            "session_time": moment.isoformat(),
            "session_number_of_views": views,
            "session_duration_msec": views * dice.randint(3_000, 60_000),
            "device_id": _DEVICES.index(device) + 1,
            "device": device,
            "country": dice.choice(_COUNTRIES),
            "browser": dice.choice(_BROWSERS),
            "platform": dice.choice(_PLATFORMS),
            "is_bounce": views == 1,
            "cart_amount": dice.randint(990, 29_990) / 100,
            "view_id": f"{session}-{number}",
            "view_time": moment.isoformat(),
            "view_number": views,
            "view_duration_msec": dice.randint(500, 90_000),
            "path": _PATHS[page],
            "query": "utm_source=newsletter&x=1" if page == 1 else "",
            "title": _TITLES[page],
        }
        draw = dice.randrange(1000)
        return [f"{column.of}-{draw}" if column.of else values[column.field] for column in self.columns]


def _gzipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    # 16 + the window's bits: zlib writes gzip's header and trailer (RFC 1952), without a time in it.
    packer = zlib.compressobj(level=1, wbits=16 + zlib.MAX_WBITS)
    for piece in pieces:
        if packed := packer.compress(piece):
            yield packed
    yield packer.flush()
