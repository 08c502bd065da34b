"""What the Speed Analysis Lab says of a page: reports, their averages, HAR files, tips.

A report's id says of what and when it is, such as ``monitoring-4201-1767225600``, so a report that a list
names is the same wherever it is asked for. Any other id is a report of an analysis, of a fixed day.
Times are in milliseconds, weights in bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from proxy.sandbox.catalog import noise
from proxy.sandbox.options import DemoProject
from proxy.sandbox.parameters import iso

PAGES = ("Home", "Category", "Product", "Cart", "Checkout", "Search")
PRESENT = datetime(2026, 1, 1, tzinfo=UTC)
"""The fixed day that counts as today: the same request has the same answer."""

_LAB = "https://speed-lab.example"
_LOCATIONS = ("Paris", "London", "Frankfurt", "Virginia")
_DATED = re.compile(r"(monitoring|scenario)-(\d{1,12})-(\d{1,10})", re.ASCII)
_TIPS = (
    ("Compress images", "Some images could be half their size.", "Data quantity", 2),
    ("Use HTTP caching", "Some answers have no Cache-Control field.", "Cache policy", 3),
    ("Load scripts later", "Scripts in the head delay the first paint.", "Browser rendering", 1),
)
_USUAL = {
    "firstByte": 310,
    "startRender": 1050,
    "firstContentfulPaint": 1100,
    "largestContentfulPaint": 2100,
    "totalBlockingTime": 180,
    "speedIndex": 2400,
    "domInteractive": 1500,
    "visuallyComplete": 3900,
}


@dataclass(frozen=True, slots=True)
class Report:
    """One report; ``subject`` is what it is of, the same for all reports of one monitoring."""

    project: DemoProject
    id: str
    subject: str
    page: int
    when: datetime

    @classmethod
    def named(cls, project: DemoProject, id_: str) -> Report:
        """The report with this id."""
        match = _DATED.fullmatch(id_)
        if match is None:
            return cls(project, id_, f"analysis {id_}", 0, PRESENT)
        kind, number, seconds = match.groups()
        when = datetime.fromtimestamp(int(seconds), UTC)
        return cls(project, id_, f"{kind} {number}", (int(number) - 1) % 100 % len(PAGES), when)

    @classmethod
    def of(cls, project: DemoProject, kind: str, number: int, when: datetime = PRESENT) -> Report:
        """The report of a monitoring or scenario at a moment."""
        return cls.named(project, f"{kind}-{number}-{int(when.timestamp())}")

    def in_list(self) -> dict[str, object]:
        """The report as lists of reports show it: clients read its figures in ``summary``, or beside it."""
        summary = self.summary()
        return {"id": self.id, **self._addresses(), **summary, "summary": summary, "timings": self.timings()}

    def whole(self, *, metrics_only: bool, ids_for_tips: bool) -> dict[str, object]:
        """The report itself; without tips, categories and technologies where ``metrics_only``."""
        report = {
            **self._addresses(),
            "url": url_of(self.page),
            "lang": "en",
            "config": config(self.subject, self.page) | {"adblock": False},
            "summary": self.summary(),
            "timings": self.timings(),
        }
        if metrics_only:
            return report
        tips = [
            {"name": name, "advice": advice, "category": category, "priority": priority}
            for name, advice, category, priority in _TIPS
            if noise("tip", self.subject, name) < 0.7
        ]
        if ids_for_tips:
            tips = [{"id": str(tip["name"]).lower().replace(" ", "-"), **tip} for tip in tips]
        categories = [{"name": name} for name in sorted({str(tip["category"]) for tip in tips})]
        return {**report, "tips": tips, "categories": categories, "technos": [{"name": "Shop engine"}]}

    def summary(self) -> dict[str, int]:
        """The figures of the whole page."""
        slowness = self._slowness()
        return {
            "score": max(1, round(100 - 38 * slowness)),
            "loadTime": round(4300 * slowness),
            "weight": round(1_900_000 * slowness),
            "requests": round(84 * slowness),
        }

    def timings(self) -> dict[str, float]:
        """The moments of the page's loading; ``cumulativeLayoutShift`` is no time."""
        slowness = self._slowness()
        times = {name: round(usual * slowness) for name, usual in _USUAL.items()}
        return {**times, "cumulativeLayoutShift": round(0.08 * slowness, 4)}

    def _addresses(self) -> dict[str, object]:
        segment = quote(self.id, safe="", errors="replace")
        return {
            "publicReportUrl": f"{_LAB}/en/report/{segment}",
            "harFileUrl": f"{_LAB}/download/harFile/{segment}",
            "date": unix_ms(self.when),
        }

    def _slowness(self) -> float:
        project_id = self.project.project_id
        lasting = noise("base", project_id, self.subject)
        return 0.7 + 0.5 * lasting + 0.2 * noise("slow", project_id, self.subject, self.when)


