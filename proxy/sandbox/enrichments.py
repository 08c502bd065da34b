"""The Enrichment API: takes batches, checks them, forgets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.sandbox.parameters import is_integer
from proxy.sandbox.wire import Call, Router, bad_request, forbidden, success

if TYPE_CHECKING:
    from aiohttp import web

MAX_BATCH = 200


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
    for number, enrichment in enumerate(batch):
        if not isinstance(enrichment, dict) or not enrichment:
            raise bad_request(f"enrichments[{number}] must be an object.")
    return success({"accepted": len(batch)})
