"""The Metrics API's numbers: daily series for the site, a page group, a zone.

Hides how the numbers are made: for each day and device a few counts are drawn (the same counts for the
same project, object, day, segments and goal), and a metric is a count or a ratio of two counts. So
totals add up over days and devices, and rates agree with them. Averages, such as times, may be asked for as
a quantile (``metricType=quantile``); counts and rates have none. Names and units of metrics follow the
vendor's reference: rates in percent, times in seconds unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from statistics import NormalDist
from typing import TYPE_CHECKING

from proxy.sandbox import catalog
from proxy.sandbox.catalog import noise
from proxy.sandbox.options import DemoProject
from proxy.sandbox.parameters import integer, is_date_alone, iso, moment
from proxy.sandbox.wire import Call, Router, bad_request, not_found, success

if TYPE_CHECKING:
    from aiohttp import web

MAX_DAYS = 92
DEFAULT_QUANTILE = 75
_DEVICE_SHARE = {"desktop": 0.37, "mobile": 0.57, "tablet": 0.06}
_DEVICE_CONVERSION = {"desktop": 1.4, "mobile": 0.75, "tablet": 1.0}
_WEEKDAY = (1.04, 1.0, 0.98, 0.97, 0.93, 1.05, 1.12)  # Monday first
_SPREAD = 0.6
_CURRENCY = {"eu": "EUR", "us": "USD"}

Counts = dict[str, float]


@dataclass(frozen=True, slots=True)
class Metric:
    """``name`` in answers, ``path`` in targets; the value is ``scale * count / per`` (or the count alone)."""

    path: str
    name: str
    count: str
    per: str = ""
    scale: float = 1.0

    def value(self, counts: Counts, factor: float = 1.0) -> float:
        """A whole number for a count, else rounded to 6 digits; 0 where there is nothing to divide by.

        ``factor`` is by how much the wanted quantile of an average differs from it.
        """
        amount = counts[self.count]
        if not self.per:
            return round(amount)
        if self.scale == 1:
            amount *= factor
        return round(self.scale * amount / counts[self.per], 6) if counts[self.per] else 0.0


SITE = (
    Metric("bounce-rate", "bounceRate", "bounces", "visits", 100),
    Metric("cart-average", "cartAverage", "revenue", "conversions"),
    Metric("conversions", "conversionCount", "conversions"),
    Metric("conversion-rate", "conversionRate", "conversions", "visits", 100),
    Metric("pageview-average", "pageviewAverage", "pageviews", "visits"),
    Metric("revenue", "revenueSum", "revenue"),
    Metric("session-time-average", "sessionTimeAverage", "session_s", "visits"),
    Metric("visits", "visits", "visits"),
)
PAGE_GROUP = (
    Metric("activity-rate", "activityRate", "active_s", "elapsed_s", 100),
    Metric("bounce-rate", "bounceRate", "bounces", "visits", 100),
    Metric("conversion-rate", "conversionRate", "conversions", "visits", 100),
    Metric("elapsed-time", "elapsedTime", "elapsed_s", "views"),
    Metric("exit-rate", "exitRate", "exits", "views", 100),
    Metric("fold-height", "foldHeight", "fold_px", "views"),
    Metric("interaction-time", "interactionTime", "active_s", "views"),
    Metric("landing-rate", "landingRate", "landings", "visits", 100),
    Metric("loading-time", "loadingTime", "loading_s", "views"),
    Metric("page-height", "pageHeight", "page_px", "views"),
    Metric("scroll-rate", "scrollRate", "scrolled_px", "page_px", 100),
    Metric("unique-visits", "uniqueVisits", "unique_visits"),
    Metric("views", "views", "views"),
    Metric("views-visits", "viewsVisits", "views", "visits"),
    Metric("visits", "visits", "visits"),
)
WEB_VITALS = (
    Metric("web-vitals", "largestContentfulPaint", "lcp_ms", "views"),
    Metric("web-vitals", "firstContentfulPaint", "fcp_ms", "views"),
    Metric("web-vitals", "interactionToNextPaint", "inp_ms", "views"),
    Metric("web-vitals", "firstInputDelay", "fid_ms", "views"),
    Metric("web-vitals", "timeToFirstByte", "ttfb_ms", "views"),
    Metric("web-vitals", "cumulativeLayoutShift", "shift", "views"),
)
ZONE = (
    Metric("attractiveness-rate", "attractivityRate", "click_views", "exposed_views", 100),
    Metric("click-rate", "clickRate", "click_views", "views", 100),
    Metric("click-recurrence", "clickRepetition", "clicks", "click_views"),
    Metric("conversion-rate-per-click", "avgConversionAfterClick", "conversions", "click_views", 100),
    Metric("conversion-rate-per-hover", "avgConversionAfterHover", "conversions", "hover_views", 100),
    Metric("engagement-rate", "engagementRateLive", "click_views", "hover_views", 100),
    Metric("exposure-rate", "exposureRate", "exposed_views", "views", 100),
    Metric("exposure-time", "exposureTime", "exposure_s", "exposed_views"),
    Metric("hesitation", "hesitation", "hesitation_s", "click_views"),
    Metric("hover-rate", "hoverRate", "hover_views", "views", 100),
    Metric("hover-time", "hoverTime", "hover_s", "hover_views"),
    Metric("number-of-clicks", "totalClicks", "clicks"),
    Metric("revenue", "revenue", "revenue"),
    Metric("revenue-per-click", "revenuePerClick", "revenue", "clicks"),
    Metric("time-before-first-click", "timeBeforeFirstClick", "first_click_s", "click_views"),
)
ZONE_APP = (
    Metric("conversion-rate-per-tap", "conversionRatePerTap", "conversions", "click_views", 100),
    Metric("revenue-per-tap", "revenuePerTap", "revenue", "clicks"),
    Metric("swipe-rate", "swipeRate", "hover_views", "views", 100),
    Metric("swipe-recurrence", "swipeRecurrence", "clicks", "click_views"),
    Metric("tap-rate", "tapRate", "click_views", "views", 100),
    Metric("tap-recurrence", "tapRecurrence", "clicks", "click_views"),
    Metric("time-before-first-tap", "timeBeforeFirstTap", "first_click_s", "click_views"),
)


@dataclass(frozen=True, slots=True)
class Filters:
    """The parameters of a Metrics request; ``end`` is exclusive, the empty ``device`` means all of them."""

    start: datetime
    end: datetime
    device: str
    daily: bool
    segments: tuple[int, ...]
    goal: int | None
    quantile_factor: float

    def days(self) -> Iterator[date]:
        """The days that the range touches, in its own time zone."""
        day = self.start.date()
        while datetime.combine(day, time(), self.end.tzinfo) < self.end:
            yield day
            day += timedelta(days=1)


def add_routes(router: Router) -> None:
    """The paths under ``/v1/metrics``."""
    for path in ("/v1/metrics/site", "/v1/metrics/site/{metric}"):
        router.add("GET", path, site)
    for path in ("/v1/metrics/page-group/{id}", "/v1/metrics/page-group/{id}/{metric}"):
        router.add("GET", path, page_group)
    for path in ("/v1/metrics/zone/{id}", "/v1/metrics/zone/{id}/{metric}"):
        router.add("GET", path, zone)


async def site(call: Call) -> web.Response:
    """Metrics of the whole site."""
    return _answer(call, SITE, SITE, lambda day, device, f: _site_counts(call.project, day, device, f))


async def page_group(call: Call) -> web.Response:
    """Metrics of a page group; ``web-vitals`` holds several."""
    id_ = catalog.own_page_group_id(call.project, call.path["id"])
    known = PAGE_GROUP + WEB_VITALS
    return _answer(
        call, PAGE_GROUP, known, lambda day, device, f: _page_counts(call.project, id_, day, device, f)
    )


async def zone(call: Call) -> web.Response:
    """Metrics of a zone; the app's (taps, swipes) only by their own paths."""
    id_ = catalog.own_zone_id(call.project, call.path["id"])
    known = ZONE + ZONE_APP
    return _answer(call, ZONE, known, lambda day, device, f: _zone_counts(call.project, id_, day, device, f))