def statistics(reports: list[Report]) -> dict[str, object]:
    """The averages of reports; all are 0 where there is none."""
    summaries = [report.summary() for report in reports]
    timings = [report.timings() for report in reports]

    def average(values: list[float]) -> float:
        return round(sum(values) / max(1, len(values)), 4)

    return {
        "averageScore": average([summary["score"] for summary in summaries]),
        "averageLoadTime": average([summary["loadTime"] for summary in summaries]),
        "averageRequests": average([summary["requests"] for summary in summaries]),
        "averageWeight": average([summary["weight"] for summary in summaries]),
        "averageTimings": {
            name: average([one[name] for one in timings]) for name in (*_USUAL, "cumulativeLayoutShift")
        },
    }


def config(subject: str, page: int) -> dict[str, object]:
    """How a page is tested."""
    return {
        "location": _LOCATIONS[int(noise("location", subject) * len(_LOCATIONS))],
        "browser": {"name": "Chrome", "version": "131"},
        "isMobile": page % 2 == 1,
        "bandwidth": {"upstream": 5000, "downstream": 20000},
        "latency": 40,
        "isPrivate": False,
        "screen": {"height": 1080, "width": 1920},
        "basicAuth": {"user": "", "password": ""},
        "postData": [],
        "header": [],
        "blacklist": [],
        "whiteList": [],
        "dnsMapping": [],
        "cookies": [],
        "repeatedView": False,
        "hhtp2Disabled": False,
        "animationsStopped": {},
    }


def url_of(page: int) -> str:
    """The address of a page."""
    return f"https://shop.example/{PAGES[page].lower()}"


def unix_ms(when: datetime) -> int:
    """Milliseconds since 1970, as dates of reports are given."""
    return int(when.timestamp() * 1000)


def har(key: str) -> dict[str, object]:
    """A HAR 1.2 file."""
    page = {
        "startedDateTime": iso(PRESENT),
        "id": "page_1",
        "title": "Shop",
        "pageTimings": {"onLoad": 1840},
    }
    log = {
        "version": "1.2",
        "creator": {"name": "csq-proxy sandbox", "version": "1"},
        "pages": [page],
        "entries": [_har_entry(key, number) for number in range(12)],
    }
    return {"log": log}


def _har_entry(key: str, number: int) -> dict[str, object]:
    time_ms = round(20 + 300 * noise("har", key, number), 1)
    size = round(2000 + 90000 * noise("size", key, number))
    url = f"https://shop.example/assets/{number}.js" if number else "https://shop.example/"
    return {
        "pageref": "page_1",
        "startedDateTime": iso(PRESENT + timedelta(milliseconds=40 * number)),
        "time": time_ms,
        "request": {
            "method": "GET",
            "url": url,
            "httpVersion": "h2",
            "headers": [],
            "queryString": [],
            "cookies": [],
            "headersSize": -1,
            "bodySize": 0,
        },
        "response": {
            "status": 200,
            "statusText": "OK",
            "httpVersion": "h2",
            "headers": [],
            "cookies": [],
            "content": {"size": size, "mimeType": "text/html"},
            "redirectURL": "",
            "headersSize": -1,
            "bodySize": size,
        },
        "cache": {},
        "timings": {"send": 0, "wait": round(time_ms * 0.7, 1), "receive": round(time_ms * 0.3, 1)},
    }
