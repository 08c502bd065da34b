"""The objects of a demo project: segments, goals, mappings, page groups, zonings, zones.

Everything follows from the project id, so the same id always names the same object. An object's
id contains its parent's: page group 42103 is the third of mapping 421, the first of project 42.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from proxy.sandbox.options import DemoProject
from proxy.sandbox.parameters import integer, number_in
from proxy.sandbox.wire import Call, Router, forbidden, not_found, success

if TYPE_CHECKING:
    from aiohttp import web

SEGMENTS = (
    "New visitors",
    "Returning visitors",
    "Bounced visitors",
    "Buyers",
    "Cart abandoners",
    "Paid search",
    "Organic search",
    "Newsletter",
    "Loyal customers",
    "Frustrated visitors",
    "App installers",
    "Site search users",
)
GOALS = (
    ("Reach Cart", "pageview"),
    ("Reach Checkout", "pageview"),
    ("Order confirmed", "pageview"),
    ("Add to cart", "click"),
    ("Newsletter sign-up", "click"),
    ("Store locator", "pageview"),
)
MAPPINGS = ("Main mapping", "Checkout in detail", "Campaign pages")
PAGE_GROUPS = (
    ("Home", "Entrance"),
    ("Category", "Browse"),
    ("Product", "Browse"),
    ("Search results", "Browse"),
    ("Cart", "Checkout"),
    ("Delivery", "Checkout"),
    ("Payment", "Checkout"),
    ("Confirmation", "Checkout"),
    ("Account", "Service"),
    ("Help", "Service"),
)
ZONINGS = ("Header and hero", "Whole page", "Footer")
ZONES = (
    "Logo",
    "Menu",
    "Search box",
    "Hero banner",
    "Promo tile",
    "Product list",
    "Add to cart",
    "Reviews",
    "Recommendations",
    "Newsletter",
    "Service links",
    "Legal links",
)

_CREATED = "2024-03-{:02d}T09:30:00.000Z"
_UPDATED = "2025-06-{:02d}T14:05:00.000Z"
_PARENTS_DIGITS = {"page group": 2, "zoning": 1, "zone": 2}


def noise(*what: object) -> float:
    """A number in [0, 1) that depends only on the arguments."""
    digest = hashlib.blake2b("\x1f".join(map(str, what)).encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def add_routes(router: Router) -> None:
    """The paths of the Metrics API that list objects."""
    router.add("GET", "/v1/segments", segments)
    router.add("GET", "/v1/goals", goals)
    router.add("GET", "/v1/mappings", mappings)
    router.add("GET", "/v1/mappings/{mapping_id}", mapping)
    router.add("GET", "/v1/mappings/{mapping_id}/page-groups", page_groups)
    router.add("GET", "/v1/page-groups/{page_group_id}", page_group)
    router.add("GET", "/v1/page-groups/{page_group_id}/zonings", zonings)
    router.add("GET", "/v1/zonings/{zoning_id}/zones", zones)


async def segments(call: Call) -> web.Response:
    """Every segment; ``ids`` picks some."""
    check_project(call)
    found = [
        {"id": id_, "name": name, "source": "contentsquare", **_times(id_)}
        for id_, name in zip(segment_ids(call.project), SEGMENTS, strict=True)
    ]
    return success(_picked(call, found))


async def goals(call: Call) -> web.Response:
    """Every goal."""
    check_project(call)
    found = [
        {"id": id_, "name": name, "type": type_, **_times(id_)}
        for id_, (name, type_) in zip(goal_ids(call.project), GOALS, strict=True)
    ]
    return success(found)


async def mappings(call: Call) -> web.Response:
    """Every mapping; ``ids`` picks some."""
    check_project(call)
    return success(_picked(call, [_mapping(id_) for id_ in _mapping_ids(call.project)]))


async def mapping(call: Call) -> web.Response:
    """One mapping."""
    check_project(call)
    return success(_mapping(_own_mapping_id(call)))


async def page_groups(call: Call) -> web.Response:
    """The page groups of a mapping."""
    check_project(call)
    parent = _own_mapping_id(call)
    return success([_page_group(id_) for id_ in _children(parent, "page group", PAGE_GROUPS)])


async def page_group(call: Call) -> web.Response:
    """One page group."""
    check_project(call)
    return success(_page_group(own_page_group_id(call.project, call.path["page_group_id"])))


async def zonings(call: Call) -> web.Response:
    """The zonings of a page group."""
    check_project(call)
    parent = own_page_group_id(call.project, call.path["page_group_id"])
    found = [
        {"id": id_, "name": name, "pageGroupId": parent, "device": "desktop", **_times(id_)}
        for id_, name in zip(_children(parent, "zoning", ZONINGS), ZONINGS, strict=True)
    ]
    return success(found)


async def zones(call: Call) -> web.Response:
    """The zones of a zoning."""
    check_project(call)
    parent = _own_id(call.project, call.path["zoning_id"], "zoning")
    found = [
        {"id": id_, "name": name, "zoningId": parent, **_times(id_)}
        for id_, name in zip(_children(parent, "zone", ZONES), ZONES, strict=True)
    ]
    return success(found)


def check_project(call: Call) -> None:
    """``projectId``, where given, has to be the token's project. Raises Fault 400 or 403."""
    wanted = call.query.get("projectId")
    if wanted is not None and integer(wanted, "projectId") != call.project.project_id:
        raise forbidden(f"The token is not for project {wanted}.")


