"""``csq-proxy status``: what a running proxy says of itself at ``/-/status``, as a table.

Hides where the running proxy is found: by ``--url``, else by ``[server]`` of the configuration, of
which nothing else is read (no secret, and no command that gets one). Speaks only HTTP with the
proxy, and shows what it answers; must not know what is behind it.
"""

from __future__ import annotations

import json
import os
import ssl
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from proxy.config import find_config_file
from proxy.console import fail
from proxy.environment import KEY
from proxy.errors import ConfigError
from proxy.settings import DEFAULT_PORT

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

EVERY_S = 2.0
TIMEOUT_S = 5.0
MOST_ERRORS = 3
"""Of each project."""
_COLORS = {"fresh": "green", "stale": "yellow", "fetching": "yellow", "failing": "red", "refused": "red"}
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - what to call where it listens


class Unreachable(Exception):
    """There is no status to be had; the message is one line for people."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key goes where it was meant to go, and nowhere else."""

    def redirect_request(self, *_: object) -> None:
        return None


class Source(NamedTuple):
    """Where to ask: ``url`` without a path; ``cert`` is trusted beside the system's, ``key`` a caller's."""

    url: str
    cert: Path | None
    key: str | None

    def fetch(self) -> dict[str, Any]:
        """The running proxy's status. Raises `Unreachable`."""
        request = urllib.request.Request(f"{self.url}/-/status")  # noqa: S310 - `source` checked the scheme
        if self.key:
            request.add_header("X-API-Key", self.key)
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirect()]
        if self.url.startswith("https:"):
            context = ssl.create_default_context()
            if self.cert is not None:
                context.load_verify_locations(self.cert)
            handlers.append(urllib.request.HTTPSHandler(context=context))
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_S) as answer:
                status = json.load(answer)
        except urllib.error.HTTPError as error:
            error.close()
            raise Unreachable(self._refused(error.code)) from None
        except OSError as error:
            raise Unreachable(self._silent(error)) from None
        except ValueError:
            status = None
        if not isinstance(status, dict) or "projects" not in status:
            raise Unreachable(f"{self.url}: something else than csq-proxy answers there; give its --url")
        return status

    def _refused(self, code: int) -> str:
        if code == 401:
            what = "is nobody's" if self.key else "is needed"
            return f"{self.url}: a caller's key {what}; give --key-file, or set {KEY}"
        hint = "; call it by a name in server.allowed_hosts" if code == 421 else ""
        return f"{self.url}: it answered {code}{hint}"

    def _silent(self, error: OSError) -> str:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return (
                f"{self.url}: its certificate isn't trusted here; give the --url with a name that it is for"
            )
        why = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        return f"{self.url}: can't be reached ({why}); is it running? Start it: csq-proxy serve"


def source(config: Path | None, url: str | None, key_file: Path | None) -> Source:
    """Where to ask, by flags, environment and configuration file. Raises ConfigError."""
    environ = os.environ
    try:
        key = key_file.read_text("utf-8").strip() if key_file else environ.get(KEY)
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"--key-file: {key_file} can't be read") from None
    if url is not None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError("--url: must begin with http:// or https://, as http://127.0.0.1:8277")
        return Source(url.rstrip("/"), None, key)
    server, folder = _server(find_config_file(config, environ), environ)
    host = str(server.get("host") or "")
    host = _ANY.get(host, host)
    shown = f"[{host}]" if ":" in host else host
    cert = folder / Path(str(server["tls_cert"])).expanduser() if server.get("tls_cert") else None
    scheme = "https" if cert else "http"
    return Source(f"{scheme}://{shown}:{server.get('port') or DEFAULT_PORT}", cert, key)


def _server(path: Path | None, environ: Mapping[str, str]) -> tuple[dict[str, Any], Path]:
    """``[server]`` as far as it matters, and the folder that its paths start from."""
    table: dict[str, Any] = {}
    if path is not None:
        try:
            found = tomllib.loads(path.read_bytes().decode("utf-8-sig")).get("server", {})
        except (OSError, ValueError):
            raise ConfigError(f"{path}: can't be read; see csq-proxy check, or give --url") from None
        table.update(found if isinstance(found, dict) else {})
    for name in ("host", "port", "tls_cert"):
        if value := environ.get(f"CSQ_PROXY_SERVER__{name.upper()}"):
            table[name] = value
    return table, Path.cwd() if path is None else path.parent


