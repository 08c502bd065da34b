"""``csq-proxy status``: the answer of a running proxy to ``/-/status``, as a table.

Hides where the running proxy is found: by ``--url``, else by ``[server]`` of the configuration. Speaks
only HTTP with the proxy, and shows its answer; must not know how the answer is made.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from proxy.cli.console import fail, say_json
from proxy.config.environment import KEY
from proxy.config.files import READABLE, read
from proxy.config.load import load_listener
from proxy.config.pasted import value_of
from proxy.config.settings import LOCALHOST, ServerSettings
from proxy.config.trust import Untrusted
from proxy.errors import ConfigError
from proxy.foreign import shown
from proxy.origin import Origin, bracketed, is_loopback
from proxy.server.request import UNIX
from proxy.upstream.tls import NAME_MISMATCHES, verify_alike

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

EVERY_S = 2.0
"""The time between two requests with ``--watch``."""
TIMEOUT_S = 5.0
MOST_ERRORS = 3
"""The most errors that are shown for each project."""
_COLORS = {
    "fresh": "green",
    "stale": "yellow",
    "fetching": "yellow",
    "idle": "green",
    "failing": "red",
    "refused": "red",
}
_REACHED_BY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not listened on
"""The address that reaches a proxy that listens on all addresses."""


class Unreachable(Exception):
    """The proxy can't be asked for its status; the message is one line for people."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a key is sent to the given address only."""

    def redirect_request(self, *_: object) -> None:
        return None


class _UnixHandler(urllib.request.HTTPHandler):
    """Sends requests through the Unix socket at ``path``, by TLS if there is a context for it."""

    def __init__(self, path: str, tls: ssl.SSLContext | None) -> None:
        super().__init__()
        self._path = path
        self._tls = tls

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """`urllib.request` calls this method for http."""
        return self.do_open(self._connection, req)  # type: ignore[arg-type]

    def _connection(self, host: str, *, timeout: float, **_: object) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(host, timeout=timeout)
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(timeout)
            sock.connect(self._path)
            connection.sock = self._tls.wrap_socket(sock) if self._tls else sock
        except BaseException:
            sock.close()
            raise
        return connection


class Source(NamedTuple):
    """The proxy to ask, by its ``url`` without a path. ``cert``: trusted too; ``key``: a caller's.

    The URL of a Unix socket is ``unix:`` and its path.
    """

    url: str
    cert: Path | None
    key: str | None

    def fetch(self) -> dict[str, Any]:
        """The running proxy's status. Raises `Unreachable`."""
        path = self.url.removeprefix(UNIX) if self.url.startswith(UNIX) else None
        base = self.url if path is None else "http://localhost"
        request = urllib.request.Request(f"{base}/-/status")  # noqa: S310 - `source` checked the scheme
        if self.key:
            request.add_header("X-API-Key", self.key)
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirect()]
        if path is not None:
            handlers.append(_UnixHandler(path, self._tls() if self.cert else None))
        elif self.url.startswith("https:"):
            handlers.append(urllib.request.HTTPSHandler(context=self._tls()))
        status: object = None
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_S) as answer:
                status = json.load(answer)
        except urllib.error.HTTPError as error:
            error.close()
            raise Unreachable(self._refused(error.code)) from None
        except OSError as error:
            raise Unreachable(self._silent(error)) from None
        except (ValueError, RecursionError, http.client.HTTPException):
            pass  # the answer is no JSON, or no HTTP
        if not isinstance(status, dict) or "projects" not in status:
            raise self.stranger()
        return status

    def stranger(self) -> Unreachable:
        """The error for an answer that isn't ours."""
        return Unreachable(f"{self.url}: a program other than csq-proxy answers there; give another --url")

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.check_hostname = not self.url.startswith(UNIX)  # the socket's path is its name
        verify_alike(context)
        if self.cert is not None:
            try:
                data = read(self.cert, advice=READABLE).data
                context.load_verify_locations(cadata=data.decode("ascii", "ignore"))  # PEM has comments
            except Untrusted as untrusted:
                raise Unreachable(f"server.tls_cert: {untrusted}") from None
            except (OSError, ValueError):
                raise Unreachable(
                    f"server.tls_cert: {self.cert} can't be read as PEM certificates; see csq-proxy check"
                ) from None
        return context

    def _refused(self, code: int) -> str:
        if code == 401:
            problem = "this key is not a caller's" if self.key else "a caller's key is needed"
            return f"{self.url}: {problem}; give --key-file, or set {KEY}"
        hint = ""
        if code == 421:
            hint = "; give a --url with a host name in server.allowed_hosts"
        elif code == 404 or code // 100 == 3:
            hint = "; is it a csq-proxy?"
        return f"{self.url}: answered {code}{hint}"

    def _silent(self, error: OSError) -> str:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            return f"{self.url}: {self._distrusted(reason)}"
        if isinstance(reason, ssl.SSLError):
            return f"{self.url}: no TLS there; give the --url that csq-proxy printed at its start"
        why = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        return f"{self.url}: can't be reached ({why}); is it running? Start it: csq-proxy serve"

    def _distrusted(self, error: ssl.SSLCertVerificationError) -> str:
        if error.verify_code in NAME_MISMATCHES:
            return "give a --url with a host name that its certificate names"
        hint = "; give the --config that names it in server.tls_cert" if self.cert is None else ""
        return f"its certificate isn't trusted here ({error.verify_message}){hint}"


