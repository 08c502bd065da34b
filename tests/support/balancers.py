"""The balancers of ``csq-proxy snippets --for gateway``: their printed configurations, run here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import trustme
from support.harness import WAIT_S, free_port

FILES = {"haproxy": "haproxy.cfg", "nginx": "nginx.conf", "envoy": "envoy.yaml"}
_NAMES = r"csq-proxy-(\d)\.csq-proxy\.csq-proxy\.svc\.cluster\.local"


def parts(shown: str) -> dict[str, str]:
    """The files of the text, by name; the comment before them has the name ""."""
    cut = re.split(r"^--- (\S+)$", shown, flags=re.MULTILINE)
    return {"": cut[0], **dict(zip(cut[1::2], cut[2::2], strict=True))}


def program(kind: str) -> str | None:
    """The path of a balancer's program; of Envoy's without the launcher that its Python package brings."""
    found = shutil.which(kind) or shutil.which(kind, path=str(Path(sys.executable).parent))
    if kind != "envoy" or found is None:
        return found
    behind = Path(found).absolute().parents[1].glob("lib/python3*/site-packages/envoy/_bin/envoy")
    return str(next(behind, found))


def adapted(kind: str, text: str, folder: Path, ports: Sequence[int], key: str) -> Path:
    """Write a printed configuration with other addresses; its file.

    ``ports`` are the balancer's own and those of the replicas, and ``key`` is the monitor's.
    """
    port, *ports = ports
    text = re.sub(_NAMES + r":\d+", lambda found: f"127.0.0.1:{ports[int(found[1])]}", text)
    text = re.sub(
        rf"{_NAMES}, port_value: \d+", lambda found: f"127.0.0.1, port_value: {ports[int(found[1])]}", text
    )
    text = re.sub(r"/etc/[a-z]+-tls/", f"{folder}/", text)
    text = text.replace("bind :8443", f"bind 127.0.0.1:{port}")
    text = text.replace("listen 8443", f"listen 127.0.0.1:{port}")
    text = text.replace("address: 0.0.0.0, port_value: 8443", f"address: 127.0.0.1, port_value: {port}")
    text = text.replace("KEY-OF-MONITOR", key)
    if kind == "nginx":  # a package's nginx writes to folders of its own
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        folders = "".join(f"  {one}_temp_path {folder}/{one};\n" for one in kinds)
        text = f"pid {folder}/pid;\nerror_log stderr;\n" + text.replace("http {\n", f"http {{\n{folders}", 1)
    path = folder / FILES[kind]
    path.write_text(text)
    return path


def check_command(kind: str, path: Path) -> list[str]:
    """The command by which a balancer checks a configuration."""
    return {
        "haproxy": [program(kind) or kind, "-c", "-f", str(path)],
        "nginx": [program(kind) or kind, "-t", "-e", "stderr", "-c", str(path)],
        "envoy": [program(kind) or kind, "--mode", "validate", "-l", "error", "-c", str(path)],
    }[kind]


def _command(kind: str, path: Path) -> list[str]:
    return {
        "haproxy": [program(kind) or kind, "-db", "-f", str(path)],
        "nginx": [program(kind) or kind, "-e", "stderr", "-c", str(path), "-g", "daemon off;"],
        "envoy": [
            *(program(kind) or kind, "-c", str(path), "-l", "error"),
            *("--concurrency", "1", "--disable-hot-restart"),
        ],
    }[kind]


def trusting(folder: Path) -> ssl.SSLContext:
    """Write a certificate for the balancer into the folder; what its callers trust."""
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "tls.pem")
    context = ssl.create_default_context()  # strict from Python 3.13 on
    authority.configure_trust(context)
    context.set_alpn_protocols(["http/1.1"])
    return context


@contextlib.asynccontextmanager
async def balancer(
    kind: str, text: str, folder: Path, ports: Sequence[int], key: str
) -> AsyncIterator[tuple[int, ssl.SSLContext]]:
    """Run a balancer with a printed configuration; its port and what its callers trust."""
    context, port = trusting(folder), free_port()
    path = adapted(kind, text, folder, (port, *ports), key)
    with (folder / f"{kind}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *_command(kind, path), stdout=log, stderr=log, env={**os.environ, "CSQ_MONITOR_KEY": key}
        )
    try:
        async with asyncio.timeout(WAIT_S):
            while process.returncode is None:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
            else:
                raise RuntimeError((folder / f"{kind}.log").read_text())
        yield port, context
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), WAIT_S)
