"""The commands but for `serve`: arguments in, exit codes out.

0 is a clean stop, 1 a failure while running, 2 bad usage or configuration: one line a fault on
standard error, no traceback. Modules that a command doesn't need are not imported by it.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from proxy import __version__
from proxy.cli import serve as start
from proxy.cli.console import fail, say
from proxy.errors import ConfigError
from proxy.origin import bracketed

if TYPE_CHECKING:
    from proxy.cli.live_check import Finding
    from proxy.config.settings import Settings

cli = typer.Typer(
    name="csq-proxy",
    help="A local gateway to Contentsquare's APIs: fresh tokens, the right cloud, your bytes unchanged.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Files are looked at by what reads them, which says more, and in one line.
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        readable=False,
        help="The configuration file (TOML).",
        show_default=False,
    ),
]
_UsageError: type[Any] = typer.BadParameter.__bases__[0]
"""Click's, which is in Typer or a package of its own, by Typer's version."""


def main() -> NoReturn:
    """Do what the arguments say, and end. Raises ConfigError, ListenError, OutputLost, SystemExit.

    Wrong usage is a line, too, in place of Typer's four.
    """
    try:
        code = cli(standalone_mode=False)
    except typer.BadParameter as error:
        option = max(error.param.opts, key=len) if error.param else "the command line"
        fail((f"{option}: {error.message}",), 2)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            sys.exit(error.exit_code)
        words = error.ctx.command_path if error.ctx else cli.info.name
        message = " ".join(error.format_message().split())
        fail((f"{message}{'' if message[-1] in '.?' else '.'} See: {words} --help",), 2)
    except typer.Abort:  # Ctrl-C at a question
        fail(("Aborted!",), 1)
    sys.exit(code or 0)


def _number(kind: type[int | float], low: float, high: float = math.inf) -> Callable[[str], float]:
    """What reads a number within bounds, and names them where it is none."""
    within = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
    fault = f"must be a {'whole ' if kind is int else ''}number {within}"

    def parsed(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise typer.BadParameter(fault) from None
        if not low <= value <= high or value == math.inf:
            raise typer.BadParameter(fault)
        return value

    return parsed


_port = _number(int, 0, 65_535)
_share = _number(float, 0, 1)


def _command(*words: str, config: Path | None) -> str:
    """A command line of ours as the user can call it, by our name alone where that finds us."""
    path = Path(sys.argv[0])
    if path.stem != cli.info.name:
        called_as = [sys.executable, "-m", "proxy"]
    else:
        found = shutil.which(path.stem)
        called_as = [path.stem if found and Path(found).resolve() == path.resolve() else str(path)]
    line = [*called_as, *words, *([] if config is None else ["--config", str(config)])]
    return subprocess.list2cmdline(line) if sys.platform == "win32" else shlex.join(line)


def _version(*, wanted: bool) -> None:
    if wanted:
        say(f"csq-proxy {__version__}")
        raise typer.Exit


@cli.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=lambda value: _version(wanted=value), is_eager=True)
    ] = False,
) -> None: ...


@cli.command(help=start.PURPOSE)
def serve(
    *,
    config: ConfigOption = None,  # noqa: ARG001
    sandbox: Annotated[bool, typer.Option("--sandbox")] = False,  # noqa: ARG001
    host: str = "",  # noqa: ARG001
    port: str = "",  # noqa: ARG001
) -> None:
    """Hand over to `proxy.cli.serve`, which reads the arguments. The options here are for completion."""
    start.main(sys.argv[sys.argv.index("serve") + 1 :])


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
    from proxy.config.load import load  # noqa: PLC0415

    try:
        settings = load(config)
        _try_certificates(settings)
    except ConfigError as exc:
        if as_json:
            say(json.dumps({"ok": False, "faults": exc.faults}, indent=2))
            sys.exit(2)
        raise
    if not as_json:
        _show(settings)
    findings = _findings(settings, live=live)
    results = {finding.result for finding in findings}
    good = results <= {"ok"}  # a warning says that not all is well, and only then is it 0
    if as_json:
        checks = [asdict(finding) for finding in findings]
        say(json.dumps({"ok": good, **_described(settings), "checks": checks}, indent=2, default=str))
    else:
        _show_findings(findings, all_of_them=live)
        if live and "failed" not in results:
            say(f"To run it: {_command('serve', config=config)}")
        elif not live:
            say(f"To ask Contentsquare, too: {_command('check', '--live', config=config)}")
    if not good:
        sys.exit(1)


@cli.command("status")
def show_status(
    *,
    config: ConfigOption = None,
    url: Annotated[
        str | None, typer.Option(help="Where it listens.", show_default="as in the configuration")
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", readable=False, help="A caller's key, where callers are defined."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Every 2 seconds, until Ctrl-C.")] = False,
) -> None:
    """Show how the running proxy is doing."""
    from proxy.cli.status import show, source  # noqa: PLC0415

    show(source(config, url, key_file), as_json=as_json, watch=watch)


def _projects(ctx: typer.Context, incomplete: str) -> list[str]:
    from proxy.cli.completion import projects  # noqa: PLC0415

    return projects(ctx.params.get("config"), incomplete)


def _tools(incomplete: str) -> list[str]:
    from proxy.cli.completion import tools  # noqa: PLC0415

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

    from proxy.cli.snippets.text import FOR_CALLERS, FOR_OPERATORS, text_of  # noqa: PLC0415
    from proxy.config.load import load  # noqa: PLC0415

    if what is not None and what not in FOR_CALLERS + FOR_OPERATORS:
        raise ConfigError(
            f"--for {what}: there are {', '.join(FOR_CALLERS)}; for operators {', '.join(FOR_OPERATORS)}"
        )
    settings = load(config)
    today = dt.datetime.now(dt.UTC).date()
    for one in FOR_CALLERS if what is None else (what,):
        text = text_of(one, settings, project, today=today, python=sys.executable)
        say(f"--- {one}\n\n{text}" if what is None else text.rstrip("\n"))
    if what is None:
        say(f"--- for operators: --for {', '.join(FOR_OPERATORS)}")


@cli.command()
def init(*, config: ConfigOption = None) -> None:
    """Ask for a project's credentials and write a configuration file for them."""
    from proxy.cli.init import ask  # noqa: PLC0415
    from proxy.config.files import named_config_file  # noqa: PLC0415
    from proxy.config.load import load  # noqa: PLC0415
    from proxy.config.new_file import check_place, text_of, write_new  # noqa: PLC0415

    path = named_config_file(config, os.environ) or Path("config.toml")
    check_place(path)
    answers = ask()
    write_new(path, text_of(answers))
    try:
        load(path)
    except ConfigError:
        path.unlink()
        raise
    say(
        f"\nWrote {path}. Next: {_command('check', '--live', config=config)}\n"
        f"       and then: {_command('serve', config=config)}"
    )


