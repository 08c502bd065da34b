"""The rate of an export's file of 1 GiB through the proxy, beside curl's straight from the storage.

    python tests/long/exports/run.py [--mib 1024] [--pairs 7] [--plain]

nginx is the storage, over TLS on loopback (``--plain``: without TLS), with a worker for each core. curl reads
the file into nothing: straight from nginx and through the proxy, in turns. Prints each pair, the medians, and
the CPU time that each process took for a GiB. All of them share the machine's cores: with two cores, half of
the sum of these times is the least that a download can take. The exit code is 1 where the median of the
pairs' ratios is below 0.8, where the proxy took more than 8 MiB for a download, and where a content was not
whole. Linux only, for its account of CPU time; needs nginx and curl. Takes about half a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import trustme

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.processes import cpu_s, free_port
from support.harness import RawServer, TokenServer
from support.programs import forget_http_proxies, logged_url
from support.storage import SIGNATURE, ExportCloud

LIMIT_S = 60.0
"""For the start of a program, and for one download."""
GOAL = 0.8
MOST_MIB = 8.0
KEY = "the-key-of-the-analyst"
FILE = "/part-00000.csv"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
NGINX_CONF = """
daemon off; worker_processes auto; pid nginx.pid; error_log stderr warn;
events {{ worker_connections 64; }}
http {{
  access_log off; sendfile on; root files;
  client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
  server {{ listen 127.0.0.1:{port}{tls}; }}
}}
"""
NGINX_TLS = " ssl; ssl_certificate cert.pem; ssl_certificate_key key.pem"


class Download(NamedTuple):
    """A download: bytes a second, and the CPU seconds that each program took for it."""

    rate: float
    curl_s: float
    nginx_s: float
    proxy_s: float


class Programs(NamedTuple):
    """What runs: nginx and the proxy by their process ids, and the file's URLs."""

    nginx: int
    proxy: int
    straight: str
    through: str


def write_file(path: Path, size: int) -> None:
    """A CSV file of so many bytes."""
    lines = b"".join(b"%d,%032x,FR,desktop,%d\n" % (n, n * 7919**9 % 2**128, n % 7) for n in range(20_000))
    with path.open("wb") as file:
        while (left := size - file.tell()) > 0:
            file.write(lines[:left])


def start_nginx(folder: Path, port: int, *, tls: bool) -> subprocess.Popen[bytes]:
    """nginx with ``files`` as its storage, which its workers' user can read."""
    assert NGINX is not None
    if tls:
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(folder / "ca.pem"))
        issued = ca.issue_cert("localhost")
        issued.private_key_pem.write_to_path(str(folder / "key.pem"))
        (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    folder.chmod(0o755)
    (folder / "nginx.conf").write_text(NGINX_CONF.format(port=port, tls=NGINX_TLS if tls else ""))
    return subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")])


@contextlib.asynccontextmanager
async def programs(folder: Path, size: int, *, tls: bool) -> AsyncIterator[Programs]:
    """nginx with the file, and the proxy before a cloud that names it."""
    (folder / "files").mkdir()
    write_file(folder / f"files{FILE}", size)
    port = free_port()
    host = f"{'localhost' if tls else '127.0.0.1'}:{port}"
    storage = f"{'https' if tls else 'http'}://{host}"
    cloud, token = ExportCloud(storage), TokenServer()
    cloud.add_run(100_001, FILE)

    async def patient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(TimeoutError):  # no second request came on the connection
            await cloud(reader, writer)

    async with contextlib.AsyncExitStack() as stack:
        nginx = start_nginx(folder, port, tls=tls)
        stack.callback(nginx.wait)
        stack.callback(nginx.terminate)
        api = await stack.enter_async_context(RawServer(patient))
        auth = await stack.enter_async_context(RawServer(token))
        token.endpoint = api.url
        config = folder / "csq-proxy.toml"
        config.touch(mode=0o600)
        config.write_text(
            f"[server]\nport = 0\n[callers.analyst]\nkey = {json.dumps(KEY)}\n"
            '[projects.shop]\nclient_id = "id-1"\nclient_secret = "a-long-secret-1"\n'
            f'[contentsquare]\nauth_url = "{auth.url}"\nallowed_endpoints = ["{api.url[7:]}"]\n'
            f'allowed_downloads = ["{host}"]\n' + (f'ca_file = "{folder}/ca.pem"\n' if tls else "")
        )
        log = folder / "proxy.log"
        with log.open("wb") as errors:
            proxy = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "proxy", "serve", "--config", str(config)),
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        stack.push_async_callback(proxy.wait)
        stack.callback(proxy.terminate)
        url = await logged_url(log, LIMIT_S)
        through = f"{url}/-/exports/shop/1001/latest.csv?csq_key={KEY}"
        yield Programs(nginx.pid, proxy.pid, f"{storage}{FILE}{SIGNATURE}", through)


