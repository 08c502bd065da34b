"""The Enrichment API: takes batches, checks them, forgets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.sandbox.parameters import is_integer
from proxy.sandbox.wire import Call, Router, bad_request, forbidden, success

if TYPE_CHECKING:
    from aiohttp import web

MAX_BATCH = 200
MAX_STRING_BYTES = 50


def add_routes(router: Router) -> None:
    """The one path of the Enrichment API."""
    router.add("POST", "/v1/enrichments", send)


async def send(call: Call) -> web.Response:
    """Takes a batch; one wrong enrichment refuses the whole of it. Raises Fault 400 or 403."""
    content = await call.json()
    if not is_integer(content.get("integrationVersion")):
        raise bad_request("integrationVersion must be an integer.")
    if not is_integer(content.get("projectId")):
        raise bad_request("projectId must be an integer.")
    if content["projectId"] != call.project.project_id:
        raise forbidden(f"The token is not for project {content['projectId']}.")
    batch = content.get("enrichments")
    if not isinstance(batch, list) or not batch:
        raise bad_request("enrichments must be a list that isn't empty.")
    if len(batch) > MAX_BATCH:
        raise bad_request(f"At most {MAX_BATCH} enrichments in a batch.")
    for number, item in enumerate(batch):
        if fault := _fault(item):
            raise bad_request(f"enrichments[{number}]{fault}")
    return success({"accepted": len(batch)})


def _fault(item: object) -> str:
    """The rest of a sentence about the item of a batch; "" where nothing is wrong."""
    if not isinstance(item, dict):
        return " must be an object."
    if not isinstance(item.get("userId"), str):
        return ".userId must be a string."
    if not is_integer(item.get("sessionNumber")):
        return ".sessionNumber must be an integer."
    if item.get("enrichmentNumber", 1) not in (1, 2, 3):
        return ".enrichmentNumber must be 1, 2 or 3."
    values = item.get("enrichment")
    if not isinstance(values, dict):
        return ".enrichment must be an object."
    for name, value in values.items():
        if not isinstance(value, str | int | float):
            return f".enrichment.{name} must be a string, a number, true or false."
        if isinstance(value, str) and len(value.encode(errors="replace")) > MAX_STRING_BYTES:
            return f".enrichment.{name} must have at most {MAX_STRING_BYTES} bytes."
    return ""
