"""The bench: ours and its peers side by side on this machine. `run.py --help` tells how.

The proxy under test has a core to itself; load and upstream share another. All instances of a set-up run
at once and are loaded in turn (A B A B ...), so that what disturbs the machine disturbs all. Installs
nothing: what is missing is named with its package, and left out.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

# Below, in place of this script's folder, whose profile.py would hide the standard library's.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import first_request, load, peers, report
from bench.load import Target, Workload
from bench.peers import OURS, PEERS, SOURCE, Peer
from bench.processes import Server, StartError, busy_s, cpu_s, resident_mib, this_process_on
from bench.report import DIRECT, FEW_SLOTS, HELD, Resources, Round, Variant
from bench.upstream import CONTENT_BYTES, Cloud, clouds

REPOSITORY = Path(__file__).resolve().parents[3]
WORK = [Workload(method, connections) for method in ("GET", "POST") for connections in (1, 32)]
BUSY_GET = Workload("GET", 32)
QUICK_PEERS = ("naive", "envoy")
TOOLS = {"nginx": "nginx-light", "wrk": "wrk", "taskset": "util-linux", "setpriv": "util-linux"}
"""What the bench itself can't do without, and Debian's package of it."""
FIRST_ANSWER_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured, and how thoroughly. ``ours`` is the tree that ours runs from."""

    peers: Sequence[Peer]
    source: Path
    ours: Path
    seconds: float
    rounds: int
    schemes: Sequence[str]
    work: Sequence[Workload]
    bulk: bool
    logs: bool
    waits: bool
    starts: int
    direct: bool


@dataclass(frozen=True, slots=True)
class Setup:
    """The settings that all peers of a round share: with their logs or without, and how many slots."""

    log: bool = False
    slots: int = peers.MANY_SLOTS


QUIET = Setup()


@dataclass(frozen=True, slots=True)
class Running:
    """An instance under test; ``server`` is None for the upstream itself."""

    name: str
    server: Server | None
    target: Target


@dataclass(frozen=True, slots=True)
class Stage:
    """Where everything happens."""

    folder: Path
    script: Path
    proxy_core: int
    load_core: int


def say(text: str) -> None:
    """A word on what is going on, apart from the report."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run what was asked for and print the report."""
    options = _options()
    lacking = {package for tool, package in TOOLS.items() if peers.which(tool) is None}
    if lacking:
        say(f"The bench needs Debian's {', '.join(sorted(lacking))}: apt-get install them.")
        return 2
    chosen = list(dict.fromkeys(["ours", *options.peers.split(",")])) if options.peers else list(PEERS)
    if options.quick and not options.peers:
        chosen = ["ours", *QUICK_PEERS]
    if options.first_request and not options.peers:
        chosen = ["ours", *first_request.PEERS]
    if options.wheel and SOURCE.name not in chosen:
        chosen.insert(1, SOURCE.name)
    elif not options.wheel:
        chosen = [name for name in chosen if name != SOURCE.name]
    if unknown := [name for name in chosen if name not in {*PEERS, DIRECT}]:
        say(f"Unknown peers: {', '.join(unknown)}; there are {', '.join((*PEERS, DIRECT))}.")
        return 2
    # A thousand held connections have two ends each, here and in a peer.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    found, missing = _found([PEERS[name] for name in chosen if name in PEERS])
    plan = Plan(
        peers=found,
        source=options.source.resolve(),
        ours=_unpacked(options.wheel) if options.wheel else options.source.resolve(),
        seconds=options.seconds,
        rounds=options.rounds,
        schemes=("http",) if options.quick else options.schemes.split(","),
        work=(BUSY_GET,) if options.quick else WORK,
        bulk=not options.quick and not options.no_bulk,
        logs=not options.quick and not options.no_logs,
        waits=not options.quick and not options.no_waits,
        starts=3 if options.quick else 5,
        direct=DIRECT in chosen or not (options.quick or options.peers),
    )
    if options.first_request:
        text = _first_requests(plan, options.idle, options.cloud_idle)
        text = report.whole(_machine(found), missing, [text])
    else:
        parts = report.sections(_measured(plan))
        if not options.quick and not options.no_first:
            few = [PEERS[name] for name in ("ours", *first_request.PEERS) if PEERS[name] in found]
            parts.append(_first_requests(replace(plan, peers=few), options.idle, options.cloud_idle))
        text = report.whole(_machine(found), missing, parts)
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0


