"""The commands: arguments in, exit codes out.

0 is a clean stop, 1 a failure while running, 2 bad usage or configuration: one line a fault on
standard error, no traceback. Modules that a command doesn't need are not imported by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from proxy import __version__
from proxy.errors import ConfigError, ListenError

if TYPE_CHECKING:
    from proxy.activation import PassedSocket
    from proxy.app import App
    from proxy.live import Finding
    from proxy.project import Project
    from proxy.sandbox import Sandbox, SandboxOptions
    from proxy.settings import Settings

SUMMARY_WAIT_S = 3.0
"""How long the start-up summary waits for first tokens; requests are served meanwhile."""

cli = typer.Typer(
    name="csq-proxy",
    help="A local gateway to Contentsquare's APIs: fresh tokens, the right cloud, your bytes unchanged.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The configuration file (TOML).", show_default=False),
]


def main() -> NoReturn:
    """The entry point of the command ``csq-proxy``."""
    try:
        cli()
    except ConfigError as exc:
        _fail(exc.faults, 2)
    except ListenError as exc:
        _fail((str(exc),), 1)
    sys.exit(0)


def _called_as() -> str:
    """This command as the user can call it again: by its name alone where that finds it."""
    path = Path(sys.argv[0])
    if path.stem != cli.info.name:
        return f"{sys.executable} -m proxy"
    found = shutil.which(path.stem)
    return path.stem if found is not None and Path(found).resolve() == path.resolve() else str(path)


def _fail(faults: tuple[str, ...], code: int) -> NoReturn:
    for fault in faults:
        print(f"csq-proxy: {fault}", file=sys.stderr)  # noqa: T201 - the command's own output
    sys.exit(code)


def _say(text: str = "") -> None:
    try:
        print(text, flush=True)  # noqa: T201 - the command's own output
    except OSError:  # whoever read it has left, as in `csq-proxy serve | head -1`
        sys.stdout = None  # print() then does nothing, nor does the flush at the end


def _version(*, wanted: bool) -> None:
    if wanted:
        _say(f"csq-proxy {__version__}")
        raise typer.Exit


@cli.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=lambda value: _version(wanted=value), is_eager=True)
    ] = False,
) -> None: ...


@cli.command()
def serve(
    *,
    config: ConfigOption = None,
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Serve a simulated Contentsquare: no file, no credentials.")
    ] = False,
    host: Annotated[
        str | None, typer.Option(help="The address to listen on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="The port to listen on, 0 for any free one.", show_default="8277"
        ),
    ] = None,
) -> None:
    """Run the proxy until it is stopped (Ctrl-C or SIGTERM)."""
    from proxy.activation import take  # noqa: PLC0415
    from proxy.process import harden, raise_descriptor_limit  # noqa: PLC0415

    _leave_on_signals()
    passed = take()  # before there are children, which must not inherit them
    harden()  # before there is a secret to protect
    raise_descriptor_limit()
    flags = {"server": {"host": host, "port": port}}
    if sandbox:
        if config is not None:
            raise ConfigError("--sandbox: brings its own projects; leave --config out")
        _run(lambda: _serve_sandbox(flags, passed))
        return
    from proxy.config import load  # noqa: PLC0415

    _ignore_hangup()
    settings = load(config, flags)
    _run(lambda: _serve(settings, reload=lambda: load(config, flags), passed=passed))


@cli.command()
def check(
    *,
    config: ConfigOption = None,
    live: Annotated[
        bool, typer.Option("--live", help="Ask Contentsquare, too: network, credentials, each API.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Validate the configuration and show what it means; 0 only if all is well."""
    from proxy.config import load  # noqa: PLC0415

    try:
        settings = load(config)
        _try_certificates(settings)
    except ConfigError as exc:
        if as_json:
            _say(json.dumps({"ok": False, "faults": exc.faults}, indent=2))
            sys.exit(2)
        raise
    if not as_json:
        _show(settings)
    findings = _live_findings(settings, shown=not as_json) if live else []
    good = all(finding.result != "failed" for finding in findings)
    if as_json:
        checks = {"checks": [asdict(finding) for finding in findings]} if live else {}
        _say(json.dumps({"ok": good, **_described(settings), **checks}, indent=2, default=str))
    if not good:
        sys.exit(1)
    if not as_json:
        given = "" if config is None else f" --config {config}"
        what = "To run it" if live else "To ask Contentsquare, too"
        _say(f"{what}: {_called_as()} {'serve' if live else 'check --live'}{given}")


