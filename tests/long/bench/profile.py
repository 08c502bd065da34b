"""Where ours spends its time under load: `profile.py [--tls] [--post] [--native] [--cprofile]`.

Shares of py-spy's samples (PyPI), times the CPU per request of the same load without a profiler, are
microseconds a request. py-spy looks without stopping the proxy, so a few samples mix two stacks; --native
shows C functions as well, but stops it, which makes system calls look dear. Without py-spy, or with
--cprofile, it is cProfile, which makes calls dear, but counts them. Read all for their order, not for digits.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import pstats
import subprocess
import sys
import tempfile
from pathlib import Path

# Below, in place of this script's folder, where this very file would hide the standard library's profile.
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import load, peers
from bench.load import Sample, Target, Workload
from bench.processes import Server, cpu_s, kernel_share, this_process_on
from bench.report import count_samples, table
from bench.run import REPOSITORY, Stage, stage_in
from bench.upstream import clouds

TOP = 30
RATE_HZ = 400


def main() -> None:
    """Profile ours under one load and print the top functions."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="csq-profile-") as name:
        stage = stage_in(Path(name))
        with this_process_on(stage.load_core), clouds(stage.folder, stage.load_core) as (plain, tls):
            cloud = tls if options.tls else plain
            job = peers.job(peers.OURS, stage.folder, cloud, log=options.log, source=options.source.resolve())
            work = Workload("POST" if options.post else "GET", options.connections)
            spy = None if options.cprofile else peers.which("py-spy")
            if spy is None:
                print(_traced(stage, job, work, options.seconds))
            else:
                print(_sampled(spy, stage, job, work, options.seconds, native=options.native))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--tls", action="store_true", help="the upstream over TLS")
    parser.add_argument("--post", action="store_true", help="POST 1 KiB instead of GET")
    parser.add_argument("--log", action="store_true", help="with the request log")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--native", action="store_true", help="py-spy: C functions as well")
    parser.add_argument("--cprofile", action="store_true", help="cProfile even where py-spy is")
    parser.add_argument("--source", type=Path, default=REPOSITORY, help="the tree whose proxy/ is run")
    return parser.parse_args()


def _loaded(stage: Stage, server: Server, work: Workload, seconds: float, run: str) -> tuple[Sample, float]:
    before = cpu_s(server.pid)
    target = Target(server.port)
    load.fetch(target)
    sample = load.run_wrk(stage.script, target, work, seconds=seconds, run=run, core=stage.load_core)
    return sample, (cpu_s(server.pid) - before) / sample.requests * 1e6


def _sampled(spy: str, stage: Stage, job: peers.Job, work: Workload, seconds: float, *, native: bool) -> str:
    raw = stage.folder / "samples"
    command = [spy, "record", "--format", "raw", "--function", "--rate", str(RATE_HZ), "-o", str(raw)]
    with peers.OURS.server(job, stage.proxy_core) as server:
        _loaded(stage, server, work, 1, "warm-up")
        _, cpu_us = _loaded(stage, server, work, max(2, seconds / 2), "plain")
        kernel = kernel_share(server.pid)
        command += ["--duration", str(round(seconds)), "--pid", str(server.pid)]
        spying = subprocess.Popen(
            [*command, "--native" if native else "--nonblocking"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        _loaded(stage, server, work, seconds + 1, "sampled")
        _, errors = spying.communicate(timeout=60)
    if not raw.exists():
        return f"py-spy took no samples: {errors}"
    own, below, total = count_samples(raw.read_text().splitlines())
    rows = [
        [name, f"{count / total:.1%}", f"{cpu_us * count / total:.2f}", f"{cpu_us * below[name] / total:.2f}"]
        for name, count in own.most_common(TOP)
    ]
    title = (
        f"{cpu_us:.1f} µs/request ({work.title}, {job.cloud.scheme}), {kernel:.0%} of it in the kernel;"
        f" {total} samples\n\n"
    )
    return title + table(["function", "itself", "µs/request", "with what it calls"], rows)


def _traced(stage: Stage, job: peers.Job, work: Workload, seconds: float) -> str:
    raw = stage.folder / "profile"
    launch = peers.launch_ours(sys.executable, job)
    python, *rest = launch.command
    with Server(
        [python, "-m", "cProfile", "-o", str(raw), *rest],
        port=job.port,
        core=stage.proxy_core,
        env=launch.env,
        log=stage.folder / "output.log",
        cwd=stage.folder,
    ) as server:
        sample, cpu_us = _loaded(stage, server, work, seconds, "traced")
    stats = pstats.Stats(str(raw), stream=(out := io.StringIO()))
    stats.sort_stats("tottime").print_stats(TOP)
    calls = getattr(stats, "total_calls", 0) / sample.requests
    return f"{cpu_us:.1f} µs/request with cProfile, {calls:.0f} calls/request\n{out.getvalue()}"


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
