"""A running proxy before the sandbox, with a project ``shop`` and an account ``acme``."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from support.harness import WAIT_S

from proxy.app.app import App
from proxy.config.load import load
from proxy.sandbox import Sandbox

JOB = {
    "name": "test",
    "format": "CSV",
    "scope": "views",
    "frequency": {"value": "once", "dateRange": {"from": "2026-05-01", "to": "2026-05-02"}},
    "fields": [{"fieldName": "device_id"}],
    "rows": 10,
}
"""A small one-time export job."""


@contextlib.asynccontextmanager
async def sandboxed(**sections: Mapping[str, object]) -> AsyncIterator[tuple[str, int, list[str]]]:
    """A proxy before the sandbox: its URL, its project's id, and all secrets that no caller may ever see."""
    async with Sandbox() as sandbox:
        demo, account = sandbox.projects["demo-eu"], sandbox.account
        apis = ["metrics", "data-export"]
        shop = {"client_id": demo.client_id, "client_secret": demo.client_secret, "apis": apis}
        acme = {"client_id": account.client_id, "client_secret": account.client_secret, "apis": apis}
        values: dict[str, Any] = {
            "server": {"port": 0},
            "contentsquare": {"auth_url": sandbox.auth_url, "allowed_endpoints": sandbox.hosts},
            "projects": {"shop": shop},
            "accounts": {"acme": {**acme, "projects": list(account.project_ids)}},
            **sections,
        }
        app = App(load(None, values, {}, search=False))
        async with app.started():
            await app.settled(WAIT_S)
            [shop_project] = app.projects()
            leases = [keeper.current() for keeper in shop_project.keepers.values()]
            tokens = [lease.access_token for lease in leases if lease is not None]
            assert len(tokens) == 2
            yield app.listeners[0].url, demo.project_id, [demo.client_secret, account.client_secret, *tokens]
