"""The running proxy, as commands find and call it: by ``--url``, else by ``[server]`` of the configuration.

Speaks HTTP with the proxy; must not know what the answers mean.
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
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from proxy.cli.health import REACHED_BY, SPEAKS_TLS, find_key, pinned
from proxy.config.files import absolute, find_config_file, read, working_folder
from proxy.config.load import load_listener, project_ports
from proxy.config.settings import WILDCARDS, ServerSettings
from proxy.config.trust import READABLE, Untrusted
from proxy.config.variables import KEY
from proxy.errors import ConfigError
from proxy.origin import Origin, bracketed, is_loopback
from proxy.server.request import UNIX
from proxy.upstream.tls import NAME_MISMATCHES, verify_alike

TIMEOUT_S = 5.0
_MOST_WAITS = 4
_PIECE_BYTES = 64 * 1024
MOST_ERROR_BYTES = 64 * 1024


class Unreachable(Exception):
    """The proxy can't be reached, or refuses; the message is one line for people."""


class Cut(Unreachable):
    """The connection was reset within an answer, as the proxy does with an answer that it can't complete."""


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a key is sent to the given address only."""

    def redirect_request(self, *_: object) -> None:
        """`urllib.request` calls this method; None makes the redirect an error."""


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Takes an answer of any status for an answer: none is an exception, and no redirect is followed."""

    def http_response(
        self,
        request: urllib.request.Request,  # noqa: ARG002
        response: http.client.HTTPResponse,
    ) -> http.client.HTTPResponse:
        """`urllib.request` calls this method for each answer."""
        return response

    https_response = http_response


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


class Answer(NamedTuple):
    """An answer of the proxy, of any status; the content of an error is cut after `MOST_ERROR_BYTES`."""

    status: int
    fields: Message
    content: bytes

    def json(self) -> Any:
        """The content; None where it is no JSON."""
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            return None


class RunningProxy(NamedTuple):
    """The running proxy, by its ``url`` without a path. ``cert``: trusted too; ``key``: a caller's.

    The URL of a Unix socket is ``unix:`` and its path. ``passed_over``: where no configuration was found.
    ``is_configured``: the configured listener, so it shows ``cert``, whose names are those that callers use.
    """

    url: str
    cert: Path | None
    key: str | None
    passed_over: tuple[str, ...] = ()
    is_configured: bool = False

    def status(self, *, with_hour: bool = False) -> dict[str, Any]:
        """The answer of ``/-/status``, perhaps with the minutes of the last hour. Raises `Unreachable`."""
        answer = self.call("GET", "/-/status?hour=1" if with_hour else "/-/status")
        if answer.status != 200:
            raise self.refused(answer)
        status = answer.json()
        if not isinstance(status, dict) or "projects" not in status:
            raise self.stranger()
        return status

    def requests(self, parameters: Mapping[str, str | None]) -> dict[str, Any]:
        """The answer of ``/-/requests`` with these parameters (None: not given).

        Raises `Unreachable`, and ConfigError where the proxy finds a parameter wrong.
        """
        given = {name: value for name, value in parameters.items() if value is not None}
        answer = self.call("GET", f"/-/requests?{urlencode(given)}")
        found = answer.json()
        if answer.status in (400, 404) and isinstance(found, dict) and "errorMessage" in found:
            raise ConfigError(f"{self.url}: {found['errorMessage']}")
        if answer.status != 200:
            raise self.refused(answer)
        if not (isinstance(found, dict) and isinstance(found.get("requests"), list) and "next" in found):
            raise self.stranger()
        return found

    def call(
        self, method: str, path: str, content: bytes | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> Answer:
        """A request to the proxy, with JSON as its ``content``, and the answer of any status.

        ``timeout_s`` bounds each wait for the next bytes, and `_MOST_WAITS` times that the whole content.
        Raises `Unreachable`.
        """
        socket_path = self.url.removeprefix(UNIX) if self.url.startswith(UNIX) else None
        base = self.url if socket_path is None else "http://localhost"
        request = urllib.request.Request(base + path, content, method=method)  # noqa: S310 - `find` checked it
        if content is not None:
            request.add_header("Content-Type", "application/json")
        if self.key:
            request.add_header("X-API-Key", self.key)
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _AnyStatus()]
        if socket_path is not None:
            handlers.append(_UnixHandler(socket_path, self._tls() if self.cert else None))
        elif self.url.startswith("https:"):
            handlers.append(urllib.request.HTTPSHandler(context=self._tls()))
        try:
            with urllib.request.build_opener(*handlers).open(request, timeout=timeout_s) as answer:
                is_error = answer.status >= 300
                content = self._content(answer, timeout_s, MOST_ERROR_BYTES if is_error else sys.maxsize)
                if answer.length and not is_error:
                    raise self._cut()
                return Answer(answer.status, answer.headers, content)
        except http.client.IncompleteRead:  # a server in front may end a cut answer without a reset
            raise self._cut() from None
        except http.client.HTTPException:
            raise self.stranger() from None
        except ConnectionResetError:
            raise self._cut() from None
        except OSError as error:
            raise Unreachable(self._silent(error)) from None

    def _content(self, answer: http.client.HTTPResponse, timeout_s: float, most_bytes: int) -> bytes:
        """The content, up to ``most_bytes``. Raises `Unreachable` where it has no end."""
        end = time.monotonic() + _MOST_WAITS * timeout_s
        parts: list[bytes] = []
        while part := answer.read1(min(_PIECE_BYTES, most_bytes)):
            parts.append(part)
            most_bytes -= len(part)
            if time.monotonic() > end:
                raise Unreachable(f"{self.url}: its answer doesn't end; is it a csq-proxy?")
        return b"".join(parts)

    def _cut(self) -> Cut:
        return Cut(f"{self.url}: the answer was cut; csq-proxy requests tells why")

    def stranger(self) -> Unreachable:
        """The error for an answer that isn't ours."""
        return Unreachable(f"{self.url}: a program other than csq-proxy answers there; give another --url")

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        verify_alike(context)
        try:
            if self.cert is not None and self.is_configured:
                return pinned(self.cert)
            if self.cert is not None:
                data = read(self.cert, advice=READABLE).data
                context.load_verify_locations(cadata=data.decode("ascii", "ignore"))  # PEM has comments
        except Untrusted as untrusted:
            raise Unreachable(f"server.tls_cert: {untrusted}") from None
        except (OSError, ValueError):
            raise Unreachable(
                f"server.tls_cert: {self.cert} can't be read as PEM certificates; see csq-proxy check"
            ) from None
        return context

    def refused(self, answer: Answer) -> Unreachable:
        """The error for an answer of the proxy's own, with another status than 200."""
        code = answer.status
        if code == 401 and "Proxy-Status" not in answer.fields:  # each refusal of the proxy's own has it
            return self.stranger()
        if code == 401:
            problem = "this key is not a caller's" if self.key else "a caller's key is needed"
            return Unreachable(f"{self.url}: {problem}; give --key-file, or set {KEY}")
        hint = ""
        if SPEAKS_TLS in answer.content:
            way = (
                "give the --config with its server.tls_cert"
                if self.url.startswith(UNIX)
                else "begin the --url with https://"
            )
            return Unreachable(f"{self.url}: it speaks TLS; {way}")
        if code == 421:
            hint = "; give a --url with a host name in server.allowed_hosts"
        elif code == 404 or code // 100 == 3:
            hint = "; is it a csq-proxy?"
        return Unreachable(f"{self.url}: answered {code}{hint}")

    def _silent(self, error: OSError) -> str:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            return f"{self.url}: {self._distrusted(reason)}"
        if isinstance(reason, ssl.SSLError):
            return f"{self.url}: no TLS there; give the --url that csq-proxy printed at its start"
        why = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        others = f"; passed over: {', '.join(self.passed_over)}" if self.passed_over else ""
        way = "it isn't running, or it is stopping; to start it: csq-proxy serve"
        if isinstance(reason, PermissionError):
            way = "run this as the user that runs the proxy"
        elif isinstance(reason, socket.gaierror):
            way = "correct the name"
        return f"{self.url}: can't be reached ({why}): {way}{others}"

    def _distrusted(self, error: ssl.SSLCertVerificationError) -> str:
        if error.verify_code in NAME_MISMATCHES:
            return "give a --url with a host name that its certificate names"
        hint = "; give the --config that names it in server.tls_cert" if self.cert is None else ""
        return f"its certificate isn't trusted here ({error.verify_message}){hint}"