@cli.command()
def sandbox(
    *,
    port: Annotated[
        int, typer.Option(parser=_port, metavar="PORT", help="Of the authentication host; others follow it.")
    ] = 0,
    token_lifetime: Annotated[
        int, typer.Option(parser=_number(int, 1), metavar="S", help="Seconds that a token lives.")
    ] = 3600,
    latency: Annotated[
        float, typer.Option(parser=_number(float, 0), metavar="S", help="Seconds added to each API answer.")
    ] = 0.0,
    failure_rate: Annotated[
        float, typer.Option(parser=_share, metavar="SHARE", help="Share of API answers that are 503.")
    ] = 0.0,
    token_failure_rate: Annotated[
        float, typer.Option(parser=_share, metavar="SHARE", help="Share of token requests that fail.")
    ] = 0.0,
    reset_rate: Annotated[
        float, typer.Option(parser=_share, metavar="SHARE", help="Share of API connections that are reset.")
    ] = 0.0,
    max_concurrency: Annotated[
        int, typer.Option(parser=_number(int, 1), metavar="N", help="Requests at once per project.")
    ] = 10,
    tls_cert: Annotated[
        Path | None, typer.Option(readable=False, help="Speak HTTPS with this certificate chain (PEM).")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(readable=False, help="The certificate's key (PEM).")] = None,
    public_host: Annotated[str, typer.Option(help="The host name in URLs, such as localhost.")] = "",
) -> None:
    """Run the simulated Contentsquare alone."""
    from proxy.app.run import run  # noqa: PLC0415
    from proxy.cli.sandbox import run_alone  # noqa: PLC0415
    from proxy.sandbox import SandboxOptions  # noqa: PLC0415
    from proxy.server.listeners import server_tls  # noqa: PLC0415

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
    run(lambda: run_alone(options))


# What people see


def _try_certificates(settings: Settings) -> None:
    """Raise ConfigError where `serve` would, because a file of certificates holds none."""
    from proxy.server.listeners import server_tls  # noqa: PLC0415
    from proxy.upstream.tls import tls_context  # noqa: PLC0415

    tls_context(settings.contentsquare.ca_file)
    server_tls(settings.server.tls_cert, settings.server.tls_key)


def _described(settings: Settings) -> dict[str, Any]:
    """The configuration as it will be used, without secrets."""
    return {
        "file": settings.source,
        "listener": _listener(settings),
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


def _listener(settings: Settings) -> str:
    server = settings.server
    return f"{bracketed(server.host)}:{server.port}"


def _findings(settings: Settings, *, live: bool) -> list[Finding]:
    from proxy.cli.live_check import expiries  # noqa: PLC0415
    from proxy.cli.live_report import collect  # noqa: PLC0415
    from proxy.config.expiry import utc_today  # noqa: PLC0415

    return [*expiries(settings, utc_today()), *(collect(settings) if live else ())]


def _show_findings(findings: Sequence[Finding], *, all_of_them: bool) -> None:
    from proxy.cli.live_report import show  # noqa: PLC0415

    told = [finding for finding in findings if all_of_them or finding.result != "ok"]
    if told:
        show(told)


def _show(settings: Settings) -> None:
    from rich.markup import escape  # noqa: PLC0415

    from proxy.cli.tables import Terminal, table  # noqa: PLC0415

    terminal = Terminal()
    source = escape(str(settings.source or "environment"))
    terminal.print(f"Configuration: {source}: [green]good[/]", highlight=False, soft_wrap=True)
    terminal.print(f"Listener:      {escape(_listener(settings))}", highlight=False)
    drawn = table("project", "project_id", "APIs kept fresh", "path")
    for name, project in settings.projects.items():
        apis = "by scope" if project.apis is None else ", ".join(api.value for api in project.apis)
        default = " (default)" if name == settings.default_project else ""
        drawn.add_row(name + default, str(project.project_id or "-"), apis, f"/{name}/v1/...")
    for name, account in settings.accounts.items():
        ids = "any" if account.projects is None else ", ".join(map(str, account.projects))
        drawn.add_row(f"{name} (account)", ids, "on first use", f"/{name}/PROJECT_ID/v1/...")
    terminal.print(drawn)
