"""The commands and their arguments, by Typer; `serve` has a module of its own.

The exit code is 0 after a clean stop, 1 after a failure while running, 2 after bad usage or configuration,
where each fault is one line on standard error. A command imports only the modules that it needs.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from proxy import __version__
from proxy.cli import config_show, epilogs
from proxy.cli import serve as start
from proxy.cli.console import fail, say, say_json
from proxy.errors import ConfigError
from proxy.process import command_line, own_command

cli = typer.Typer(
    name="csq-proxy",
    help="A local gateway to Contentsquare's APIs: fresh tokens, the right cloud, your bytes unchanged.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Typer must not check the file: `proxy.config` says more about a fault, and in one line.
UrlOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The URL of the proxy.", show_default="as in the configuration"),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", readable=False, help="A file with a caller's key, where callers are defined."
    ),
]
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
"""Click's class. Some versions of Typer contain click, others import it."""


def main() -> NoReturn:
    """Run the command in the arguments, and exit. Raises ConfigError, ListenError, OutputLost, SystemExit.

    A fault of usage is one line, in place of Typer's four.
    """
    try:
        code = cli(standalone_mode=False)
    except typer.BadParameter as error:
        option = max(error.param.opts, key=len) if error.param else "the command line"
        fault = error.message or f"is missing; see: csq-proxy {sys.argv[1]} --help"
        fail((f"{option}: {fault}",), 2)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            sys.exit(error.exit_code)
        command = [word for word in sys.argv[1:2] if not word.startswith("-")]
        words = error.ctx.command_path if error.ctx else " ".join(("csq-proxy", *command))
        message = " ".join(error.format_message().split())
        fail((f"{message}{'' if message[-1] in '.?' else '.'} See: {words} --help",), 2)
    except typer.Abort:  # Ctrl-C at a question
        fail(("Aborted!",), 1)
    sys.exit(code or 0)


cli.add_typer(config_show.app, name="config")


def _number(kind: type[int | float], low: float, high: float = math.inf) -> Callable[[str], float]:
    """A parser of numbers from ``low`` to ``high``; its error names these bounds."""
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


def _share_of(what: str) -> Any:
    """An option for a share between 0 and 1."""
    return typer.Option(parser=_number(float, 0, 1), metavar="SHARE", help=f"Share of {what}.")


def _command(*words: str, config: Path | None) -> str:
    """A command line that the user can paste; ``csq-proxy`` without its path where the shell finds that."""
    path = Path(sys.argv[0])
    if path.stem != cli.info.name or path.suffix == ".pyz":
        called_as = own_command()
    else:
        found = Path(shutil.which(path.stem) or "")
        # Windows may leave .exe out. PowerShell doesn't look in the current folder, where a relative path is.
        is_found = found.is_absolute() and (found.resolve().with_suffix("") == path.resolve().with_suffix(""))
        called_as = [path.stem if is_found else str(path)]
    line = [*called_as, *words, *([] if config is None else ["--config", str(config)])]
    return command_line(line)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"csq-proxy {__version__}")
        raise typer.Exit


@cli.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


def _of_serve(name: str, words: Sequence[str] = ()) -> Any:
    """An option that `proxy.cli.serve` reads, as the Tab key shows it; ``words`` are its values."""
    offered = (lambda incomplete: [word for word in words if word.startswith(incomplete)]) if words else None
    return typer.Option(name, help=start.HELP[name], autocompletion=offered)


@cli.command(help=start.PURPOSE, short_help="Run the proxy until it is stopped.")
def serve(
    *,
    config: ConfigOption = None,  # noqa: ARG001
    sandbox: Annotated[bool, _of_serve("--sandbox")] = False,  # noqa: ARG001
    host: Annotated[str, _of_serve("--host")] = "",  # noqa: ARG001
    port: Annotated[str, _of_serve("--port")] = "",  # noqa: ARG001
    log_level: Annotated[str, _of_serve("--log-level", start.LEVELS)] = "",  # noqa: ARG001
    log_format: Annotated[str, _of_serve("--log-format", start.FORMATS)] = "",  # noqa: ARG001
) -> None:
    """Hand over to `proxy.cli.serve`, which reads the arguments. The options here are for completion."""
    start.main(sys.argv[sys.argv.index("serve") + 1 :])