def show(place: Source, *, as_json: bool, watch: bool) -> None:
    """Print the status once, or every `EVERY_S` seconds until Ctrl-C. Exits with 1 where there is none."""
    try:
        status = place.fetch()
        if as_json:
            _print_json(place, status, watch=watch)
        else:
            _print_table(place, status, watch=watch)
    except Unreachable as error:
        fail((str(error),), 1)
    except KeyboardInterrupt:  # how `--watch` ends
        return


def _print_json(place: Source, status: dict[str, Any], *, watch: bool) -> None:
    if not watch:
        print(json.dumps(status, indent=2))  # noqa: T201 - the command's own output
        return
    while True:  # a line each time
        print(json.dumps(status), flush=True)  # noqa: T201 - the command's own output
        time.sleep(EVERY_S)
        status = place.fetch()


def _print_table(place: Source, status: dict[str, Any], *, watch: bool) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console()
    shown = _drawn(place, status)
    if not watch:
        console.print(shown)
        return
    with Live(shown, console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            live.update(shown, refresh=True)
            time.sleep(EVERY_S)
            try:
                shown = _drawn(place, place.fetch())
            except Unreachable as error:
                shown = Text(str(error), "red")


def _drawn(place: Source, status: dict[str, Any]) -> RenderableType:
    from rich import box  # noqa: PLC0415
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    stopping = ", stopping" if status["stopping"] else ""
    title = Text(
        f"csq-proxy {status['version']} at {place.url}, up {_duration(status['uptime_s'])}{stopping}"
    )
    table = Table("project", "slots", "API", "token", "left", "requests", "cloud", box=box.SIMPLE)
    for name, project in status["projects"].items():
        for number, row in enumerate(_rows(project)):
            table.add_row(*([Text(name, "bold"), _slots(project)] if not number else ["", ""]), *row)
    return Group(title, table, *_notes(status))


def _rows(project: dict[str, Any]) -> Iterator[list[Text]]:
    from rich.text import Text  # noqa: PLC0415

    for name, api in project["apis"].items():
        left = _duration(api["seconds_left"]) if api["usable"] else "-"
        cloud = (api["endpoint"] or "-").partition("://")[2] or "-"
        state = Text(api["state"], _COLORS.get(api["state"], ""))
        yield [Text(name), state, Text(left), Text(str(api["requests"])), Text(cloud)]
    if not project["apis"]:
        yield [Text("on first use", "dim"), *[Text("")] * 4]


def _slots(project: dict[str, Any]) -> Text:
    from rich.text import Text  # noqa: PLC0415

    slots = project["slots"]
    waiting = f", {slots['waiting']} waiting" if slots["waiting"] else ""
    shared = f" (ours: {slots['allowance']})" if slots["allowance"] < slots["limit"] else ""
    return Text(f"{slots['in_use']}/{slots['limit']}{shared}{waiting}", "yellow" if waiting else "")


def _notes(status: dict[str, Any]) -> Iterator[Text]:
    """What somebody should look at, a line each."""
    from rich.text import Text  # noqa: PLC0415

    for fault in status["reload"]["last_faults"]:
        yield Text(f"configuration refused: {fault}", "red")
    if dropped := status["log_lines_dropped"]:
        yield Text(f"log lines that couldn't be written: {dropped}", "yellow")
    for name, project in status["projects"].items():
        for why in project["missing"]:
            yield Text(f"missing: {why}", "red")
        credentials = project["credentials"]
        if credentials["days_left"] is not None and credentials["days_left"] <= 30:
            yield Text(f"{name}: credentials end on {credentials['expires']}: renew them", "yellow")
        for error in project["last_errors"][:MOST_ERRORS]:
            yield Text(f"{name}: {error['at'][:19]}Z {error['code']}: {error['message']}")


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