@cli.command("status")
def show_status(
    *,
    config: ConfigOption = None,
    url: Annotated[
        str | None, typer.Option(help="Where it listens.", show_default="as in the configuration")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A caller's key, where callers are defined.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Every 2 seconds, until Ctrl-C.")] = False,
) -> None:
    """Show how the running proxy is doing."""
    from proxy.status_command import show, source  # noqa: PLC0415

    show(source(config, url, key_file), as_json=as_json, watch=watch)


def _projects(ctx: typer.Context, incomplete: str) -> list[str]:
    from proxy.completion import projects  # noqa: PLC0415

    return projects(ctx.params.get("config"), incomplete)


def _tools(incomplete: str) -> list[str]:
    from proxy.completion import tools  # noqa: PLC0415

    return tools(incomplete)


@cli.command()
def snippets(
    project: Annotated[
        str | None,
        typer.Argument(help="Or ACCOUNT/42.", show_default="the default", autocompletion=_projects),
    ] = None,
    *,
    what: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="WHAT", help="curl, powerbi, ... kubernetes, ...", autocompletion=_tools
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Print ready text for a tool or for operating the proxy; without --for, all for callers."""
    import datetime as dt  # noqa: PLC0415

    from proxy.config import load  # noqa: PLC0415
    from proxy.snippets import FOR_CALLERS, FOR_OPERATORS, text_of  # noqa: PLC0415

    if what is not None and what not in FOR_CALLERS + FOR_OPERATORS:
        raise ConfigError(
            f"--for {what}: there are {', '.join(FOR_CALLERS)}; for operators {', '.join(FOR_OPERATORS)}"
        )
    settings = load(config)
    today = dt.datetime.now(dt.UTC).date()
    for one in FOR_CALLERS if what is None else (what,):
        text = text_of(one, settings, project, today=today, python=sys.executable)
        _say(f"--- {one}\n\n{text}" if what is None else text.rstrip("\n"))
    if what is None:
        _say(f"--- for operators: --for {', '.join(FOR_OPERATORS)}")


@cli.command()
def init(*, config: ConfigOption = None) -> None:
    """Ask for a project's credentials and write a configuration file for them."""
    from proxy.config import load  # noqa: PLC0415
    from proxy.init import text_of, write_new  # noqa: PLC0415
    from proxy.init_command import ask  # noqa: PLC0415

    path = config or Path("config.toml")
    if path.exists():
        raise ConfigError(f"{path}: is there already and is not overwritten; move it away first")
    answers = ask()
    write_new(path, text_of(answers))
    try:
        load(path)
    except ConfigError:
        path.unlink()
        raise
    given = "" if config is None else f" --config {config}"
    _say(
        f"\nWrote {path}. Next: {_called_as()} check --live{given}\n"
        f"       and then: {_called_as()} serve{given}"
    )


@cli.command()
def sandbox(
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the authentication host; others follow it.")
    ] = 0,
    token_lifetime: Annotated[int, typer.Option(min=1, help="Seconds that a token lives.")] = 3600,
    latency: Annotated[float, typer.Option(min=0, help="Seconds added to each API answer.")] = 0.0,
    failure_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of API answers that are 503.")
    ] = 0.0,
    token_failure_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of token requests that fail.")
    ] = 0.0,
    reset_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of API connections that are reset.")
    ] = 0.0,
    max_concurrency: Annotated[int, typer.Option(min=1, help="Requests at once per project.")] = 10,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Speak HTTPS with this certificate chain (PEM).")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key (PEM).")] = None,
    public_host: Annotated[str, typer.Option(help="The host name in URLs, such as localhost.")] = "",
) -> None:
    """Run the simulated Contentsquare alone."""
    _leave_on_signals()
    from proxy.listeners import server_tls  # noqa: PLC0415
    from proxy.sandbox import SandboxOptions  # noqa: PLC0415

    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("--tls-cert: needs --tls-key beside it, and the other way round")
    options = SandboxOptions(
        port=port,
        token_lifetime_s=token_lifetime,
        latency_s=latency,
        failure_rate=failure_rate,
        token_failure_rate=token_failure_rate,
        reset_rate=reset_rate,
        max_concurrency=max_concurrency,
        ssl_context=server_tls(tls_cert, tls_key),
        public_host=public_host,
    )
    _run(lambda: _sandbox_alone(options))


# Running


def _run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run ``work`` on uvloop where it exists, else on asyncio's own loop."""
    try:
        import uvloop  # noqa: PLC0415

        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        loop_factory = None
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(work())


