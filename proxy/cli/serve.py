"""``csq-proxy serve``: reads its arguments and the configuration, and serves until it is stopped.

The parser of arguments is the standard library's: Typer would take 70 ms of the start, and stay in the
memory of a process that runs for months.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from proxy.cli.console import fail, say
from proxy.config.load import load
from proxy.config.messages import did_you_mean
from proxy.config.settings import Settings
from proxy.errors import ConfigError, ListenError
from proxy.process import harden, interruptibly, raise_descriptor_limit
from proxy.server.passed_sockets import PassedSocket, take

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "text", "json")
_FORMAT = "CSQ_PROXY_LOG__FORMAT"
PURPOSE = "Run the proxy until it is stopped (Ctrl-C or SIGTERM)."
HELP = {
    "--sandbox": "Serve a simulated Contentsquare: no file, no credentials.",
    "--host": "The address to listen on. [default: localhost]",
    "--port": "The port to listen on, 0 for any free one. [default: 8277]",
    "--log-level": f"The log's level: {', '.join(LEVELS)}. [default: info]",
    "--log-format": (
        f"The log's format: {', '.join(FORMATS)}. [default: auto: text on a terminal, JSON lines elsewhere]"
    ),
}
"""What the options of `serve` alone do, for its help, the manual page and the Tab key."""


def main(arguments: Sequence[str]) -> None:
    """Run ``serve`` with these arguments. Raises OutputLost and SystemExit."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:
        parser.refuse(rest[0])
    if options.help:
        say(parser.format_help().rstrip())
        return
    try:
        _run(options, arguments)
    except ConfigError as error:
        _fail(error.faults, 2, options.log_format)
    except ListenError as error:
        _fail((str(error),), 1, options.log_format)
    except Exception:
        if not _logs_json(options.log_format):
            raise
        from proxy.logs import get_logger  # noqa: PLC0415

        get_logger("proxy").critical("stopped_by_bug", exc_info=True)
        sys.exit(1)


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    passed = take()  # first, since child processes must not inherit the sockets
    harden()  # before there is a secret to protect
    raise_descriptor_limit()
    flags = {
        "server": {"host": options.host, "port": options.port},
        "log": {"level": options.log_level, "format": options.log_format},
    }
    if options.sandbox:
        if options.config is not None:
            raise ConfigError("--sandbox: brings its own projects; leave --config out")
        _serve_sandbox(flags, passed, arguments)
    else:
        _serve(options.config, flags, passed, arguments)


def _serve(
    config: Path | None,
    flags: dict[str, dict[str, object]],
    passed: Sequence[PassedSocket],
    arguments: Sequence[str],
) -> None:
    with interruptibly():
        settings = load(config, flags)
    for flag in ("host", "port"):
        if not settings.server.tcp and flags["server"][flag] is not None:
            raise ConfigError(f"--{flag}: server.tcp is false, so there is no port; leave the option out")
    from proxy.app.run import run, serve  # noqa: PLC0415 - later, so that a fault of the configuration is told soon
    from proxy.cli.page_texts import page_texts  # noqa: PLC0415
    from proxy.cli.summary import announce  # noqa: PLC0415

    texts = page_texts(arguments, settings.source)

    def reload(file: Path | None) -> Settings:
        return load(file, flags)

    run(lambda: serve(settings, announce=announce, reload=reload, passed=passed, page_texts=texts))


def _serve_sandbox(
    flags: dict[str, dict[str, object]], passed: Sequence[PassedSocket], arguments: Sequence[str]
) -> None:
    from proxy.app.run import run  # noqa: PLC0415
    from proxy.cli.page_texts import page_texts  # noqa: PLC0415
    from proxy.cli.sandbox import serve_demo  # noqa: PLC0415

    texts = page_texts(arguments, None)
    run(lambda: serve_demo(flags, passed, texts))


def _fail(faults: Sequence[str], code: int, log_format: str | None = None) -> NoReturn:
    """Tell why the proxy doesn't run, and exit: a line for each fault, in JSON where the log is JSON.

    Where the log has a file, the faults go there and to standard error, where a service manager looks.
    """
    from proxy.logs import log_file  # noqa: PLC0415 - needless for most starts

    is_json = _logs_json(log_format)
    if log_file() is not None:
        _log_faults(faults)
        is_json = _logs_json(log_format, anew=True)
    if not is_json:
        fail(faults, code)
    _log_faults(faults)
    sys.exit(code)


def _log_faults(faults: Sequence[str]) -> None:
    from proxy.logs import get_logger  # noqa: PLC0415

    for fault in faults:
        get_logger("proxy").error("start_failed", fault=fault)


def _logs_json(log_format: str | None, *, anew: bool = False) -> bool:
    """Whether the log is JSON.

    Where no configuration was read (or ``anew``), it is on standard error, and the flag or the environment
    decides.
    """
    from proxy.logs import configure, is_configured, is_json  # noqa: PLC0415

    if anew or not is_configured():
        wanted = log_format or os.environ.get(_FORMAT, "")
        configure("info", wanted if wanted in FORMATS else "auto")
    return is_json()


class _Parser(argparse.ArgumentParser):
    """Its faults are one line each, like those of the other commands."""

    def error(self, message: str) -> NoReturn:
        """Print the fault, and exit with 2. `argparse` calls this method."""
        fault = message.removeprefix("argument ")
        _fail((f"{fault}{'' if fault[-1] in '.?' else '.'} See: {self.prog} --help",), 2)

    def refuse(self, word: str) -> NoReturn:
        """Report an unknown option or argument, and exit with 2."""
        name = word.partition("=")[0]
        if name.startswith("-"):
            self.error(f"No such option: {name}{did_you_mean(name, self._option_string_actions)}")
        self.error(f"Got unexpected extra argument ({word!r})")


def make_parser() -> _Parser:
    """The parser of the options."""
    parser = _Parser("csq-proxy serve", description=PURPOSE, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE", help="The configuration file (TOML).")
    parser.add_argument("--sandbox", action="store_true", help=HELP["--sandbox"])
    parser.add_argument("--host", help=HELP["--host"])
    parser.add_argument("--port", type=_port, help=HELP["--port"])
    for flag, words, metavar in (("--log-level", LEVELS, "LEVEL"), ("--log-format", FORMATS, "FORMAT")):
        parser.add_argument(flag, type=str.lower, choices=words, metavar=metavar, help=HELP[flag])
    parser.add_argument("-h", "--help", action="store_true", help="Show this message and exit.")
    return parser


def _port(text: str) -> int:
    if re.fullmatch("[0-9]{1,5}", text) and int(text) <= 65_535:
        return int(text)
    raise argparse.ArgumentTypeError("must be a whole number from 0 to 65535")
