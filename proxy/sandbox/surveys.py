"""The Responses API (Voice of Customer): surveys, their questions, their responses, page by page.

The answers have no envelope: a list is ``{"results": [...], "next_cursor": ... or null}``, a survey
is the plain object. A cursor is opaque to callers and good for the list that it came from.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from proxy.sandbox.catalog import noise
from proxy.sandbox.parameters import integer
from proxy.sandbox.wire import Call, Router, bad_request, forbidden, json_answer, not_found

if TYPE_CHECKING:
    from aiohttp import web

SURVEYS = 47
DEFAULT_LIMIT, MAX_LIMIT = 20, 100
_NAMES = (
    "Checkout feedback",
    "Exit intent",
    "Product page",
    "After delivery",
    "NPS",
    "Search results",
    "Help centre",
)
_TYPES = ("popover", "link", "full_screen", "button", "inline", "bubble", "mobile_popover")
_LANGUAGES = ("en", "fr", "de", "es")
_DEVICES = ("desktop", "mobile", "tablet")
_BROWSERS = (
    ("Chrome", "Windows"),
    ("Safari", "iOS"),
    ("Firefox", "Linux"),
    ("Edge", "Windows"),
    ("Chrome", "Android"),
)
_COUNTRIES = ("FR", "GB", "DE", "ES", "US", "IT", "NL")
_COMMENTS = (
    ("Found what I was looking for.", "positive"),
    ("Paying took too long.", "negative"),
    ("The size guide is missing.", "negative"),
    ("Fast and simple, thank you!", "positive"),
    ("I was only looking around.", "neutral"),
    ("Où est le suivi de commande ?", "neutral"),
)
_T = TypeVar("_T")
_FIRST_DAY = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)


def add_routes(router: Router) -> None:
    """The paths below ``/v1/public``."""
    base = "/v1/public/projects/{project_id}/surveys"
    router.add("GET", base, list_surveys)
    router.add("GET", base + "/{survey_id}", one_survey)
    router.add("GET", base + "/{survey_id}/responses", list_responses)


async def list_surveys(call: Call) -> web.Response:
    """A page of surveys; ``with_questions=true`` adds the questions."""
    _check_project(call)
    with_questions = call.query.get("with_questions", "false").lower() == "true"
    return _page(call, SURVEYS, lambda number: _survey(call, number, with_questions=with_questions))


async def one_survey(call: Call) -> web.Response:
    """A survey with its questions."""
    _check_project(call)
    return json_answer(_survey(call, _survey_number(call), with_questions=True))


async def list_responses(call: Call) -> web.Response:
    """A page of a survey's responses, the oldest first."""
    _check_project(call)
    survey = _survey_number(call)
    count = round(20 + 400 * noise("responses", call.project.project_id, survey))
    return _page(call, count, lambda number: _response(call, survey, number))


def _check_project(call: Call) -> None:
    if integer(call.path["project_id"], "project_id") != call.project.project_id:
        raise forbidden(f"The token is not for project {call.path['project_id']}.")


def _page(call: Call, count: int, item: Callable[[int], object]) -> web.Response:
    limit = integer(call.query.get("limit", str(DEFAULT_LIMIT)), "limit")
    if not 1 <= limit <= MAX_LIMIT:
        raise bad_request(f"limit must be between 1 and {MAX_LIMIT}.")
    first = _position(call, count)
    last = min(first + limit, count)
    cursor = _cursor(call, last) if last < count else None
    return json_answer({"results": [item(number) for number in range(first, last)], "next_cursor": cursor})


def _cursor(call: Call, position: int) -> str:
    content = json.dumps({"after": position, "of": call.request.path})
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def _position(call: Call, count: int) -> int:
    cursor = call.query.get("cursor")
    if not cursor:
        return 0
    try:
        content = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        position, path = content["after"], content["of"]
    except (ValueError, KeyError, TypeError):
        raise bad_request("cursor is not valid.") from None
    if path != call.request.path or not isinstance(position, int) or not 0 <= position <= count:
        raise bad_request("cursor is not of this list.")
    return position


def _survey_uuid(project_id: int, number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"survey {project_id} {number}"))


def _survey_number(call: Call) -> int:
    wanted = call.path["survey_id"]
    for number in range(SURVEYS):
        if wanted == f"survey_{_survey_uuid(call.project.project_id, number)}":
            return number
    raise not_found(f"No survey {wanted} in this project.")


def _survey(call: Call, number: int, *, with_questions: bool) -> dict[str, object]:
    project_id = call.project.project_id
    uuid_ = _survey_uuid(project_id, number)
    url = f"/v1/public/projects/{project_id}/surveys/survey_{uuid_}"
    return {
        "id": f"survey_{uuid_}",
        "name": f"{_NAMES[number % len(_NAMES)]} {number + 1}",
        "is_enabled": noise("enabled", uuid_) < 0.7,
        "created_time": _stamp(_FIRST_DAY + timedelta(days=number)),
        "type": _pick(_TYPES, "type", uuid_),
        "language": _pick(_LANGUAGES, "language", uuid_),
        "url": url,
        "responses_url": f"{url}/responses",
        "sentiment_analysis_enabled": noise("sentiment", uuid_) < 0.5,
        "questions": _questions(uuid_) if with_questions else None,
    }


def _questions(uuid_: str) -> list[dict[str, object]]:
    return [
        {"id": f"question_{uuid_}_q1", "type": "nps", "text": "How likely are you to recommend us?"},
        {"id": f"question_{uuid_}_q2", "type": "long-text", "text": "What could we do better?"},
    ]


def _response(call: Call, survey: int, number: int) -> dict[str, object]:
    uuid_ = _survey_uuid(call.project.project_id, survey)
    key = uuid_, number
    browser, system = _pick(_BROWSERS, "browser", *key)
    comment, sentiment = _pick(_COMMENTS, "comment", *key)
    score = min(10, int(4 + 8 * noise("score", *key)))
    return {
        "id": f"response_{uuid.uuid5(uuid.NAMESPACE_URL, f'response {uuid_} {number}')}",
        "created_time": _stamp(_FIRST_DAY + timedelta(days=survey, minutes=97 * number)),
        "device": _pick(_DEVICES, "device", *key),
        "browser": browser,
        "os": system,
        "country": _pick(_COUNTRIES, "country", *key),
        "page_url": f"https://shop.example/p/{int(900 * noise('page', *key))}",
        "answers": [
            {
                "question_id": f"question_{uuid_}_q1",
                "answer": score,
                "comment": None,
                "tags": [],
                "sentiment": None,
            },
            {
                "question_id": f"question_{uuid_}_q2",
                "answer": comment,
                "comment": None,
                "tags": ["checkout"] if "Paying" in comment else [],
                "sentiment": sentiment,
            },
        ],
    }


def _pick(choices: tuple[_T, ...], *key: object) -> _T:
    return choices[int(noise(*key) * len(choices))]


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
