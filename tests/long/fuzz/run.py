"""Fuzzes what reads bytes from outside: the parsers, the rules about targets, token answers, quoted texts.

    python tests/long/fuzz/run.py --seconds 300 [--target requests|responses|policy|tokens|leaks|quotes]

Where atheris is installed (`pip install atheris`), coverage of ``proxy`` guides the inputs. Elsewhere
hypothesis makes them, and looks for those that take the most time for each byte. The targets share the
seconds.
An input fails that breaks an invariant of `fuzz/targets.py` or takes too long for its length. Prints such an
input for ``--replay``, and exits with 1.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[level]) for level in (1, 2, 3)]

NAMES = ("requests", "responses", "policy", "tokens", "leaks", "quotes")
AT_MOST_S, AT_MOST_S_A_BYTE = 0.1, 20e-6
"""The CPU time of an input; measuring coverage makes all code several times as slow."""
TRIES = 3
"""The least of so many measurements counts."""
GRACE_S = 300.0
"""After its time, a target's process may take so long to end, on a busy machine."""


def guide() -> Any:
    """Atheris, which measures the coverage of ``proxy`` from now on; None where it isn't installed."""
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        return None
    with atheris.instrument_imports(include=["proxy"]):
        importlib.import_module("fuzz.targets")
    return atheris


def timed(run: Callable[[bytes], None], data: bytes) -> float:
    """CPU seconds that this input takes. Raises AssertionError where they are too many."""
    limit_s = AT_MOST_S + AT_MOST_S_A_BYTE * len(data)
    taken_s = 0.0
    for _ in range(TRIES):
        began = time.thread_time()
        run(data)
        taken_s = time.thread_time() - began
        if taken_s <= limit_s:
            return taken_s
    raise AssertionError(f"{len(data)} bytes took {taken_s:.3f} s of CPU time")


def by_coverage(atheris: Any, name: str, seconds: float, folder: Path) -> None:
    """Fuzz one target, and end the process."""
    from support.mutations import mutate  # noqa: PLC0415

    from fuzz.targets import TARGETS  # noqa: PLC0415 - after atheris

    target = TARGETS[name]
    corpus, words = folder / "corpus", folder / "words"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(seed)
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words)
    words.write_text("".join(f'"{word}"\n' for word in escaped))

    def once(data: bytes) -> None:
        try:
            timed(target.run, data)
        except BaseException:
            print(f"--target {name} --replay {base64.b64encode(data).decode()}", flush=True)
            raise

    def change(data: bytes, most_bytes: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, most_bytes))
        return mutate(rng, data, target.words, target.seeds)[:most_bytes]

    limits = [f"-max_total_time={max(1, int(seconds))}", f"-max_len={target.max_bytes}", "-timeout=20"]
    arguments = [sys.argv[0], str(corpus), f"-dict={words}", f"-artifact_prefix={folder}/", *limits]
    atheris.Setup(arguments, once, custom_mutator=change)
    atheris.Fuzz()


def by_examples(name: str, seconds: float) -> None:
    """Fuzz one target with hypothesis's examples."""
    import hypothesis  # noqa: PLC0415 - only where atheris isn't installed
    from hypothesis import strategies as st  # noqa: PLC0415

    from fuzz.targets import TARGETS  # noqa: PLC0415

    target = TARGETS[name]
    parts = st.one_of(*map(st.sampled_from, (target.seeds, target.words)), st.binary(max_size=16))
    cut = st.tuples(parts, st.integers(0, 64), st.integers(0, 64)).map(
        lambda one: one[0][one[1] :][: -one[2] or None]
    )
    inputs = st.lists(st.one_of(parts, cut), min_size=1, max_size=12).map(b"".join)
    ends_at, count, failed = time.monotonic() + seconds, 0, b""

    @hypothesis.settings(
        max_examples=1000, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(inputs)
    def once(data: bytes) -> None:
        nonlocal count, failed
        count += 1
        data = data[: target.max_bytes]
        try:
            hypothesis.target(1e6 * timed(target.run, data) / (100 + len(data)))
        except BaseException:
            failed = data
            raise

    try:
        while time.monotonic() < ends_at:
            once()
    except BaseException:
        print(f"--target {name} --replay {base64.b64encode(failed).decode()}", flush=True)
        raise
    print(f"DONE {count} examples of hypothesis")


def all_of(names: tuple[str, ...], seconds: float) -> int:
    """Fuzz each target in a process of its own, which atheris would end; the exit code."""
    bad = 0
    for name in names:
        command = [
            sys.executable,
            __file__,
            "--seconds",
            str(seconds / len(names)),
            "--target",
            name,
            "--inside",
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds + GRACE_S, check=False
        )
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "DONE" in line]
        print(f"{name}: {lines[-1].strip() if lines else 'failed'}", flush=True)
        if done.returncode:
            bad = 1
            said = [line for line in (done.stdout + done.stderr).splitlines() if line[:1] != "#"]
            print(*said[-100:], sep="\n", flush=True)
    return bad


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--target", choices=NAMES)
    parser.add_argument("--replay", metavar="BASE64", help="run the target once, with this input")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.target is None or not (options.inside or options.replay is not None):
        return all_of(NAMES if options.target is None else (options.target,), options.seconds)
    if options.replay is not None:
        from fuzz.targets import TARGETS  # noqa: PLC0415 - atheris comes before it elsewhere

        timed(TARGETS[options.target].run, base64.b64decode(options.replay))
        return 0
    atheris = guide()
    if atheris is None:
        by_examples(options.target, options.seconds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            by_coverage(atheris, options.target, options.seconds, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