def segment_ids(project: DemoProject) -> range:
    """The ids of the project's segments."""
    first = project.project_id * 1000 + 1
    return range(first, first + len(SEGMENTS))


def goal_ids(project: DemoProject) -> range:
    """The ids of the project's goals."""
    first = project.project_id * 1000 + 501
    return range(first, first + len(GOALS))


def own_page_group_id(project: DemoProject, text: str) -> int:
    """The id of a page group of this project. Raises Fault 404."""
    return _own_id(project, text, "page group")


def own_zone_id(project: DemoProject, text: str) -> int:
    """The id of a zone of this project. Raises Fault 404."""
    return _own_id(project, text, "zone")


def page_group_of(zone_id: int) -> int:
    """The page group that a zone lies in."""
    return _parent(_parent(zone_id, "zone"), "zoning")


def _mapping_ids(project: DemoProject) -> range:
    first = project.project_id * 10 + 1
    return range(first, first + len(MAPPINGS))


def _children(parent: int, kind: str, names: Sequence[object]) -> range:
    first = parent * 10 ** _PARENTS_DIGITS[kind] + 1
    return range(first, first + len(names))


def _parent(id_: int, kind: str) -> int:
    return int(id_ // 10 ** _PARENTS_DIGITS[kind])


def _own_mapping_id(call: Call) -> int:
    text = call.path["mapping_id"]
    id_ = number_in(text)
    if id_ is not None and id_ in _mapping_ids(call.project):
        return id_
    raise not_found(f"No mapping {text} in this project.")


def _own_id(project: DemoProject, text: str, kind: str) -> int:
    """The id in ``text``, if it and every ancestor of it exist."""
    id_ = number_in(text) or 0
    exists = True
    lineage: Iterable[tuple[str, Sequence[object]]] = {
        "zone": (("zone", ZONES), ("zoning", ZONINGS), ("page group", PAGE_GROUPS)),
        "zoning": (("zoning", ZONINGS), ("page group", PAGE_GROUPS)),
        "page group": (("page group", PAGE_GROUPS),),
    }[kind]
    current = id_
    for level, siblings in lineage:
        parent = _parent(current, level)
        exists = exists and current in _children(parent, level, siblings)
        current = parent
    if not exists or current not in _mapping_ids(project):
        raise not_found(f"No {kind} {text} in this project.")
    return id_


def _mapping(id_: int) -> dict[str, object]:
    return {"id": id_, "name": MAPPINGS[id_ % 10 - 1], "isDefault": id_ % 10 == 1, **_times(id_)}


def _page_group(id_: int) -> dict[str, object]:
    name, category = PAGE_GROUPS[id_ % 100 - 1]
    return {
        "id": id_,
        "name": name,
        "category": category,
        "mappingId": _parent(id_, "page group"),
        **_times(id_),
    }


def _times(id_: int) -> dict[str, str]:
    return {"createdAt": _CREATED.format(id_ % 28 + 1), "updatedAt": _UPDATED.format(id_ % 28 + 1)}


def _picked(call: Call, found: list[dict[str, object]]) -> list[dict[str, object]]:
    wanted = call.query.get("ids")
    if not wanted:
        return found
    ids = {integer(part.strip(), "ids") for part in wanted.split(",")}
    return [item for item in found if item["id"] in ids]
