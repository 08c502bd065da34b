"""Figures in, Markdown out. Pure: medians, ratios to ours, and the goals that they are held against."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.load import Workload

_LEGEND = """
`/ ours` is theirs divided by ours; figures are medians of alternating rounds, one peer after the other.
CPU is the kernel's account of the process tree; `spread` is half of what lies between its extremes.
`disturbed` is the share of the time in which something else had the proxy's core.
"""

OURS = "ours"
DIRECT = "direct"

GOALS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "http": {
        "naive": (5, 8),
        "node": (2.2, 3.5),
        "caddy": (2.3, 4),
        "traefik": (1.5, 2.5),
        "envoy": (1.5, 2),
        "nginx": (0.6, 0.75),
    },
    "https": {
        "naive": (4.5, 6),
        "node": (2.5, 4),
        "caddy": (1.9, 3),
        "traefik": (1.3, 2.2),
        "envoy": (1.35, 1.7),
        "nginx": (0.6, 0.75),
    },
}
"""CPU per request, theirs divided by ours, by scheme and peer: goal and stretch goal."""
BULK_GOALS = {"http": 1.0, "https": 1 / 1.3}
"""CPU per GiB, nginx's divided by ours, by scheme."""
START_GOAL_MS = 350
IDLE_GOAL_MIB = 58
HELD_GOAL_MIB = 64
LOG_GOAL = 1.25
"""CPU per request with a request log, divided by without."""
WAIT_GOAL = 1.25
"""CPU per request where requests wait for a slot, divided by where none waits."""
FEW_SLOTS = 10
"""So many slots where requests are to wait: as many as a Contentsquare project has."""
HELD = 1000
"""Callers' connections that are open while memory is looked at."""
FIRST_GOAL = 1.1
"""A first request's time, divided by a later one's."""
BURST_GOAL = 1.5
"""The same of `BURST` at once after a pause."""
BURST = 6
"""So many first requests come at once where a dashboard asks."""


@dataclass(frozen=True, slots=True)
class Round:
    """One load on one peer. ``cpu_us`` is a request's; None where no process is under test."""

    cpu_us: float | None
    rate: float
    p50_ms: float
    p99_ms: float
    failed: int = 0
    disturbed: float = 0.0
    """The share of the time in which others had the proxy's core."""


@dataclass
class Resources:
    """What one peer takes besides; each list has one entry a try."""

    start_s: list[float] = field(default_factory=list)
    start_cpu_s: list[float] = field(default_factory=list)
    idle_mib: float | None = None
    loaded_mib: float | None = None
    held_mib: float | None = None
    download_cpu_s: list[float] = field(default_factory=list)
    upload_cpu_s: list[float] = field(default_factory=list)


@dataclass
class FirstRequests:
    """Milliseconds, an entry a round. ``later_ms`` are medians; of `BURST` at once the slowest counts."""

    first_ms: list[float] = field(default_factory=list)
    later_ms: list[float] = field(default_factory=list)
    idle_ms: list[float] = field(default_factory=list)
    burst_ms: list[float] = field(default_factory=list)
    later_burst_ms: list[float] = field(default_factory=list)
    idle_burst_ms: list[float] = field(default_factory=list)