def _first_requests(plan: Plan, idle_s: float, cloud_idle_s: int) -> str:
    with tempfile.TemporaryDirectory(prefix="csq-bench-") as name:
        stage = stage_in(Path(name))
        with this_process_on(stage.load_core):
            asked = first_request.Plan(plan.peers, plan.rounds, idle_s, cloud_idle_s)
            found = first_request.measured(
                asked,
                stage.folder,
                stage.load_core,
                lambda peer, cloud: _server(plan, stage, cloud, peer, QUIET),
                say,
            )
    return report.first_request_section(found, asked.conditions)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="under a minute: naive and envoy, HTTP, GET")
    parser.add_argument(
        "--peers", default="", help=f"some of {','.join((*PEERS, DIRECT))}; ours is always in"
    )
    parser.add_argument(
        "--first-request",
        action="store_true",
        help="only what a first request costs at a round trip of 50 ms: about 25 s a round",
    )
    parser.add_argument(
        "--idle", type=float, default=12, help="seconds of its pause, 3700 for a real hour (default: 12)"
    )
    parser.add_argument(
        "--cloud-idle", type=int, default=5, help="seconds after which its upstream hangs up (default: 5)"
    )
    parser.add_argument("--seconds", type=float, default=2, help="of one load (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="loads of each kind on each peer (default: 3)")
    parser.add_argument("--schemes", default="http,https", help="of the upstream (default: http,https)")
    parser.add_argument("--no-bulk", action="store_true", help="no transfers of 1 GiB")
    parser.add_argument("--no-logs", action="store_true", help="nothing with request logs")
    parser.add_argument("--no-waits", action="store_true", help="nothing with more callers than slots")
    parser.add_argument("--no-first", action="store_true", help="no first requests")
    parser.add_argument("--source", type=Path, default=REPOSITORY, help="the tree whose proxy/ is run")
    parser.add_argument(
        "--wheel",
        type=Path,
        help="a compiled wheel of ours (CSQ_PROXY_COMPILE=1 pip wheel .), beside the source",
    )
    parser.add_argument("--out", type=Path, help="write the report to this file as well")
    return parser.parse_args()


def _unpacked(wheel: Path) -> Path:
    folder = tempfile.mkdtemp(prefix="csq-bench-wheel-")
    atexit.register(shutil.rmtree, folder)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return Path(folder)


def _found(wanted: Sequence[Peer]) -> tuple[list[Peer], list[str]]:
    found = [peer for peer in wanted if peer.find() is not None]
    missing = [f"{peer.name} (needs {peer.package})" for peer in wanted if peer not in found]
    for text in missing:
        say(f"left out: {text}")
    return found, missing


def _machine(found: Sequence[Peer]) -> list[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    versions = ", ".join(f"{peer.name} {peer.version(peer.find() or '')}" for peer in found)
    cores = len(os.sched_getaffinity(0))
    return [f"{model}, {cores} cores; {platform.system()} {platform.release()}.", f"Versions: {versions}."]


def stage_in(folder: Path) -> Stage:
    """The cores, and what the load needs, in that folder."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        say("Only one core: the load takes time from the proxy, and rates mean little.")
    return Stage(folder, load.write_script(folder), cores[0], cores[-1])


def _measured(plan: Plan) -> list[Variant]:
    variants = []
    with tempfile.TemporaryDirectory(prefix="csq-bench-") as name:
        stage = stage_in(Path(name))
        with this_process_on(stage.load_core), clouds(stage.folder, stage.load_core) as both:
            for cloud in (each for each in both if each.scheme in plan.schemes):
                variants.append(_quiet(plan, stage, cloud))
                if plan.logs:
                    variants.append(_beside_quiet(plan, stage, cloud, Setup(log=True)))
                if plan.waits:
                    queueing = replace(plan, peers=[peer for peer in plan.peers if peer.queues])
                    variants.append(_beside_quiet(queueing, stage, cloud, Setup(slots=FEW_SLOTS)))
    return variants


def _quiet(plan: Plan, stage: Stage, cloud: Cloud) -> Variant:
    variant = Variant(cloud.scheme, log=False)
    for peer in plan.peers:
        variant.resources[peer.name] = Resources()
        with contextlib.suppress(StartError):  # it is said where it is started for the load
            for _ in range(plan.starts):
                with _server(plan, stage, cloud, peer, QUIET) as server:
                    variant.resources[peer.name].start_s.append(server.start_s)
                    variant.resources[peer.name].start_cpu_s.append(server.start_cpu_s)
    with _all_running(plan, stage, cloud, QUIET) as running:
        for each in running:
            if each.server is not None:
                variant.resources[each.name].idle_mib = resident_mib(each.server.pid)
        _load(plan, stage, [(variant, each) for each in running], plan.work)
        for each in running:
            if each.server is not None:
                _weigh(variant.resources[each.name], each.target, each.server.pid)
        if plan.bulk:
            _transfer(plan, variant, running)
    return variant


def _weigh(found: Resources, target: Target, pid: int) -> None:
    found.loaded_mib = resident_mib(pid)
    with load.held_open(target, HELD):
        found.held_mib = resident_mib(pid)


def _beside_quiet(plan: Plan, stage: Stage, cloud: Cloud, setup: Setup) -> Variant:
    """Every peer twice, in this set-up and in the quiet one, in the same rounds."""
    variant = Variant(cloud.scheme, log=setup.log, waits=setup.slots == FEW_SLOTS)
    without = Variant(cloud.scheme, log=False)
    with (
        _all_running(plan, stage, cloud, setup) as special,
        _all_running(plan, stage, cloud, QUIET) as quiet,
    ):
        instances = [(variant, each) for each in special] + [(without, each) for each in quiet]
        order = [each.name for each in special]
        pairs = [(account, each) for account, each in instances if each.name in order]
        _load(plan, stage, sorted(pairs, key=lambda pair: order.index(pair[1].name)), (BUSY_GET,))
    variant.baseline = without.rounds[BUSY_GET]
    return variant


def _server(plan: Plan, stage: Stage, cloud: Cloud, peer: Peer, setup: Setup) -> Server:
    source = plan.ours if peer is OURS else plan.source
    job = peers.job(peer, stage.folder, cloud, log=setup.log, source=source, slots=setup.slots)
    return peer.server(job, stage.proxy_core)


@contextlib.contextmanager
def _all_running(plan: Plan, stage: Stage, cloud: Cloud, setup: Setup) -> Iterator[list[Running]]:
    with contextlib.ExitStack() as stack:
        running = []
        if plan.direct and setup == QUIET:
            target = Target(cloud.port, is_tls=cloud.is_tls, authorized=True)
            running.append(Running(DIRECT, None, target))
        for peer in plan.peers:
            try:
                server = stack.enter_context(_server(plan, stage, cloud, peer, setup))
                _check(peer.name, Target(server.port))
            except (StartError, load.LoadError) as exc:
                say(f"left out: {peer.name} over {cloud.scheme}: {exc}")
                if peer is OURS:
                    raise SystemExit(1) from None
            else:
                running.append(Running(peer.name, server, Target(server.port)))
        yield running


def _check(name: str, target: Target) -> None:
    """It does the job: the upstream's answer comes, so the token was put in. The first one may take time."""
    give_up_at = time.monotonic() + FIRST_ANSWER_WAIT_S
    while (answer := load.fetch(target)) != (200, CONTENT_BYTES):
        if time.monotonic() > give_up_at:
            raise load.LoadError(f"{name} answered {answer[0]} with {answer[1]} bytes")
        time.sleep(0.1)


def _load(
    plan: Plan, stage: Stage, instances: Sequence[tuple[Variant, Running]], work: Sequence[Workload]
) -> None:
    """Rounds of each kind of work, one instance after the other, each to its own account."""
    for account, each in instances:
        _round(
            stage, each, BUSY_GET, plan.seconds / 2, f"{each.name}-{account.log:d}{account.waits:d}-warm-up"
        )
    for kind in work:
        for count in range(plan.rounds):
            say(f"{instances[0][0].title}: {kind.title}, round {count + 1} of {plan.rounds}")
            for account, each in instances:
                run = f"{each.name}-{account.log:d}{account.waits:d}-{count}"
                account.add(kind, each.name, _round(stage, each, kind, plan.seconds, run))


def _round(stage: Stage, running: Running, work: Workload, seconds: float, run: str) -> Round:
    core = stage.proxy_core
    before, busy_before, begun_at = _cpu_s(running), busy_s(core), time.monotonic()
    sample = load.run_wrk(stage.script, running.target, work, seconds=seconds, run=run, core=stage.load_core)
    used_s, core_used_s = _cpu_s(running) - before, busy_s(core) - busy_before
    took_s = time.monotonic() - begun_at
    return Round(
        cpu_us=used_s / sample.requests * 1e6 if running.server is not None and sample.requests else None,
        rate=sample.requests / sample.seconds,
        p50_ms=sample.p50_ms,
        p99_ms=sample.p99_ms,
        failed=sample.refused + sample.broken,
        disturbed=max(0.0, core_used_s - used_s) / took_s,
    )


def _cpu_s(running: Running) -> float:
    return cpu_s(running.server.pid) if running.server is not None else 0.0


def _transfer(plan: Plan, variant: Variant, running: Sequence[Running]) -> None:
    for count in range(plan.rounds):
        say(f"{variant.title}: 1 GiB down and up, round {count + 1} of {plan.rounds}")
        for each in (each for each in running if each.server is not None):
            found = variant.resources[each.name]
            for transfer, figures in (
                (load.download, found.download_cpu_s),
                (load.upload, found.upload_cpu_s),
            ):
                before = _cpu_s(each)
                try:
                    transfer(each.target)
                except (OSError, load.LoadError) as exc:
                    say(f"{each.name}: {transfer.__name__} failed: {exc}")
                else:
                    figures.append(_cpu_s(each) - before)


if __name__ == "__main__":
    sys.exit(main())