def _answer(
    call: Call,
    all_metrics: tuple[Metric, ...],
    known: tuple[Metric, ...],
    counts_of: Callable[[date, str, Filters], Counts],
) -> web.Response:
    catalog.check_project(call)
    filters = _filters(call)
    metrics = _asked(call.path.get("metric"), all_metrics, known)
    currency = _CURRENCY[call.project.cloud]
    values: list[dict[str, object]] = []
    for start, end, days in _periods(filters):
        total = _sum(counts_of(day, device, filters) for day in days for device in _devices(filters))
        values += [
            {
                "startDate": iso(start),
                "endDate": iso(end),
                "value": metric.value(total, filters.quantile_factor),
                "name": metric.name,
                "currency": currency,
            }
            for metric in metrics
        ]
    return success({"values": values})


def _asked(
    wanted: str | None, all_metrics: tuple[Metric, ...], known: tuple[Metric, ...]
) -> tuple[Metric, ...]:
    """The metrics for a sub-path, which may be spelled as in paths or as in answers."""
    if wanted is None:
        return all_metrics
    metrics = tuple(metric for metric in known if wanted in (metric.path, metric.name))
    if not metrics:
        raise not_found(f"No metric {wanted}.")
    return metrics


def _filters(call: Call) -> Filters:
    query = call.query
    start = moment(query.get("startDate"), "startDate")
    end = moment(query.get("endDate"), "endDate")
    if end - start > timedelta(days=MAX_DAYS):
        raise bad_request(f"The date range must not exceed {MAX_DAYS} days.")
    if is_date_alone(query["endDate"]):
        end += timedelta(days=1)
    if start >= end:
        raise bad_request("startDate must be a date prior to endDate.")
    device = query.get("device", "all")
    if device not in ("all", *_DEVICE_SHARE):
        raise bad_request("device must be one of all, desktop, mobile, tablet.")
    period = query.get("period", "")
    if period not in ("", "none", "daily"):
        raise bad_request("period must be none or daily.")
    return Filters(
        start,
        end,
        "" if device == "all" else device,
        period == "daily",
        _segments(call),
        _goal(call),
        _quantile_factor(call),
    )


