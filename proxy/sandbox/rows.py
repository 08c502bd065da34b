"""The rows of an export: made up, and the same for the same seed and number.

Rows come in groups, so that any part of a file can be made without the rest. Values of one row agree: the
lists of a group have the same length, a session's revenue is the sum of what was bought.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from proxy.sandbox.fields import VIEW_FIELDS, Column

_Values = dict[str, object]
_Maker = Callable[[random.Random, _Values], _Values]

_DEVICES = {"desktop": (1080, 1920), "mobile": (844, 390), "tablet": (1180, 820)}
_PLACES = (("FR", "Paris", "fr"), ("GB", "London", "en"), ("DE", "Köln", "de"), ("US", "Austin, TX", "en"))
_BROWSERS = (("Chrome", 131), ("Safari", 18), ("Firefox", 133), ("Edge", 131), ("Samsung Internet", 27))
_PLATFORMS = (("Windows", "11"), ("iOS", "18.1"), ("Android", "15"), ("macOS", "15.1"), ("Linux", ""))
_PATHS = ("/", "/women", "/men/shoes", "/products/red-shoe", '/the-"best"-of', "/größen,maße", "/checkout")
_APP_EVENTS = ("appStartEvent", "appShowEvent", "appHideEvent")


@dataclass(frozen=True, slots=True)
class Rows:
    """What decides the rows of one file. Times of rows lie between ``start`` and ``end``."""

    format: str
    columns: tuple[Column, ...]
    seed: str
    start: datetime
    end: datetime
    project_id: int
    device: str

    def header(self) -> bytes:
        """The first line of a CSV file; a JSONL file has none."""
        return _csv([[column.label for column in self.columns]]) if self.format == "CSV" else b""

    def group(self, number: int, count: int) -> bytes:
        """The lines of one group of ``count`` rows."""
        dice = random.Random(f"{self.seed} {number}")
        fields = {column.field for column in self.columns}
        makers = [maker for maker, names in _MAKERS if any(field.startswith(names) for field in fields)]
        rows = [self._row(dice, makers) for _ in range(count)]
        if self.format == "CSV":
            return _csv([[_csv_value(value) for value in row] for row in rows])
        labels = [column.label for column in self.columns]
        lines = [json.dumps(dict(zip(labels, row, strict=True)), ensure_ascii=False) + "\n" for row in rows]
        return "".join(lines).encode(errors="replace")

    def _row(self, dice: random.Random, makers: list[_Maker]) -> list[object]:
        span_s = (self.end - self.start).total_seconds() - 1
        when = self.start + timedelta(seconds=round(dice.random() * span_s))
        device = dice.choice(tuple(_DEVICES)) if self.device == "all" else self.device
        values = _session(dice, when, device) | {"project_id": self.project_id}
        for maker in makers:
            values |= maker(dice, values)
        draw = dice.randrange(1000)
        return [f"{column.of}-{draw}" if column.of else values[column.field] for column in self.columns]


def _session(dice: random.Random, when: datetime, device: str) -> _Values:
    country, city, language = dice.choice(_PLACES)
    browser, major = dice.choice(_BROWSERS)
    platform, version = dice.choice(_PLATFORMS)
    height, width = _DEVICES[device]
    views = dice.randint(1, 14)
    user = dice.getrandbits(63)
    return {
        "user_id": user,
        "user_id_unhashed": f"{user:016x}-{dice.getrandbits(16):04x}",
        "session_id": dice.getrandbits(63),
        "session_number": dice.randint(1, 9),
        "session_date": f"{when:%Y-%m-%d}",
        "session_time": _time(when),
        "session_number_of_views": views,
        "session_duration_msec": views * dice.randint(3_000, 60_000),
        "is_excludable": dice.random() < 0.02,
        "device_id": tuple(_DEVICES).index(device) + 1,
        "screen_height": height,
        "screen_width": width,
        "language": language,
        "city": city,
        "country_code": country,
        "browser_name": browser,
        "browser_version": f"{major}.{dice.randint(0, 9)}",
        "browser_major_version": major,
        "platform_name": platform,
        "platform_version": version,
        "referer_url": dice.choice(("", "https://search.example/?q=shoes", "https://news.example/")),
        "density": dice.choice((1.0, 2.0, 3.0)),
        "os_version": version,
        "app_version": f"5.{dice.randint(0, 9)}.0",
        "manufacturer": dice.choice(("Apple", "Samsung", "Google")),
        "model": dice.choice(("A1", "B2", "C3")),
    }


def _view(dice: random.Random, session: _Values) -> _Values:
    number, path = dice.randint(1, 14), dice.choice(_PATHS)
    duration = dice.randint(500, 90_000)
    loaded = dice.randint(900, 6_000)
    return {
        "view_number": number,
        "view_time": session["session_time"],
        "view_duration_msec": duration,
        "url_no_query_param": f"https://shop.example{path}",
        "scheme": "https",
        "prefix": "shop.example",
        "path": path,
        "query": "utm_source=newsletter&x=1" if path == "/women" else "",
        "screen_name": "",
        "is_first": number == 1,
        "is_last": number == session["session_number_of_views"],
        "window_height": session["screen_height"],
        "window_width": session["screen_width"],
        "document_height": dice.randint(1_000, 9_000),
        "document_width": session["screen_width"],
        "page_interaction_time_msec": round(duration * dice.random()),
        "scroll_rate": round(dice.random(), 4),
        "frustration_score": dice.randint(0, 100),
        "rage_click_all_targets_ind": int(dice.random() < 0.05),
        "multiple_button_interaction_ind": int(dice.random() < 0.1),
        "dom_interactive_after_msec": loaded // 2,
        "fully_loaded": loaded,
        "start_render": loaded // 3,
    }


def _app_events(dice: random.Random, session: _Values) -> _Values:
    count, at = dice.randint(0, len(_APP_EVENTS)), session["session_time"]
    return {
        "app_events.event_name": list(_APP_EVENTS[:count]),
        "app_events.event_time": [at] * count,
        "app_events.event_type": list(range(count)),
        "app_events.view_number": [1] * count,
    }


def _cart(dice: random.Random, session: _Values) -> _Values:
    """What went into the cart; in some sessions all of it was bought, in one transaction."""
    count = max(0, dice.randint(-5, 3))
    bought = count if dice.random() < 0.5 else 0
    skus = [f"SKU-{dice.randrange(100_000):05d}" for _ in range(count)]
    hashes = [dice.getrandbits(63) for _ in skus]
    cents = [dice.randint(990, 29_990) for _ in range(bought)]
    at, order = session["session_time"], f"T-{dice.getrandbits(32):08x}"
    return {
        "session_number_of_transactions": min(bought, 1),
        "session_transactions_revenue_cents": sum(cents),
        "session_transaction_items.id": [order] * bought,
        "session_transaction_items.sku": skus[:bought],
        "session_transaction_items.catalog_id": [1] * bought,
        "session_transaction_items.product_id_hashed": hashes[:bought],
        "session_transaction_items.revenue_cents": cents,
        "session_transaction_items.quantity": [1] * bought,
        "session_transaction_items.transaction_time": [at] * bought,
        "session_transaction_items.transaction_view_number": [2] * bought,
        "session_add_to_cart_items.sku": skus,
        "session_add_to_cart_items.catalog_id": [1] * count,
        "session_add_to_cart_items.product_id_hashed": hashes,
        "session_add_to_cart_items.is_in_transaction": [int(bought > 0)] * count,
        "session_add_to_cart_items.add_to_cart_time": [at] * count,
        "session_add_to_cart_items.add_to_cart_view_number": [1] * count,
    }


def _errors(dice: random.Random, session: _Values) -> _Values:
    """JavaScript errors with their details, and whether the view had errors of APIs."""
    count = 1 if dice.random() < 0.1 else 0
    of_api = dice.random() < 0.08
    return {
        "any_js_error_ind": count,
        "any_api_error_ind": int(of_api),
        "api_error_after_click_ind": int(of_api and dice.random() < 0.5),
        "errors.message": ["Uncaught TypeError: it's undefined"] * count,
        "errors.error_time": [session["session_time"]] * count,
        "errors.filename": ["https://shop.example/app.js"] * count,
        "errors.line_number": [dice.randint(1, 900) for _ in range(count)],
        "errors.col_number": [dice.randint(1, 80) for _ in range(count)],
    }


_MAKERS: tuple[tuple[_Maker, tuple[str, ...]], ...] = (
    (_view, VIEW_FIELDS),
    (_app_events, ("app_events.",)),
    (_cart, ("session_transaction", "session_add_to_cart_items.", "session_number_of_transactions")),
    (_errors, ("errors.", "any_", "api_error_after_click_ind")),
)
"""The makers of values, and how the names of their fields begin."""


def _time(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S}"


def _csv(rows: list[list[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="replace")


def _csv_value(value: object) -> object:
    """Lists in the way of the vendor's examples, ``['a','b']``; true and false in lower case."""
    if isinstance(value, list):
        shown = (f"'{_escaped(item)}'" if isinstance(item, str) else str(item) for item in value)
        return f"[{','.join(shown)}]"
    return str(value).lower() if isinstance(value, bool) else value


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")
