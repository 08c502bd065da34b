"""A simulated Contentsquare over real HTTP: an authentication host, two clouds, Enrichment, storage.

For demos, for developing a dashboard without credentials, and for this program's own tests. The
sandbox knows nothing of the proxy and speaks only HTTP. Data are made up, plausible and always the same
for the same request; only export jobs and Speed Analysis events are remembered, in memory::

    async with Sandbox(SandboxOptions(token_lifetime_s=5)) as sandbox:
        print(sandbox.auth_url, sandbox.projects["demo-eu"].client_id)

Beyond the vendor's API there are a few test aids below ``/v1/x-sandbox/``, see `proxy.sandbox.aids`.
"""

from __future__ import annotations

from proxy.sandbox.aids import bytes_sha256
from proxy.sandbox.app import Sandbox
from proxy.sandbox.options import Counters, DemoAccount, DemoProject, SandboxOptions

__all__ = ["Counters", "DemoAccount", "DemoProject", "Sandbox", "SandboxOptions", "bytes_sha256"]