def source(config: Path | None, url: str | None, key_file: Path | None) -> Source:
    """The proxy to ask, by flags, environment and configuration file. Raises ConfigError."""
    key = _key(key_file)
    if url is not None and url.startswith(UNIX):
        return Source(url, _cert_for_unix(url, config), key)
    if url is not None:
        base = _base_url(url)
        return Source(base, _cert_for(_origin_of(base), config), key)
    server = load_listener(config, os.environ)
    if not server.tcp:
        if server.unix_socket is None:
            raise ConfigError("server.tcp: false, and server.unix_socket isn't set, so give the --url")
        return Source(f"{UNIX}{server.unix_socket}", server.tls_cert, key)
    if not server.port:
        raise ConfigError(
            "server.port: 0 is any free port, so give the --url that csq-proxy printed at its start"
        )
    host = LOCALHOST[0] if server.host == "localhost" else _REACHED_BY.get(server.host, server.host)
    scheme = "https" if server.tls_cert else "http"
    return Source(f"{scheme}://{bracketed(host)}:{server.port}", server.tls_cert, key)


def _cert_for(origin: Origin, config: Path | None) -> Path | None:
    """The configured certificate if ``origin`` is the configured listener; None where that can't be known."""
    server = _configured(config) if origin.is_tls else None
    if server is None:
        return None
    is_host = server.host in (*_REACHED_BY, origin.host) or (origin.is_loopback and is_loopback(server.host))
    is_port = server.port in (0, origin.port)
    cert = server.tls_cert
    return cert if is_host and is_port and cert is not None and os.access(cert, os.R_OK) else None


def _cert_for_unix(url: str, config: Path | None) -> Path | None:
    """The configured certificate if ``url`` is the configured Unix socket's."""
    server = _configured(config)
    if server is None or url != f"{UNIX}{server.unix_socket}":
        return None
    return server.tls_cert


def _configured(config: Path | None) -> ServerSettings | None:
    """The configured listener; None where the configuration can't be used."""
    try:
        return load_listener(config, os.environ)
    except ConfigError:
        return None


def _key(key_file: Path | None) -> str | None:
    if key_file is None:
        text, place = os.environ.get(KEY), KEY
    else:
        place = "--key-file"
        try:
            text = read(key_file).data.decode("utf-8-sig")
        except Untrusted as untrusted:
            raise ConfigError(f"{place}: {untrusted}") from None
        except OSError as error:
            raise ConfigError(f"{place}: can't read {key_file}: {error.strerror}") from None
        except ValueError:
            raise ConfigError(f"{place}: {key_file} isn't UTF-8 text") from None
    if not text:
        return None
    try:
        key = value_of(text)
    except ValueError as wrong:
        raise ConfigError(f"{place}: the key {wrong}") from None
    if not key.isascii():
        raise ConfigError(f"{place}: must hold a key, which is one line of ASCII")
    return key


