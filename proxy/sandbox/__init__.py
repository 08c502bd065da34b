"""A simulated Contentsquare over real HTTP: an authentication host, two clouds, Enrichment, storage.

`app` runs the hosts, `tokens` issues tokens, `wire` has the form of answers, `aids` are for tests, the others
simulate the APIs. `schemas/` has the shapes of all answers, written from the vendor's facts; tests hold the
answers against them. Knows nothing of the proxy. The data are made up, and the same for the same request.
"""

from __future__ import annotations

from proxy.sandbox.aids import bytes_sha256
from proxy.sandbox.app import Sandbox
from proxy.sandbox.options import Counters, DemoAccount, DemoProject, SandboxOptions

__all__ = ["Counters", "DemoAccount", "DemoProject", "Sandbox", "SandboxOptions", "bytes_sha256"]