def _leave_on_signals() -> None:
    """A stop while we are still starting is a clean one, too; `_StopSignals` takes over from here."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))


def _ignore_hangup() -> None:
    """What asks a running proxy to reload must not end one that is still starting."""
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


class _StopSignals:
    """SIGINT and SIGTERM: the first asks to stop, the second to stop at once."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.kill = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self._on_signal)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(self._on_signal))

    def _on_signal(self) -> None:
        (self.kill if self.stop.is_set() else self.stop).set()


async def _serve(
    settings: Settings,
    signals: _StopSignals | None = None,
    *,
    reload: Callable[[], Settings] | None = None,
    passed: Sequence[PassedSocket] = (),
) -> None:
    from proxy import notify  # noqa: PLC0415
    from proxy.app import App  # noqa: PLC0415
    from proxy.log import configure, get_logger  # noqa: PLC0415

    signals = signals or _StopSignals()
    configure(settings.log.level, settings.log.format)
    app = App(settings, reload, signals.stop.set, passed)
    try:
        async with app.started():
            if reload is not None and sys.platform != "win32":
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, app.reload)
            await app.settled(SUMMARY_WAIT_S, signals.stop)
            _say(_summary(app, settings))
            notify.ready()
            await signals.stop.wait()
            await app.drain(signals.kill)
    except (ConfigError, ListenError):
        raise
    except Exception:  # noqa: BLE001 - a bug, in a background task mostly: never a half-dead proxy
        get_logger("proxy").critical("stopped_by_bug", exc_info=True)
        raise typer.Exit(1) from None


async def _serve_sandbox(flags: dict[str, Any], passed: Sequence[PassedSocket]) -> None:
    from proxy.sandbox import Sandbox  # noqa: PLC0415

    signals = _StopSignals()
    async with Sandbox() as sandbox:
        await _serve(_sandbox_settings(sandbox, flags), signals, passed=passed)


def _sandbox_settings(sandbox: Sandbox, flags: dict[str, Any]) -> Settings:
    """The settings for the demo projects: of the environment, only where we listen and how we log counts."""
    import os  # noqa: PLC0415

    from proxy.config import load  # noqa: PLC0415

    sections = ("CSQ_PROXY_SERVER__", "CSQ_PROXY_LOG__")
    environ = {name: value for name, value in os.environ.items() if name.startswith(sections)}
    overrides = {
        **flags,
        "contentsquare": {
            "auth_url": sandbox.auth_url,
            "allowed_endpoints": [url.partition("://")[2] for url in sandbox.endpoints.values()],
        },
        "projects": {
            project.name: {
                "client_id": project.client_id,
                "client_secret": project.client_secret,
                "project_id": project.project_id,
                "integration_id": project.integration_id,
                "apis": ["data-export", "metrics", "enrichment", "speed-analysis", "surveys"],
            }
            for project in sandbox.projects.values()
        },
    }
    return load(None, overrides, environ, search=False)


async def _sandbox_alone(options: SandboxOptions) -> None:
    from proxy.sandbox import Sandbox  # noqa: PLC0415

    signals = _StopSignals()
    async with contextlib.AsyncExitStack() as stack:
        try:
            sandbox = await stack.enter_async_context(Sandbox(options))
        except (OSError, OverflowError):
            raise ListenError(
                f"--port: can't listen on {options.host}:{options.port}; choose another"
            ) from None
        _say("# A simulated Contentsquare, until Ctrl-C. A configuration for csq-proxy:")
        _say(_sandbox_config(sandbox))
        _say(_sandbox_environment(sandbox))
        await signals.stop.wait()
    counters = sandbox.counters
    _say(f"\n# {counters.token_requests} token requests, {counters.api_requests} API requests")


def _sandbox_config(sandbox: Sandbox) -> str:
    hosts = ", ".join(f'"{url.partition("://")[2]}"' for url in sandbox.endpoints.values())
    lines = ["[contentsquare]", f'auth_url = "{sandbox.auth_url}"', f"allowed_endpoints = [{hosts}]"]
    for project in sandbox.projects.values():
        lines += [
            "",
            f"[projects.{project.name}]",
            f'client_id = "{project.client_id}"',
            f'client_secret = "{project.client_secret}"',
            f"project_id = {project.project_id}",
            f"integration_id = {project.integration_id}",
        ]
    return "\n".join(lines)