@cli.command(
    help="End with 0 if the proxy on this computer answers, else with 1; for probes.",
    short_help="Tell whether the proxy on this computer answers.",
)
def health(
    *,
    config: ConfigOption = None,  # noqa: ARG001
    ready: Annotated[  # noqa: ARG001
        bool, typer.Option("--ready", help="Ask for fresh tokens, too, as /-/ready does.")
    ] = False,
    key_file: KeyFileOption = None,  # noqa: ARG001
) -> None:
    """Hand over to `proxy.cli.health`, which reads the arguments. The options here are for completion."""
    from proxy.cli import health as probe  # noqa: PLC0415

    probe.main(sys.argv[sys.argv.index("health") + 1 :])


@cli.command(short_help="Check the configuration and show its meaning.")
def check(
    *,
    config: ConfigOption = None,
    live: Annotated[
        bool, typer.Option("--live", help="Ask Contentsquare, too: network, credentials, each API.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 also on a warning.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Check the configuration and show its meaning; ends with 1 where something failed."""
    from proxy.cli import check as report  # noqa: PLC0415
    from proxy.config.load import load  # noqa: PLC0415

    try:
        settings = load(config)
        report.try_certificates(settings)
    except ConfigError as exc:
        if as_json:
            say_json({"ok": False, "faults": exc.faults}, indent=2)
            sys.exit(2)
        raise
    if not as_json:
        report.show_settings(settings)
    findings = report.findings(settings, live=live)
    results = {finding.result for finding in findings}
    good = results <= ({"ok"} if strict else {"ok", "warning"})
    if as_json:
        checks = [asdict(finding) for finding in findings]
        say_json({"ok": good, **report.described(settings), "checks": checks}, indent=2)
    else:
        report.show_findings(findings, all_of_them=live)
        if live and "failed" not in results:
            say(f"To run it: {_command('serve', config=config)}")
        elif not live:
            say(f"To ask Contentsquare, too: {_command('check', '--live', config=config)}")
    if not good:
        sys.exit(1)


def _projects(ctx: typer.Context, incomplete: str) -> list[str]:
    from proxy.cli.completion import projects  # noqa: PLC0415

    return projects(ctx.params.get("config"), incomplete)


def _tools(incomplete: str) -> list[str]:
    from proxy.cli.completion import tools  # noqa: PLC0415

    return tools(incomplete)


@cli.command("status", short_help="Show the state of the running proxy.")
def show_status(
    *,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every 2 seconds, until Ctrl-C.")
    ] = False,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="End with 0 also where a project can't work.")
    ] = False,
) -> None:
    """Show the state of the running proxy, trouble first; ends with 1 where a project can't work."""
    from proxy.cli.running_proxy import find  # noqa: PLC0415
    from proxy.cli.status import show  # noqa: PLC0415

    show(find(config, url, key_file), as_json=as_json, watch=watch, exit_zero=exit_zero)


