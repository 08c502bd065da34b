"""``csq-proxy health``: whether the configured proxy answers, for probes that run every few seconds.

Reads where the proxy listens by tomllib and the environment alone. Imports no library, since these would take
most of a probe's time; reads no secret but the caller's key, and runs no command.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from proxy.blocking import within
from proxy.cli.console import fail, note, say
from proxy.config.files import absolute, find_config_file, read, read_toml, working_folder
from proxy.config.trust import READABLE, Untrusted
from proxy.config.variables import KEY, PREFIX
from proxy.errors import ConfigError

PURPOSE = "End with 0 if the proxy on this computer answers, else with 1; for probes."
TIMEOUT_S = 2.0
"""The bound of each wait for the proxy; the image's HEALTHCHECK is ended after 3 s."""
MOST_S = 2 * TIMEOUT_S
"""The bound of the whole: a server may send a byte now and then, and a name server be silent."""
DEFAULTS: Mapping[str, object] = {
    "host": "localhost",
    "port": 8277,
    "tcp": True,
    "unix_socket": None,
    "tls_cert": None,
}
"""The keys of ``[server]`` that tell where the proxy listens, and the defaults of `proxy.config.settings`."""
_MOST_BYTES = 64
_END = "-----END CERTIFICATE-----"
_STRANGER = "a program other than csq-proxy answers there"
SPEAKS_TLS = b"port speaks HTTPS"
"""In the answer of `proxy.server.tls` to a request without TLS."""
REACHED_BY = {"localhost": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not listened on
_TRUE = ("true", "1", "on", "yes", "t", "y")
_FALSE = ("false", "0", "off", "no", "f", "n")


class Listener(NamedTuple):
    """Where the proxy listens: the Unix socket if ``tcp`` is false, else the host and the port."""

    host: str
    port: int
    unix_socket: Path | None
    tls_cert: Path | None

    @property
    def name(self) -> str:
        """The listener as a person knows it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix:{self.unix_socket}" if self.unix_socket else f"{host}:{self.port}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail((f"{message}. See: {self.prog} --help",), 2)


def main(arguments: Sequence[str]) -> None:
    """Exit with 1 if the proxy doesn't answer as wanted. Raises ConfigError, OutputLost, SystemExit."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.help:
        say(parser.format_help().rstrip())
        return
    file, others = find_config_file(options.config, os.environ)
    listener = find_listener(file, os.environ)
    if fault := _fault(
        listener, find_key(options.key_file) if options.ready else None, is_ready=options.ready
    ):
        hint = f"; passed over: {', '.join(others)}" if others else ""
        fail((f"{listener.name}: {fault}{hint}",), 1)


def make_parser() -> _Parser:
    """The parser of the options."""
    parser = _Parser("csq-proxy health", description=PURPOSE, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE", help="The configuration file (TOML).")
    parser.add_argument("--ready", action="store_true", help="Ask for fresh tokens, too, as /-/ready does.")
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help="A file with a caller's key: with --ready, where callers are defined.",
    )
    parser.add_argument("-h", "--help", action="store_true", help="Show this message and exit.")
    return parser


def find_listener(path: Path | None, environ: Mapping[str, str]) -> Listener:
    """The listener: from variables, else from the file ``path`` (None: there is none), else the default.

    A file that can't be read is told and passed over: the proxy that runs has refused it as well, and a probe
    must not end a proxy that works. Raises ConfigError if another user could have written it, and where the
    listener can't be known.
    """
    faults: list[str] = []
    server = read_toml(path, faults).get("server") if path else None
    for fault in faults:
        note(fault)
    given: dict[str, Any] = {**DEFAULTS, **(server if isinstance(server, dict) else {})}
    bases = dict.fromkeys(DEFAULTS, path.parent if path else working_folder())
    for name, value in environ.items():
        key = name.lower().removeprefix(f"{PREFIX.lower()}server__")
        if name.startswith(PREFIX) and key in DEFAULTS and value:
            given[key], bases[key] = value, working_folder()
    return _listener(given, bases, environ)


def _listener(given: Mapping[str, Any], bases: Mapping[str, Path], environ: Mapping[str, str]) -> Listener:
    host, tcp = (str(given[key]).strip().lower() for key in ("host", "tcp"))
    host = host.removeprefix("[").removesuffix("]")
    paths = {
        key: absolute(str(given[key]), bases[key], environ) if given[key] else None
        for key in ("unix_socket", "tls_cert")
    }
    if tcp not in (*_TRUE, *_FALSE):
        raise ConfigError("server.tcp: must be true or false")
    if tcp in _FALSE:
        if paths["unix_socket"] is None:
            raise ConfigError(
                "server.tcp: false, and server.unix_socket isn't set, so there is no address to ask"
            )
        return Listener("localhost", 0, **paths)
    return Listener(REACHED_BY.get(host, host), _port(given["port"]), None, paths["tls_cert"])


def _port(value: Any) -> int:
    """The port, from all that `proxy.config.settings` takes for a whole number. Raises ConfigError."""
    try:
        port = float(value)
    except (OverflowError, TypeError, ValueError):
        port = 0
    if not (0 < port <= 65_535 and port == int(port)):
        raise ConfigError(
            "server.port: must be a whole number from 1 to 65535 to be asked at; 0 is any free port"
        )
    return int(port)


def find_key(file: Path | None) -> str | None:
    """The caller's key in the file ``--key-file``, else in `KEY`; None where neither is given.

    Raises ConfigError for a key that can't be meant as it stands.
    """
    text, place = os.environ.get(KEY), KEY
    if file is not None:
        place = "--key-file"
        try:
            text = read(file).data.decode("utf-8-sig")
        except Untrusted as untrusted:
            raise ConfigError(f"{place}: {untrusted}") from None
        except OSError as error:
            raise ConfigError(f"{place}: can't read {file}: {error.strerror}") from None
        except ValueError:
            raise ConfigError(f"{place}: {file} isn't UTF-8 text") from None
    elif not text:
        return None
    from proxy.config.pasted import value_of  # noqa: PLC0415 - a probe without a key needn't wait for it

    try:
        key = value_of(text or "")
    except ValueError as wrong:
        raise ConfigError(f"{place}: the key {wrong}") from None
    if not key.isascii():
        raise ConfigError(f"{place}: must hold a key, which is one line of ASCII")
    return key


def is_answered(listener: Listener) -> bool:
    """Whether a csq-proxy answers there."""
    return _fault(listener, None, is_ready=False) is None


def _fault(listener: Listener, key: str | None, *, is_ready: bool) -> str | None:
    """The fault of the proxy's answer; None where all is well. Raises ConfigError.

    Each refusal of the proxy's own has the field Proxy-Status (RFC 9209), and its good answers have their
    words; another web server's have not, though one for a page of its own may answer each path with 200.
    """
    try:
        answer, start = within(MOST_S, listener, lambda: _answer(listener, key, is_ready))
    except ssl.SSLError as error:
        return f"no TLS that server.tls_cert fits ({error.reason or error})"
    except OSError as error:
        return f"can't be reached ({error.strerror or error})"
    except http.client.HTTPException:
        return _STRANGER
    status = answer.status
    if SPEAKS_TLS in start:
        return "it speaks TLS, and server.tls_cert isn't set here; give its --config"
    is_told = (b'"ready":' if is_ready else b"alive\n") in start or "Proxy-Status" in answer.headers
    if status < 500 and not is_told:
        return f"{_STRANGER} (status {status})"
    if not is_ready:
        return None if status < 500 else f"answered {status}"  # 401, where callers are defined, means alive
    if status == 401:
        problem = "this key is not a caller's" if key else "a caller's key is needed to know"
        return f"{problem}; give --key-file, or set {KEY}"
    return None if status == 200 else f"answered {status}: not ready"


def _answer(listener: Listener, key: str | None, is_ready: bool) -> tuple[http.client.HTTPResponse, bytes]:
    """The proxy's answer, and how its content begins. Raises ConfigError, OSError, HTTPException."""
    connection = http.client.HTTPConnection(listener.host, listener.port or None, timeout=TIMEOUT_S)
    try:
        connection.sock = _connected(listener, trusted_only=bool(key))
        connection.request(
            "GET", "/-/ready" if is_ready else "/-/healthy", headers={"X-API-Key": key} if key else {}
        )
        answer = connection.getresponse()
        return answer, answer.read(_MOST_BYTES)
    finally:
        connection.close()


def _connected(listener: Listener, *, trusted_only: bool) -> socket.socket:
    """A connection to the listener; with ``trusted_only`` its certificate must be the configured one."""
    if listener.unix_socket is None:
        sock = socket.create_connection((listener.host, listener.port), TIMEOUT_S)
    else:
        sock = socket.socket(socket.AF_UNIX)
    try:
        if listener.unix_socket is not None:
            sock.settimeout(TIMEOUT_S)
            sock.connect(str(listener.unix_socket))
        return sock if listener.tls_cert is None else _tls(listener.tls_cert, trusted_only).wrap_socket(sock)
    except BaseException:
        sock.close()
        raise


def _tls(cert: Path, trusted_only: bool) -> ssl.SSLContext:
    if trusted_only:
        try:
            return pinned(cert)
        except (OSError, ValueError):
            raise ConfigError(f"server.tls_cert: {cert} can't be read as PEM certificates") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # an answer is all that counts, and nothing secret is sent
    return context


def pinned(cert: Path) -> ssl.SSLContext:
    """A context for a listener that shows this file's certificate. Raises OSError, ValueError.

    Its names don't count: they are those that callers use. It is the first one in the file; those of its
    issuers, which may follow, are not trusted: other servers can have a certificate of the same issuer.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    text = read(cert, advice=READABLE).data.decode("ascii", "ignore")  # PEM has comments
    context.load_verify_locations(cadata="".join(text.partition(_END)[:2]))
    return context