def _base_url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ConfigError("--url: must begin with http://, https:// or unix:, as http://127.0.0.1:8277")
    try:
        _origin_of(url)
    except ValueError as error:
        raise ConfigError(f"--url: {error}") from None
    if "?" in url or "#" in url or " " in url or not (url.isascii() and url.isprintable()):
        raise ConfigError("--url: must be a base URL, as http://127.0.0.1:8277")
    return url.rstrip("/")


def _origin_of(url: str) -> Origin:
    parts = urlsplit(url)
    return Origin.parse(f"{parts.scheme}://{parts.netloc}")


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
        say_json(status, indent=2)
        return
    say_json(status)
    while sys.stdout is not None:  # None: the reader has closed the pipe
        time.sleep(EVERY_S)
        say_json(place.fetch())


def _print_table(place: Source, status: dict[str, Any], *, watch: bool) -> None:
    from rich.live import Live  # noqa: PLC0415

    from proxy.cli.tables import Terminal  # noqa: PLC0415

    terminal = Terminal()
    shown = _table_of(place, status)
    if not watch:
        terminal.print(shown)
    elif not terminal.is_terminal:
        terminal.print(shown)
        while sys.stdout is not None:  # None: the reader has closed the pipe
            time.sleep(EVERY_S)
            terminal.print(_table_now(place))
    else:
        with Live(shown, console=terminal, auto_refresh=False, screen=True) as live:
            while True:
                live.update(shown, refresh=True)
                time.sleep(EVERY_S)
                shown = _table_now(place)


def _table_now(place: Source) -> RenderableType:
    from rich.text import Text  # noqa: PLC0415

    try:
        return _table_of(place, place.fetch())
    except Unreachable as error:
        return Text(str(error), "red")


def _table_of(place: Source, status: dict[str, Any]) -> RenderableType:
    """The status for people. Raises `Unreachable` if it isn't what a csq-proxy sends."""
    try:
        return _drawn(place, _lines_shown(status))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise place.stranger() from None


def _lines_shown(value: Any) -> Any:
    """The same JSON; each text is one line, which a terminal doesn't obey."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, list):
        return [_lines_shown(one) for one in value]
    if isinstance(value, dict):
        return {shown(name): _lines_shown(one) for name, one in value.items()}
    return value


def _drawn(place: Source, status: dict[str, Any]) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415
    from rich.table import Column  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from proxy.cli.tables import table  # noqa: PLC0415

    stopping = ", stopping" if status["stopping"] else ""
    title = Text(
        f"csq-proxy {status['version']} at {place.url}, up {_duration(status['uptime_s'])}{stopping}"
    )
    cloud = Column("cloud", overflow="ellipsis")  # so that each API stays on one line
    drawn = table("project", "slots", "API", "token", "left", "requests", cloud)
    for name, project in status["projects"].items():
        for number, row in enumerate(_rows(project)):
            drawn.add_row(*([Text(name, "bold"), _slots(project)] if not number else ["", ""]), *row)
    return Group(title, drawn, *_notes(status))


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
    shared = f" ({slots['allowance']} for this proxy)" if slots["allowance"] < slots["limit"] else ""
    return Text(f"{slots['in_use']}/{slots['limit']}{shared}{waiting}", "yellow" if waiting else "")


def _notes(status: dict[str, Any]) -> Iterator[Text]:
    """The problems, one line for each."""
    from rich.text import Text  # noqa: PLC0415

    for fault in status["reload"]["last_faults"]:
        yield Text(f"the changed configuration has an error: {fault}", "red")
    if dropped := status["log_lines_dropped"]:
        yield Text(f"log lines that couldn't be written: {dropped}", "yellow")
    for name, project in status["projects"].items():
        for why in project["missing"]:
            yield Text(f"missing: {why}", "red")
        credentials = project["credentials"]
        if credentials["days_left"] is not None and credentials["days_left"] <= 30:
            end = "ended" if credentials["days_left"] < 0 else "end"
            yield Text(f"{name}: credentials {end} on {credentials['expires']}: renew them", "yellow")
        for error in project["last_errors"][:MOST_ERRORS]:
            yield Text(f"{name}: {error['at'][:19]}Z {error['code']}: {error['message']}")


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
