"""``serve --sandbox`` and ``sandbox``: the simulated Contentsquare, with a proxy in front of it or alone."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence

from proxy.admin.overview import PageTexts
from proxy.app.run import Signals, serve
from proxy.cli.console import say
from proxy.cli.summary import announce
from proxy.config.load import load
from proxy.config.settings import Settings
from proxy.contentsquare import Api
from proxy.errors import ConfigError, ListenError
from proxy.origin import Origin, bracketed
from proxy.process import terminal_is_gone
from proxy.sandbox import Sandbox, SandboxOptions
from proxy.server.passed_sockets import PassedSocket

_FROM_ENVIRONMENT = ("CSQ_PROXY_SERVER__", "CSQ_PROXY_CALLERS__", "CSQ_PROXY_LOG__")
"""With a sandbox, the environment decides only where the proxy listens, for which callers, how it logs."""


async def serve_demo(flags: Mapping[str, object], passed: Sequence[PassedSocket], texts: PageTexts) -> None:
    """Run a proxy for the sandbox's projects until a signal. ``flags`` are overrides for `load`."""
    signals = Signals()
    async with Sandbox() as sandbox:
        await serve(
            demo_settings(sandbox, flags), signals, announce=announce, passed=passed, page_texts=texts
        )


def demo_settings(sandbox: Sandbox, flags: Mapping[str, object]) -> Settings:
    """The settings for the sandbox's projects; without its addresses where the sandbox isn't entered."""
    environ = {name: value for name, value in os.environ.items() if name.startswith(_FROM_ENVIRONMENT)}
    addresses = {
        "auth_url": sandbox.auth_url,
        "allowed_endpoints": sandbox.hosts,
        "allowed_downloads": [sandbox.storage_host],
    }
    overrides = {
        **flags,
        "contentsquare": addresses if sandbox.auth_url else {},
        "projects": {
            project.name: {
                "client_id": project.client_id,
                "client_secret": project.client_secret,
                "project_id": project.project_id,
                "integration_id": project.integration_id,
                "apis": [api.value for api in Api],
            }
            for project in sandbox.projects.values()
        },
    }
    return load(None, overrides, environ, search=False)


async def run_alone(options: SandboxOptions) -> None:
    """Run the sandbox until a signal. Raises ConfigError, ListenError."""
    options = dataclasses.replace(options, public_host=_host(options.public_host))
    signals = Signals()
    async with contextlib.AsyncExitStack() as stack:
        try:
            sandbox = await stack.enter_async_context(Sandbox(options))
        except (OSError, OverflowError):
            raise ListenError(
                f"--port: can't listen on {options.host}:{options.port}; choose another"
            ) from None
        say("# A simulated Contentsquare, until Ctrl-C. A configuration for csq-proxy:")
        say(_configuration(sandbox))
        say(_environment(sandbox))
        await signals.stop.wait()
    if terminal_is_gone():
        return
    counters = sandbox.counters
    say(f"\n# {counters.token_requests} token requests, {counters.api_requests} API requests")


def _host(name: str) -> str:
    """The host of ``--public-host``, lower-case and without brackets; "" stays "". Raises ConfigError."""
    if not name:
        return name
    given_as_in_urls = name.startswith("[") and name.endswith("]")
    try:
        return Origin.parse(f"http://{name if given_as_in_urls else bracketed(name)}").host
    except ValueError:
        raise ConfigError(
            f"--public-host: must be a host name or an address, without a port; {name!r} is none"
        ) from None


def _configuration(sandbox: Sandbox) -> str:
    hosts = ", ".join(f'"{host}"' for host in sandbox.hosts)
    lines = [
        "[contentsquare]",
        f'auth_url = "{sandbox.auth_url}"',
        f"allowed_endpoints = [{hosts}]",
        f'allowed_downloads = ["{sandbox.storage_host}"]',
    ]
    for project in sandbox.projects.values():
        lines += [
            "",
            f"[projects.{project.name}]",
            f'client_id = "{project.client_id}"',
            f'client_secret = "{project.client_secret}"',
            f"project_id = {project.project_id}",
            f"integration_id = {project.integration_id}",
        ]
    account = sandbox.account
    lines += [
        "",
        "[accounts.acme]",
        f'client_id = "{account.client_id}"',
        f'client_secret = "{account.client_secret}"',
        f"projects = {list(account.project_ids)}",
    ]
    return "\n".join(lines)


def _environment(sandbox: Sandbox) -> str:
    return (
        "\n# To practise `csq-proxy init` and `check --live` with these credentials, first set\n"
        f"# CSQ_PROXY_CONTENTSQUARE__AUTH_URL={sandbox.auth_url}\n"
        f"# CSQ_PROXY_CONTENTSQUARE__ALLOWED_ENDPOINTS={','.join(sandbox.hosts)}\n"
        f"# CSQ_PROXY_CONTENTSQUARE__ALLOWED_DOWNLOADS={sandbox.storage_host}"
    )