def _sandbox_environment(sandbox: Sandbox) -> str:
    hosts = ",".join(url.partition("://")[2] for url in sandbox.endpoints.values())
    return (
        "\n# To practise `csq-proxy init` and `check --live` with these credentials, first set there\n"
        f"# CSQ_PROXY_CONTENTSQUARE__AUTH_URL={sandbox.auth_url}\n"
        f"# CSQ_PROXY_CONTENTSQUARE__ALLOWED_ENDPOINTS={hosts}"
    )


# What people see


def _summary(app: App, settings: Settings) -> str:
    """The start-up summary: where we listen, each project, a line to try, and the page."""
    from proxy.settings import WILDCARDS  # noqa: PLC0415

    where = " (and every address of this computer)" if settings.server.host in WILDCARDS else ""
    key = '-H "X-API-Key: YOUR-KEY" ' if settings.callers else ""
    urls = [listener.url for listener in app.listeners]
    lines = [f"csq-proxy {__version__} listens on {', '.join(urls)}{where}", ""]
    calls = []
    for project in app.projects():
        url = app.project_url(project.name)
        query = f"?projectId={project.grant.project_id}" if project.grant.project_id else ""
        calls.append(f"{url}/v1/segments{query}")
        lines += [f"  {project.name}  {url}", *_leases(project)]
    for name in settings.accounts:
        url = app.project_url(name)
        calls.append(f"{url}/PROJECT_ID/v1/segments")
        lines += [
            f"  {name}  {url}/PROJECT_ID",
            "    any project of the account, tokens are fetched on first use",
        ]
    lines += ["", *(f'Try:  curl {key}"{call}"' for call in calls[:1])]
    lines += [
        f"See:  {urls[0]}/-/ in a browser: how it is doing, and text for your tools",
        "Stop: Ctrl-C",
        "",
    ]
    return "\n".join(lines)


def _leases(project: Project) -> list[str]:
    lines = []
    for api, keeper in project.keepers.items():
        status = keeper.status()
        if status.expires_at is not None:
            what = f"{status.endpoint}, token until {status.expires_at.astimezone():%H:%M:%S}"
        else:
            what = status.last_error or "token on its way"
        lines.append(f"    {api.value:<15} {what}")
    return lines or [f"    {why}" for why in project.missing()] or ["    tokens are fetched on first use"]


def _try_certificates(settings: Settings) -> None:
    """Raise ConfigError where `serve` would, because a file of certificates holds none."""
    from proxy.listeners import server_tls  # noqa: PLC0415
    from proxy.upstream import tls_context  # noqa: PLC0415

    tls_context(settings.contentsquare.ca_file)
    server_tls(settings.server.tls_cert, settings.server.tls_key)


def _described(settings: Settings) -> dict[str, Any]:
    """The configuration as it will be used, without secrets."""
    server = settings.server
    return {
        "file": settings.source,
        "listener": f"{server.host}:{server.port}",
        "default_project": settings.default_project,
        "projects": {
            name: {
                "project_id": project.project_id,
                "apis": None if project.apis is None else [api.value for api in project.apis],
                "port": project.port or None,
                "read_only": project.read_only,
                "expires": project.expires,
            }
            for name, project in settings.projects.items()
        },
        "accounts": {
            name: {"projects": account.projects, "read_only": account.read_only}
            for name, account in settings.accounts.items()
        },
        "callers": list(settings.callers),
    }


def _live_findings(settings: Settings, *, shown: bool) -> list[Finding]:
    from proxy.live_command import collect, show  # noqa: PLC0415

    findings = collect(settings)
    if shown:
        show(findings)
    return findings


def _show(settings: Settings) -> None:
    from rich import box  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console()
    server = settings.server
    source = escape(str(settings.source or "environment"))
    console.print(f"Configuration: {source}: [green]good[/]", highlight=False, soft_wrap=True)
    console.print(f"Listener:      {escape(server.host)}:{server.port}", highlight=False)
    table = Table("project", "project_id", "APIs kept fresh", "path", box=box.SIMPLE)
    for name, project in settings.projects.items():
        apis = "by scope" if project.apis is None else ", ".join(api.value for api in project.apis)
        default = " (default)" if name == settings.default_project else ""
        table.add_row(name + default, str(project.project_id or "-"), apis, f"/{name}/v1/...")
    for name, account in settings.accounts.items():
        ids = "any" if account.projects is None else ", ".join(map(str, account.projects))
        table.add_row(f"{name} (account)", ids, "on first use", f"/{name}/PROJECT_ID/v1/...")
    console.print(table)