def find(config: Path | None, url: str | None, key_file: Path | None) -> RunningProxy:
    """The running proxy, by flags, environment and configuration file. Raises ConfigError."""
    key = find_key(key_file)
    file, others = find_config_file(config, os.environ)
    if url is not None and url.startswith(UNIX):
        url = f"{UNIX}{absolute(url.removeprefix(UNIX), working_folder(), os.environ)}"
        return RunningProxy(url, _cert_for_unix(url, file), key, is_configured=True)
    if url is not None:
        origin = _origin(url)
        return RunningProxy(str(origin), _cert_for(origin, file), key)
    server = load_listener(file, os.environ)
    if not server.tcp:
        if server.unix_socket is None:
            raise ConfigError("server.tcp: false, and server.unix_socket isn't set, so give the --url")
        return RunningProxy(f"{UNIX}{server.unix_socket}", server.tls_cert, key, others, is_configured=True)
    if not server.port:
        raise ConfigError(
            "server.port: 0 is any free port, so give the --url that csq-proxy printed at its start"
        )
    host = REACHED_BY.get(server.host, server.host)
    scheme = "https" if server.tls_cert else "http"
    place = f"{scheme}://{bracketed(host)}:{server.port}"
    return RunningProxy(place, server.tls_cert, key, others, is_configured=True)


def _cert_for(origin: Origin, file: Path | None) -> Path | None:
    """The configured certificate if ``origin`` is a configured listener; None where that can't be known.

    A project may have a listener of its own, with the same certificate.
    """
    server = _configured(file) if origin.is_tls else None
    if server is None:
        return None
    is_host = server.host in (*WILDCARDS, origin.host) or (origin.is_loopback and is_loopback(server.host))
    is_port = server.port in (0, origin.port) or origin.port in project_ports(file, os.environ)
    cert = server.tls_cert
    return cert if is_host and is_port and cert is not None and os.access(cert, os.R_OK) else None


def _cert_for_unix(url: str, file: Path | None) -> Path | None:
    """The configured certificate if ``url`` is the configured Unix socket's."""
    server = _configured(file)
    if server is None or url != f"{UNIX}{server.unix_socket}":
        return None
    return server.tls_cert


def _configured(file: Path | None) -> ServerSettings | None:
    """The configured listener; None where the configuration can't be used."""
    try:
        return load_listener(file, os.environ)
    except ConfigError:
        return None


def _origin(url: str) -> Origin:
    url = url.partition("/-/")[0]  # people copy the address of the page
    if not url.startswith(("http://", "https://")):
        raise ConfigError("--url: must begin with http://, https:// or unix:, as http://127.0.0.1:8277")
    try:
        return Origin.parse(url)
    except ValueError as error:
        raise ConfigError(f"--url: {error}, as http://127.0.0.1:8277") from None