def _quantile_factor(call: Call) -> float:
    """By how much the wanted quantile differs from the average, where values are spread log-normally."""
    kind = call.query.get("metricType", "average")
    if kind not in ("average", "quantile"):
        raise bad_request("metricType must be average or quantile.")
    quantile = integer(call.query.get("quantile", str(DEFAULT_QUANTILE)), "quantile")
    if not 1 <= quantile <= 99:
        raise bad_request("quantile must be between 1 and 99.")
    if kind == "average":
        return 1.0
    return math.exp(_SPREAD * NormalDist().inv_cdf(quantile / 100) - _SPREAD**2 / 2)


def _segments(call: Call) -> tuple[int, ...]:
    text = call.query.get("segmentIds", "")
    ids = sorted({integer(part.strip(), "segmentIds") for part in text.split(",") if part.strip()})
    for id_ in ids:
        if id_ not in catalog.segment_ids(call.project):
            raise not_found(f"No segment {id_} in this project.")
    return tuple(ids)


def _goal(call: Call) -> int | None:
    text = call.query.get("goalId")
    if not text:
        return None
    id_ = integer(text, "goalId")
    if id_ not in catalog.goal_ids(call.project):
        raise not_found(f"No goal {id_} in this project.")
    return id_


def _periods(filters: Filters) -> Iterator[tuple[datetime, datetime, list[date]]]:
    if not filters.daily:
        yield filters.start, filters.end, list(filters.days())
        return
    for day in filters.days():
        midnight = datetime.combine(day, time(), filters.start.tzinfo)
        yield midnight, midnight + timedelta(days=1), [day]


def _devices(filters: Filters) -> tuple[str, ...]:
    return (filters.device,) if filters.device else tuple(_DEVICE_SHARE)


def _sum(many: Iterator[Counts]) -> Counts:
    total: Counts = {}
    for counts in many:
        for name, amount in counts.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _wobble(spread: float, *what: object) -> float:
    """A factor around 1, at most ``spread`` away from it."""
    return 1 + spread * (2 * noise(*what) - 1)


