"""``csq-proxy wait``: until the running proxy is ready, for scripts that start a program after it."""

from __future__ import annotations

import time

from proxy.cli.console import fail
from proxy.cli.running_proxy import TIMEOUT_S, RunningProxy, Unreachable

EVERY_S = 0.25
"""The time between two looks."""


def wait(place: RunningProxy, timeout_s: float) -> None:
    """Return when ``/-/ready`` is answered with 200; exit with 1 if that takes longer than ``timeout_s``.

    A proxy that isn't there yet is waited for. One that refuses the question ends the wait at once.
    """
    end = time.monotonic() + timeout_s
    while True:
        try:
            answer = place.call("GET", "/-/ready", timeout_s=min(TIMEOUT_S, max(timeout_s, EVERY_S)))
        except Unreachable as error:
            why = str(error)
        else:
            if answer.status == 200 and b'"ready":' in answer.content:
                return
            if answer.status == 200:  # a web server that answers each path with a page of its own
                fail((str(place.stranger()),), 1)
            if answer.status < 500:
                fail((str(place.refused(answer)),), 1)
            why = f"{place.url}: not ready; see csq-proxy status"
        if (left_s := end - time.monotonic()) <= 0:
            fail((f"{why} (waited {timeout_s:g} s)",), 1)
        time.sleep(min(EVERY_S, left_s))