@dataclass
class Variant:
    """All figures of one set-up: a scheme, with or without request logs; ``waits``: callers outnumber slots.

    ``baseline`` is for those with logs or waits: what peers need without, measured in the same rounds.
    """

    scheme: str
    log: bool
    waits: bool = False
    rounds: dict[Workload, dict[str, list[Round]]] = field(default_factory=dict)
    resources: dict[str, Resources] = field(default_factory=dict)
    baseline: dict[str, list[Round]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        upstream = "TLS" if self.scheme == "https" else "HTTP"
        waits = f", {FEW_SLOTS} slots" if self.waits else ""
        return f"{upstream} upstream, request log {'on' if self.log else 'off'}{waits}"

    def add(self, work: Workload, peer: str, measured: Round) -> None:
        """One more round."""
        self.rounds.setdefault(work, {}).setdefault(peer, []).append(measured)


def median_round(rounds: Sequence[Round]) -> Round:
    """The median of each figure by itself; failures are added up."""
    cpu_us = [each.cpu_us for each in rounds if each.cpu_us is not None]
    return Round(
        cpu_us=statistics.median(cpu_us) if cpu_us else None,
        rate=statistics.median(each.rate for each in rounds),
        p50_ms=statistics.median(each.p50_ms for each in rounds),
        p99_ms=statistics.median(each.p99_ms for each in rounds),
        failed=sum(each.failed for each in rounds),
        disturbed=statistics.median(each.disturbed for each in rounds),
    )


def spread(rounds: Sequence[Round]) -> float | None:
    """Half of what lies between the extremes of the CPU figures, as a share of their median."""
    cpu_us = [each.cpu_us for each in rounds if each.cpu_us is not None]
    return (max(cpu_us) - min(cpu_us)) / 2 / statistics.median(cpu_us) if cpu_us else None


def ratio(theirs: float | None, ours: float | None) -> str:
    """Theirs divided by ours: above 1, ours is the smaller figure."""
    return number(_share(theirs, ours), 2)


def number(value: float | None, digits: int = 1) -> str:
    """A figure for people; "-" where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def load_table(rounds: Mapping[str, Sequence[Round]]) -> str:
    """One workload: each peer's median figures, and their ratios to ours."""
    medians = {peer: median_round(each) for peer, each in rounds.items()}
    ours = medians.get(OURS)
    our_cpu_us, our_rate = (ours.cpu_us, ours.rate) if ours is not None else (None, None)
    rows = []
    for peer, found in medians.items():
        spread_of = spread(rounds[peer])
        rows.append(
            [
                peer + (f" ({found.failed} failed)" if found.failed else ""),
                number(found.cpu_us),
                "-" if spread_of is None else f"±{spread_of:.0%}",
                ratio(found.cpu_us, our_cpu_us),
                number(found.rate, 0),
                ratio(found.rate, our_rate),
                number(found.p50_ms, 3),
                number(found.p99_ms, 3),
                f"{found.disturbed:.0%}",
            ]
        )
    figures = ("CPU µs/request", "spread", "/ ours", "requests/s", "/ ours", "p50 ms", "p99 ms", "disturbed")
    return table(["peer", *figures], rows)


def goal_table(variant: Variant, work: Workload) -> str:
    """What was reached against the goals; CPU per request is that of one workload."""
    medians = {peer: median_round(each).cpu_us for peer, each in variant.rounds.get(work, {}).items()}
    rows = []
    for peer, (goal, stretch) in GOALS[variant.scheme].items():
        reached = _share(medians.get(peer), medians.get(OURS))
        if reached is not None:
            verdict = "stretch" if reached >= stretch else _verdict(reached >= goal)
            rows.append([f"CPU/request, {peer} / ours", number(reached, 2), f"≥ {goal:.2f}", verdict])
    ours, nginx = (variant.resources.get(peer, Resources()) for peer in (OURS, "nginx"))
    for title, theirs, own in (
        ("down", nginx.download_cpu_s, ours.download_cpu_s),
        ("up", nginx.upload_cpu_s, ours.upload_cpu_s),
    ):
        reached = _share(_median(theirs), _median(own))
        if reached is not None:
            goal = BULK_GOALS[variant.scheme]
            verdict = _verdict(reached >= goal)
            rows.append([f"CPU/GiB {title}, nginx / ours", number(reached, 2), f"≥ {goal:.2f}", verdict])
    start_s = _median(ours.start_s)
    for title, value, most in (
        ("start, ms", start_s and start_s * 1000, START_GOAL_MS),
        ("resident idle, MiB", ours.idle_mib, IDLE_GOAL_MIB),
        (f"resident with {HELD} connections, MiB", ours.held_mib, HELD_GOAL_MIB),
    ):
        if value is not None:
            rows.append([title, number(value), f"≤ {most}", _verdict(value <= most)])
    return table(["figure", "reached", "goal", "verdict"], rows) if rows else ""


def _verdict(met: bool) -> str:
    return "goal" if met else "MISSED"


def _share(theirs: float | None, ours: float | None) -> float | None:
    return theirs / ours if theirs is not None and ours else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def resource_table(resources: Mapping[str, Resources]) -> str:
    """Start-up, memory, and what 1 GiB costs, with ratios to ours."""

    def figures(found: Resources) -> list[tuple[float | None, int]]:
        start = [(each and each * 1000, 0) for each in (_median(found.start_s), _median(found.start_cpu_s))]
        memory = [(each, 1) for each in (found.idle_mib, found.loaded_mib, found.held_mib)]
        bulk = [(_median(each), 2) for each in (found.download_cpu_s, found.upload_cpu_s)]
        return [*start, *memory, *bulk]

    ours = figures(resources.get(OURS, Resources()))
    rows = []
    for peer, found in resources.items():
        cells = [peer]
        for (value, digits), (our_value, _) in zip(figures(found), ours, strict=True):
            cells += [number(value, digits), ratio(value, our_value)]
        rows.append(cells)
    memory_titles = ("MiB idle", "MiB after load", f"MiB, {HELD} open")
    titles = ("start ms", "CPU ms", *memory_titles, "CPU s/GiB down", "CPU s/GiB up")
    return table(["peer", *(cell for title in titles for cell in (title, "/ ours"))], rows)


def first_request_table(found: Mapping[str, FirstRequests]) -> str:
    """First requests against later ones: after a start and after a pause, alone and `BURST` at once."""
    rows = []
    for peer, each in found.items():
        cells = [peer]
        for later, first, idle in (
            (each.later_ms, each.first_ms, each.idle_ms),
            (each.later_burst_ms, each.burst_ms, each.idle_burst_ms),
        ):
            later_ms = _median(later)
            cells.append(number(later_ms))
            for times_ms in (first, idle):
                cells += [number(_median(times_ms)), ratio(_median(times_ms), later_ms)]
                cells.append(ratio(max(times_ms, default=None), later_ms))
        rows.append(cells)
    titles = [
        title
        for kind in ("", f"{BURST} ")
        for title in (
            f"{kind}later, ms",
            *(f"{kind}after start, ms", "/ later", "worst / later"),
            *(f"{kind}after the pause, ms", "/ later", "worst / later"),
        )
    ]
    return table(["peer", *titles], rows)


def first_request_section(found: Mapping[str, FirstRequests], conditions: str) -> str:
    """The report of first requests."""
    ours = found.get(OURS, FirstRequests())
    goals = [
        [title, number(reached, 2), f"≤ {most:.2f}", _verdict(reached <= most)]
        for title, times_ms, later_ms, most in (
            ("start", ours.first_ms, ours.later_ms, FIRST_GOAL),
            ("the pause", ours.idle_ms, ours.later_ms, FIRST_GOAL),
            (f"the pause, {BURST} at once", ours.idle_burst_ms, ours.later_burst_ms, BURST_GOAL),
        )
        if (reached := _share(_median(times_ms), _median(later_ms))) is not None
    ]
    parts = ["## First requests", conditions, first_request_table(found)]
    parts.append(table(["first / later after", "reached", "goal", "verdict"], goals))
    return "\n\n".join(part.strip() for part in parts)


def whole(machine: Sequence[str], missing: Sequence[str], parts: Sequence[str]) -> str:
    """The whole report of these parts."""
    head = ["# csq-proxy and its peers", *machine]
    if missing:
        head.append("Not measured: " + "; ".join(missing) + ".")
    return "\n\n".join(part.strip() for part in (*head, *parts)) + "\n"


def sections(variants: Sequence[Variant]) -> list[str]:
    """The report of all loads, the short one first."""
    parts = [_LEGEND, "## CPU per request, side by side", side_by_side(variants)]
    for variant in variants:
        parts.append(f"## {variant.title}")
        for work, rounds in variant.rounds.items():
            parts += [f"### {work.title}", load_table(rounds)]
        if variant.resources:
            parts += ["### Besides", resource_table(variant.resources)]
    for variant in variants:
        work = Workload("GET", 32)
        goals = "" if variant.log or variant.waits else goal_table(variant, work)
        if goals:
            parts += [f"## Goals: {variant.title}, {work.title}", goals]
    logging = [variant for variant in variants if variant.log]
    parts += _cost("What request logs cost", logging, LOG_GOAL, "off", "on")
    waiting = [variant for variant in variants if variant.waits]
    title = f"What it costs that {FEW_SLOTS} slots are too few"
    return parts + _cost(title, waiting, WAIT_GOAL, "enough", "too few")


def side_by_side(variants: Sequence[Variant]) -> str:
    """Ours in microseconds, and each peer divided by ours: a line for each load of each set-up."""
    names = dict.fromkeys(peer for each in variants for rounds in each.rounds.values() for peer in rounds)
    others = [name for name in names if name not in {OURS, DIRECT}]
    rows = []
    for variant in variants:
        for work, rounds in variant.rounds.items():
            cpu_us = {peer: median_round(each).cpu_us for peer, each in rounds.items()}
            ours = cpu_us.get(OURS)
            ratios = [ratio(cpu_us.get(name), ours) for name in others]
            rows.append([f"{variant.title}: {work.title}", number(ours), *ratios])
    return table(["load", "ours, µs", *(f"{name} / ours" for name in others)], rows)


def _cost(title: str, variants: Sequence[Variant], most: float, without: str, having: str) -> list[str]:
    """What something costs: CPU per request with, divided by without, both from the same rounds."""
    rows = []
    for variant in variants:
        for rounds in variant.rounds.values():
            for peer, logged in rounds.items():
                off = median_round(variant.baseline[peer]).cpu_us
                on = median_round(logged).cpu_us
                rows.append([peer, variant.scheme, number(off), number(on), number(_share(on, off), 2)])
    if not rows:
        return []
    goal = f"Goal for ours: at most {most:.2f} times."
    return [f"## {title}", goal, table(["peer", "upstream", without, having, f"{having} / {without}"], rows)]


def count_samples(lines: Iterable[str]) -> tuple[Counter[str], Counter[str], int]:
    """Folded stacks (``outer;inner count``): samples in each function itself, in or below it, and all."""
    own: Counter[str] = Counter()
    below: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        own[frames[-1]] += int(count)
        for frame in set(frames):
            below[frame] += int(count)
    return own, below, own.total()