def _site_counts(project: DemoProject, day: date, device: str, filters: Filters) -> Counts:
    key = project.project_id, day, device, filters.segments
    size = 18000 + 30000 * noise("size", project.project_id)
    season = 1 + 0.18 * math.cos(2 * math.pi * (day.timetuple().tm_yday + 20) / 365.25)
    visits = size * _WEEKDAY[day.weekday()] * season * _DEVICE_SHARE[device] * _wobble(0.06, "visits", *key)
    buying = 0.031 * _DEVICE_CONVERSION[device]
    for segment in filters.segments:
        visits *= 0.08 + 0.5 * noise("share", segment)
        buying *= 0.4 + 1.4 * noise("buying", segment)
    if filters.goal is not None:
        buying = min(0.6, buying * (1 + 8 * noise("goal", filters.goal)))
    visits = float(round(visits))
    conversions = float(round(visits * buying * _wobble(0.12, "buying", *key, filters.goal)))
    return {
        "visits": visits,
        "bounces": float(
            round(visits * (0.52 if device == "mobile" else 0.41) * _wobble(0.05, "bounce", *key))
        ),
        "conversions": conversions,
        "revenue": float(round(conversions * 84 * _wobble(0.1, "cart", *key))),
        "pageviews": float(round(visits * 4.6 * _wobble(0.08, "pages", *key))),
        "session_s": visits * 218 * _wobble(0.08, "time", *key),
    }


def _page_counts(project: DemoProject, id_: int, day: date, device: str, filters: Filters) -> Counts:
    whole = _site_counts(project, day, device, filters)
    key = id_, day, device, filters.segments
    visits = round(whole["visits"] * (0.06 + 0.5 * noise("reach", id_)) * _wobble(0.05, "reach", *key))
    views = round(visits * (1.1 + 0.9 * noise("again", id_)) * _wobble(0.04, "again", *key))
    elapsed_s = views * (20 + 60 * noise("stay", id_)) * _wobble(0.08, "stay", *key)
    page_px = views * (1800 + 5200 * noise("height", id_))
    slowness = (0.7 + 0.9 * noise("slow", id_)) * _wobble(0.07, "slow", *key)
    rates = {
        "unique_visits": visits * 0.86,
        "bounces": visits * 0.35 * _wobble(0.1, "bounce", *key),
        "conversions": whole["conversions"] * 0.6 * noise("assist", id_),
        "exits": views * (0.1 + 0.4 * noise("exit", id_)) * _wobble(0.1, "exit", *key),
        "landings": visits * (0.05 + 0.5 * noise("land", id_)) * _wobble(0.1, "land", *key),
        "active_s": elapsed_s * (0.3 + 0.3 * noise("active", id_)) * _wobble(0.05, "active", *key),
        "fold_px": views * (640 if device == "mobile" else 860),
        "loading_s": views * 1.9 * slowness,
        "scrolled_px": page_px * (0.35 + 0.4 * noise("scroll", id_)) * _wobble(0.05, "scroll", *key),
        "lcp_ms": views * 2300 * slowness,
        "fcp_ms": views * 1300 * slowness,
        "inp_ms": views * 160 * slowness,
        "fid_ms": views * 24 * slowness,
        "ttfb_ms": views * 420 * slowness,
        "shift": views * 0.09 * slowness,
    }
    return {"visits": visits, "views": views, "elapsed_s": elapsed_s, "page_px": page_px, **rates}


def _zone_counts(project: DemoProject, id_: int, day: date, device: str, filters: Filters) -> Counts:
    page = _page_counts(project, catalog.page_group_of(id_), day, device, filters)
    key = id_, day, device, filters.segments
    exposed = page["views"] * (0.25 + 0.75 * noise("seen", id_)) * _wobble(0.04, "seen", *key)
    hovered = exposed * (0.1 + 0.5 * noise("hover", id_)) * _wobble(0.06, "hover", *key)
    clicked = hovered * (0.05 + 0.45 * noise("click", id_)) * _wobble(0.08, "click", *key)
    clicks = round(clicked * (1.05 + 0.5 * noise("again", id_)))
    conversions = clicked * (0.02 + 0.1 * noise("buy", id_)) * _wobble(0.1, "buy", *key)
    return {
        "views": page["views"],
        "exposed_views": exposed,
        "hover_views": hovered,
        "click_views": clicked,
        "clicks": clicks,
        "conversions": conversions,
        "revenue": conversions * 84 * _wobble(0.1, "cart", *key),
        "exposure_s": exposed * (2 + 14 * noise("exposure", id_)) * _wobble(0.05, "exposure", *key),
        "hover_s": hovered * (0.6 + 2.4 * noise("hovering", id_)) * _wobble(0.05, "hovering", *key),
        "hesitation_s": clicked * (0.5 + 2 * noise("hesitate", id_)) * _wobble(0.05, "hesitate", *key),
        "first_click_s": clicked * (3 + 20 * noise("first", id_)) * _wobble(0.05, "first", *key),
    }