async def download(run: Programs, url: str, size: int, *options: str) -> Download:
    """One run of curl. Raises RuntimeError for a content that isn't whole."""

    def used() -> list[float]:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return [ended.ru_utime + ended.ru_stime, cpu_s(run.nginx), cpu_s(run.proxy)]

    before = used()
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-s", "-o", os.devnull, "-w", "%{http_code} %{size_download} %{speed_download}"),
        *options,
        url,
        stdout=subprocess.PIPE,
    )
    printed, _ = await asyncio.wait_for(curl.communicate(), LIMIT_S)
    status, got, rate = printed.decode().split()
    if (int(status), int(got)) != (200, size):
        raise RuntimeError(f"curl got {got} of {size} bytes, with the status {status}")
    return Download(float(rate), *(after - since for after, since in zip(used(), before, strict=True)))


def peak_mib(pid: int) -> float:
    """The most memory that a process has had so far."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in line]
    return int(line.split()[1]) / 1024


def show(name: str, downloads: list[Download], size: int) -> None:
    """Print the medians."""
    rate, *times = (statistics.median(values) for values in zip(*downloads, strict=True))
    curl_s, nginx_s, proxy_s = (seconds * 2**30 / size for seconds in times)
    print(
        f"{name:8} {rate / 1e6:5.0f} MB/s; CPU seconds for a GiB: curl {curl_s:.2f}, nginx {nginx_s:.2f},"
        f" proxy {proxy_s:.2f}, together {curl_s + nginx_s + proxy_s:.2f}"
    )


async def measure(folder: Path, size: int, pairs: int, *, tls: bool) -> bool:
    """Whether the goals are reached."""
    straight: list[Download] = []
    through: list[Download] = []
    async with programs(folder, size, tls=tls) as run:
        before_mib = peak_mib(run.proxy)
        trust = ("--cacert", str(folder / "ca.pem")) if tls else ()
        await download(run, run.through, size)  # the look-ups, and the file into the system's memory
        for _ in range(pairs):
            straight.append(await download(run, run.straight, size, *trust))
            through.append(await download(run, run.through, size))
            rates = straight[-1].rate / 1e6, through[-1].rate / 1e6
            print(
                f"straight {rates[0]:.0f}, through {rates[1]:.0f} MB/s: {rates[1] / rates[0]:.2f}", flush=True
            )
        took_mib = peak_mib(run.proxy) - before_mib
    show("straight", straight, size)
    show("through", through, size)
    ratio = statistics.median(ours.rate / theirs.rate for ours, theirs in zip(through, straight, strict=True))
    print(
        f"ratio {ratio:.2f} (goal: {GOAL}); memory of the proxy: {took_mib:.1f} MiB more (most: {MOST_MIB:g})"
    )
    return ratio >= GOAL and took_mib <= MOST_MIB


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=1024, help="the file's size")
    parser.add_argument("--pairs", type=int, default=7, help="how many pairs of downloads")
    parser.add_argument("--plain", action="store_true", help="the storage has no TLS")
    options = parser.parse_args()
    if NGINX is None or shutil.which("curl") is None:
        print("This run needs nginx and curl.")
        return 2
    forget_http_proxies()
    with tempfile.TemporaryDirectory() as folder:
        good = asyncio.run(measure(Path(folder), options.mib << 20, options.pairs, tls=not options.plain))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