@cli.command("wait", short_help="Wait until the running proxy is ready.")
def wait_until_ready(
    *,
    timeout: Annotated[
        float, typer.Option(parser=_number(float, 0), metavar="S", help="Seconds to wait at most.")
    ] = 60.0,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Wait until the running proxy is ready: it has each token that is wanted from the start."""
    from proxy.cli.running_proxy import find  # noqa: PLC0415
    from proxy.cli.wait import wait  # noqa: PLC0415

    wait(find(config, url, key_file), timeout)


@cli.command("stop", short_help="Stop the running proxy, and wait for its end.")
def stop_proxy(*, config: ConfigOption = None, url: UrlOption = None, key_file: KeyFileOption = None) -> None:
    """Stop the running proxy, and wait until its requests are answered and it has ended."""
    from proxy.cli.running_proxy import find  # noqa: PLC0415
    from proxy.cli.stop import stop  # noqa: PLC0415

    stop(find(config, url, key_file))


@cli.command("requests", short_help="Show the last requests of the running proxy.")
def show_requests(
    *,
    project: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT",
            help="Of this project; of ACCOUNT/42; or -, for those that reached none.",
            autocompletion=_projects,
        ),
    ] = None,
    status: Annotated[
        str | None, typer.Option(metavar="STATUS", help="With this status: 500, 5xx, or errors.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with those that come, until Ctrl-C.")
    ] = False,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show the last requests that the running proxy has answered."""
    from proxy.cli.requests import show  # noqa: PLC0415
    from proxy.cli.running_proxy import find  # noqa: PLC0415

    show(find(config, url, key_file), project=project, status=status, follow=follow, as_json=as_json)


@cli.command(short_help="Make an export, wait for it, and store its files.", epilog=epilogs.OF_EXPORT)
def export(
    project: Annotated[
        str,
        typer.Argument(metavar="PROJECT", help="A project, or ACCOUNT/42.", autocompletion=_projects),
    ],
    *,
    job_id: Annotated[str | None, typer.Option("--id", metavar="JOB_ID", help="A job that exists.")] = None,
    job: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", readable=False, help="A JSON file with a new job, as POST /v1/exports takes it."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder for the files.")] = Path(),
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Make an export or take one by its number, wait for it, and store its files."""
    from proxy.cli.export import export as run  # noqa: PLC0415
    from proxy.cli.running_proxy import find  # noqa: PLC0415

    run(find(config, url, key_file), project, job_id=job_id, job=job, out=out, as_json=as_json)


@cli.command(short_help="Print ready text for a tool or for operators.")
def snippets(
    project: Annotated[
        str | None,
        typer.Argument(
            metavar="PROJECT",
            help="A project, or ACCOUNT/42.",
            show_default="the default",
            autocompletion=_projects,
        ),
    ] = None,
    *,
    what: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="TOOL",
            help="The tool: curl, powerbi, ... kubernetes, ...",
            autocompletion=_tools,
        ),
    ] = None,
    config: ConfigOption = None,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The URL of a running proxy, for its texts.",
            show_default="where no project is configured, the proxy on this computer",
        ),
    ] = None,
    key_file: KeyFileOption = None,
) -> None:
    """Print ready text for a tool or for operators; without --for, the texts for all tools."""
    from proxy.cli.show_snippets import show  # noqa: PLC0415

    show(project, what, config=config, url=url, key_file=key_file)


@cli.command(short_help="Ask for credentials, try them, and write them to a file.")
def init(
    *,
    config: ConfigOption = None,
    account: Annotated[
        bool, typer.Option("--account", help="Ask for an account's credentials, for any of its projects.")
    ] = False,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Write them without asking Contentsquare whether they work.")
    ] = False,
) -> None:
    """Ask for credentials, try them, and write them to a new file or to the one that is there."""
    from proxy.cli import init as questions  # noqa: PLC0415
    from proxy.config.files import find_config_file  # noqa: PLC0415

    path, good = questions.init(config, "accounts" if account else "projects", is_tried=not no_check)
    is_found = config is None and find_config_file(None, os.environ).path == path
    where = config or (None if is_found else path)
    say(f"Next: {_command('check', '--live', config=where)}\nand then: {_command('serve', config=where)}")
    if not good:
        sys.exit(1)


@cli.command(epilog=epilogs.OF_SANDBOX)
def sandbox(
    *,
    port: Annotated[
        int, typer.Option(parser=_port, metavar="PORT", help="The port of the authentication host.")
    ] = 0,
    token_lifetime: Annotated[
        int, typer.Option(parser=_number(int, 1), metavar="S", help="Seconds that a token lives.")
    ] = 3600,
    latency: Annotated[
        float, typer.Option(parser=_number(float, 0), metavar="S", help="Seconds added to each API answer.")
    ] = 0.0,
    failure_rate: Annotated[float, _share_of("API answers that are 503")] = 0.0,
    token_failure_rate: Annotated[float, _share_of("token requests that fail")] = 0.0,
    reset_rate: Annotated[float, _share_of("API connections that are reset")] = 0.0,
    max_concurrency: Annotated[
        int, typer.Option(parser=_number(int, 1), metavar="N", help="Requests at once per project.")
    ] = 10,
    tls_cert: Annotated[
        Path | None, typer.Option(readable=False, help="Speak HTTPS with this certificate chain (PEM).")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(readable=False, help="The certificate's key (PEM).")] = None,
    public_host: Annotated[str, typer.Option(help="The host name in URLs, such as localhost.")] = "",
    lenient: Annotated[bool, typer.Option("--lenient", help="Token requests may be forms.")] = False,
    seed: Annotated[
        int, typer.Option(parser=_number(int, 0), metavar="N", help="Of the random failures and resets.")
    ] = 1,
) -> None:
    """Run the simulated Contentsquare alone."""
    from proxy.app.run import run  # noqa: PLC0415
    from proxy.cli.sandbox import run_alone  # noqa: PLC0415
    from proxy.sandbox import SandboxOptions  # noqa: PLC0415
    from proxy.server.tls import server_tls  # noqa: PLC0415

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
        lenient=lenient,
        seed=seed,
    )
    run(lambda: run_alone(options))
