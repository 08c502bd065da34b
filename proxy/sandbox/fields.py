"""The exportable fields of Data Export, and the columns that a job makes of them.

Names as the vendor's reference pages list them and as public programs ask for them. A dotted field is a list:
the lists of one group, such as ``app_events.*``, have the same length and order in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy.sandbox.parameters import number_in
from proxy.sandbox.wire import bad_request

_LIST = "array"

_SESSION = {
    "project_id": "integer",
    "user_id": "integer",
    "user_id_unhashed": "string",
    "session_id": "integer",
    "session_number": "integer",
    "session_date": "date",
    "session_time": "datetime",
    "session_number_of_views": "integer",
    "session_duration_msec": "integer",
    "session_number_of_transactions": "integer",
    "session_transactions_revenue_cents": "integer",
    "is_excludable": "boolean",
    "device_id": "integer",
    "screen_height": "integer",
    "screen_width": "integer",
    "language": "string",
    "city": "string",
    "country_code": "string",
    "browser_name": "string",
    "browser_version": "string",
    "browser_major_version": "integer",
    "platform_name": "string",
    "platform_version": "string",
    "referer_url": "string",
    "density": "number",
    "os_version": "string",
    "app_version": "string",
    "manufacturer": "string",
    "model": "string",
}
_SESSION_LISTS = {
    "app_events": ("event_name", "event_time", "event_type", "view_number"),
    "session_transaction_items": (
        "id",
        "sku",
        "catalog_id",
        "product_id_hashed",
        "revenue_cents",
        "quantity",
        "transaction_time",
        "transaction_view_number",
    ),
    "session_add_to_cart_items": (
        "sku",
        "catalog_id",
        "product_id_hashed",
        "is_in_transaction",
        "add_to_cart_time",
        "add_to_cart_view_number",
    ),
}
_VIEW = {
    "view_number": "integer",
    "view_time": "datetime",
    "view_duration_msec": "integer",
    "url_no_query_param": "string",
    "scheme": "string",
    "prefix": "string",
    "path": "string",
    "query": "string",
    "screen_name": "string",
    "is_first": "boolean",
    "is_last": "boolean",
    "window_height": "integer",
    "window_width": "integer",
    "document_height": "integer",
    "document_width": "integer",
    "page_interaction_time_msec": "integer",
    "scroll_rate": "number",
    "frustration_score": "integer",
    "rage_click_all_targets_ind": "integer",
    "multiple_button_interaction_ind": "integer",
    "any_js_error_ind": "integer",
    "any_api_error_ind": "integer",
    "api_error_after_click_ind": "integer",
    "dom_interactive_after_msec": "integer",
    "fully_loaded": "integer",
    "start_render": "integer",
}
_VIEW_LISTS = {"errors": ("message", "error_time", "filename", "line_number", "col_number")}
_VARIABLES = {"custom_var": "string", "dynamic_var": "string"}


def _lists(groups: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {f"{group}.{name}": _LIST for group, names in groups.items() for name in names}


FIELDS = {
    "sessions": _SESSION | _lists(_SESSION_LISTS) | _VARIABLES,
    "views": _SESSION | _VIEW | _lists(_SESSION_LISTS) | _lists(_VIEW_LISTS) | _VARIABLES,
}
"""Names and types by scope."""
VIEW_FIELDS = tuple(_VIEW)
CUSTOM_VARS = ("page_template", "logged_in", "language", "stock_status")
DYNAMIC_VARS = {"ab_test": "string", "basket_value": "number", "voucher": "string"}
MAX_CUSTOM_VARS = 20
"""The highest position of a custom variable."""


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
    """An item of a job's ``fields``. Raises Fault 400."""
    given = item if isinstance(item, dict) else {}
    field, alias = given.get("fieldName"), given.get("aliasName", "")
    of: Any = ""
    if not isinstance(field, str) or field not in FIELDS[scope]:
        raise bad_request(
            f"fields: {repr(field)[:80]} is no fieldName that is exportable with scope {scope};"
            " GET /v1/exportable-fields lists them."
        )
    if not isinstance(alias, str):
        raise bad_request("aliasName must be a string.")
    if field == "custom_var":
        of = str(given.get("customVarPosition"))
        if not 1 <= (number_in(of) or 0) <= MAX_CUSTOM_VARS:
            raise bad_request(f"customVarPosition must be between 1 and {MAX_CUSTOM_VARS}.")
    if field == "dynamic_var":
        of = given.get("dynamicVarKey")
        if not isinstance(of, str) or of not in DYNAMIC_VARS:
            raise bad_request("dynamicVarKey must be one of the project's dynamic variables.")
    return Column(field, alias, of)
