"""What stands for Contentsquare: nginx as the cloud (HTTP and TLS), and a token endpoint that names it.

The cloud answers 401 unless the injected bearer is right, and takes a whole request before it answers,
as an API does: an early answer would make some proxies close the connection. Tokens and uploads are taken
in by threads of the bench itself, which runs on the load's core.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import trustme

from bench.processes import HOST, Server, free_port

TOKEN = "bench-" + "t" * 250
SECRET = "7f3c2a905b1e4a47" * 4
"""About as long as a short JWT; without a character that any configuration would take for its own."""
GIB = 1 << 30
CONTENT_BYTES = 1024
DOWNLOAD_PATH = "/v1/metrics/download"
UPLOAD_PATH = "/v1/metrics/upload"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Cloud:
    """Where the upstream is. ``ca_file`` has the authority of its certificate, None over plain HTTP."""

    name: str
    port: int
    token_port: int
    ca_file: Path | None

    @property
    def is_tls(self) -> bool:
        return self.ca_file is not None

    @property
    def scheme(self) -> str:
        return "https" if self.is_tls else "http"

    @property
    def authority(self) -> str:
        return f"{self.name}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}"


@contextlib.contextmanager
def clouds(
    folder: Path,
    core: int,
    *,
    idle_s: int = 600,
    way: Callable[[int], AbstractContextManager[int]] = contextlib.nullcontext,
) -> Iterator[tuple[Cloud, Cloud]]:
    """The upstream over HTTP and over TLS.

    It closes connections that are idle for ``idle_s`` seconds. ``way`` gives the port by which another
    is reached: all proxies go there.
    """
    ca_file = _certificates(folder)
    with (folder / "download").open("wb") as file:
        file.truncate(GIB)
    plain, tls = free_port(), free_port()
    config = folder / "upstream.conf"
    server = Server(
        ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(config)],
        port=tls,
        core=core,
        env={},
        log=folder / "upstream.log",
        cwd=folder,
    )
    with _sink() as sink, _tokens() as tokens, contextlib.ExitStack() as ways:
        config.write_text(_nginx(folder, plain, tls, sink, idle_s))
        plain_at, tls_at, tokens_at = (ways.enter_context(way(port)) for port in (plain, tls, tokens.port))
        http_cloud = Cloud(HOST, plain_at, tokens_at, None)
        tls_cloud = Cloud("localhost", tls_at, tokens_at, ca_file)
        tokens.endpoints = {"http": http_cloud.url, "https": tls_cloud.url}
        with server:
            yield http_cloud, tls_cloud


def _certificates(folder: Path) -> Path:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", HOST)
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    ca_file = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    return ca_file


def nginx_main(folder: Path, name: str) -> str:
    """The beginning of a configuration of nginx with one worker, also as root."""
    return f"""
daemon off;
worker_processes 1;
{"user root;" if os.geteuid() == 0 else ""}
pid {folder}/{name}.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
"""


def nginx_temporary(folder: Path, name: str) -> str:
    """Where nginx may put what it spools."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "\n".join(f"  {kind}_temp_path {folder}/{name}-{kind};" for kind in kinds)


def _nginx(folder: Path, plain: int, tls: int, sink: int, idle_s: int) -> str:
    # One cipher suite for all, so that no proxy wins by what it prefers.
    content = json.dumps({"payload": ["x" * (CONTENT_BYTES - 17)]})
    return f"""{nginx_main(folder, "upstream")}
http {{
{nginx_temporary(folder, "upstream")}
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000000;
  keepalive_timeout {idle_s};
  client_header_timeout {idle_s};
  keepalive_time 24h;
  large_client_header_buffers 4 32k;
  upstream answers {{ server unix:{folder}/answers.sock; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen unix:{folder}/answers.sock;
    default_type application/json;
    location / {{ return 200 '{content}'; }}
  }}
  server {{
    listen {HOST}:{plain} backlog=1024;
    listen {HOST}:{tls} ssl backlog=1024;
    ssl_certificate {folder}/cert.pem;
    ssl_certificate_key {folder}/key.pem;
    ssl_protocols TLSv1.3;
    ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    client_max_body_size 0;
    default_type application/json;
    if ($http_authorization != "Bearer {TOKEN}") {{ return 401; }}
    location / {{
      if ($request_method = GET) {{ return 200 '{content}'; }}
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_pass http://answers;
    }}
    location = {DOWNLOAD_PATH} {{ alias {folder}/download; }}
    location = {UPLOAD_PATH} {{
      proxy_http_version 1.1;
      proxy_request_buffering off;
      proxy_pass http://{HOST}:{sink};
    }}
  }}
}}
"""


class _Sink(socketserver.StreamRequestHandler):
    """Reads a request to its end, fast, and answers 200."""

    def handle(self) -> None:
        length = 0
        while line := self.rfile.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        buffer = bytearray(_CHUNK)
        while length:
            length -= self.rfile.readinto(memoryview(buffer)[: min(length, _CHUNK)])
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")


class _SinkServer(socketserver.ThreadingTCPServer):
    daemon_threads = True


@contextlib.contextmanager
def _sink() -> Iterator[int]:
    with _SinkServer((HOST, 0), _Sink) as server, _served(server):
        yield int(server.server_address[1])


class _Tokens(http.server.ThreadingHTTPServer):
    """Answers every token request; the client id chooses the ``endpoint`` that is named."""

    daemon_threads = True
    endpoints: dict[str, str]

    def handle_error(self, request: object, client_address: object) -> None:
        """A proxy that is stopped while it fetches is no news."""

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _TokenRequest(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Tokens

    def do_POST(self) -> None:
        request = self.rfile.read(int(self.headers["Content-Length"]))
        scheme = "https" if b"id-https" in request else "http"
        answer = {
            "access_token": TOKEN,
            "token_type": "bearer",
            "expires_in": 3600,
            "endpoint": self.server.endpoints[scheme],
        }
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


@contextlib.contextmanager
def _tokens() -> Iterator[_Tokens]:
    with _Tokens((HOST, 0), _TokenRequest) as server, _served(server):
        yield server


@contextlib.contextmanager
def _served(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()


def connect(port: int) -> socket.socket:
    """A connection to a proxy, for the bulk loads."""
    return socket.create_connection((HOST, port), timeout=120)
