"""Data tools run the texts of ``csq-proxy snippets``, before the sandbox and with a caller's key.

    python tests/long/tools/run.py [--venvs FOLDER] [dlt airbyte tap-rest-api-msdk r calc ...]

Those in Python come from PyPI, each into an environment of its own; R (``r-base-core``) and LibreOffice Calc
(``libreoffice-calc-nogui``) are used where they are installed. Only the job's number and the size of a page
are put in. Prints each tool's version, what it sent, and the rows that it has. The exit code is 1 where rows
are missing, or where a company's HTTP proxy saw a request.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import structlog
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.harness import RawServer
from support.snippets import KEY, company_proxy, finished_export, served, text

from proxy.config.settings import Settings

LIMIT_S = 600.0
"""For one command; an installation may take minutes."""
ROWS, SURVEYS = 3000, 47
PACKAGES = {"dlt": "dlt[duckdb]", "airbyte": "airbyte-cdk", "tap-rest-api-msdk": "tap-rest-api-msdk"}
PROGRAMS = {"r": "Rscript", "calc": "soffice"}
TOLD = ("range", "if-range", "if-none-match", "if-modified-since", "accept-encoding", "user-agent")
"""The fields that are shown."""


COUNT = """
with pipeline.sql_client() as client:
    print(client.execute_sql("SELECT count(*) FROM surveys"))
"""


class Bench:
    """A folder in which one tool works, and the commands that it may use."""

    def __init__(self, folder: Path, venv: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.venv = venv / "bin"
        self.environ = {**os.environ, **environ, "CSQ_KEY": KEY, "HOME": str(folder)}

    def write(self, name: str, content: object) -> None:
        """A file of the folder: text as it is, all else as JSON."""
        text_of_it = content if isinstance(content, str) else json.dumps(content)
        (self.folder / name).write_text(text_of_it, encoding="utf-8")

    async def run(self, *command: str, **environ: str) -> str:
        """The command's output. Raises RuntimeError where it failed."""

        def call() -> str:
            ended = subprocess.run(
                command,
                cwd=self.folder,
                env={**self.environ, **environ},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
            if ended.returncode:
                raise RuntimeError(f"{command[0]} ended with {ended.returncode}: {ended.stdout[-2000:]}")
            return ended.stdout

        return await asyncio.to_thread(call)


async def dlt(bench: Bench, shown: str) -> int:
    """Rows in DuckDB after a run of the pipeline."""
    bench.write("it.py", shown + COUNT)
    own = {"RUNTIME__DLTHUB_TELEMETRY": "false", "DLT_DATA_DIR": str(bench.folder / "dlt")}
    printed = await bench.run(str(bench.venv / "python"), "it.py", **own)
    return int(re.findall(r"\d+", printed.splitlines()[-1])[0])


async def airbyte(bench: Bench, shown: str) -> int:
    """Records of a read by the manifest's source."""
    stream = {"name": "surveys", "json_schema": {}, "supported_sync_modes": ["full_refresh"]}
    sync = {"stream": stream, "sync_mode": "full_refresh", "destination_sync_mode": "overwrite"}
    bench.write("manifest.yaml", shown)
    bench.write("config.json", {"csq_key": KEY})
    bench.write("catalog.json", {"streams": [sync]})
    read = (
        "read",
        "--config",
        "config.json",
        "--catalog",
        "catalog.json",
        "--manifest-path",
        "manifest.yaml",
    )
    printed = await bench.run(str(bench.venv / "source-declarative-manifest"), *read, no_proxy="127.0.0.1")
    return printed.count('"type":"RECORD"')


async def tap(bench: Bench, shown: str) -> int:
    """Records of the tap, with the configuration that Meltano would give it."""
    [extractor] = yaml.safe_load(shown.replace("$CSQ_KEY", KEY))["plugins"]["extractors"]
    bench.write("config.json", extractor["config"])
    [host] = re.findall(r"start it with no_proxy=(\S+) in", shown)
    program = str(bench.venv / "tap-rest-api-msdk")
    printed = await bench.run(program, "--config", "config.json", no_proxy=host)
    return printed.count('"type":"RECORD"')


async def r(bench: Bench, shown: str) -> int:
    """Rows of the data frame."""
    bench.write("it.R", f'{shown}cat("rows", nrow(table), "\\n")\n')
    return int((await bench.run("Rscript", "it.R")).split()[-1])


async def calc(bench: Bench, shown: str) -> int:
    """Rows of the sheet, without its header."""
    bench.write("it.sh", shown)
    await bench.run("sh", "it.sh")
    await bench.run("soffice", "--headless", "--convert-to", "csv", "latest.ods")
    return len((bench.folder / "latest.csv").read_text(encoding="utf-8").splitlines()) - 1


TOOLS = {"dlt": dlt, "airbyte": airbyte, "tap-rest-api-msdk": tap, "r": r, "calc": calc}


@contextlib.asynccontextmanager
async def recorded() -> AsyncIterator[tuple[Settings, bytearray]]:
    """A proxy with callers, reached by a door that keeps what comes in: the configuration, and what came."""
    came = bytearray()
    port = 0

    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, keep: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                came.extend(data if keep else b"")
                sink.write(data)
                await sink.drain()
        sink.close()

    async def door(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_proxy = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pass_on(reader, to_proxy, keep=True), pass_on(behind, writer, keep=False))

    async with RawServer(door) as entry, served(with_callers=True, door=entry.port) as settings:
        port = settings.server.port
        yield (
            settings.model_copy(
                update={
                    "server": settings.server.model_copy(update={"port": entry.port, "allowed_hosts": []})
                }
            ),
            came,
        )


def sent(came: bytes) -> list[str]:
    """Each request: method, path and the fields of `TOLD`."""
    heads = re.findall(
        r"^([A-Z]+) (\S+) HTTP/1.1\r\n((?:[^\r\n]+\r\n)*)", came.decode("latin-1"), re.MULTILINE
    )
    requests = []
    for method, target, fields in heads:
        named = [line for line in fields.splitlines() if line.partition(":")[0].lower() in TOLD]
        key = [
            name for name in ("X-API-Key:", "csq_key=") if name.lower() in (target + "\n" + fields).lower()
        ]
        requests.append(" | ".join((f"{method} {target.replace(KEY, 'KEY')}", *named, *key)))
    return requests


async def version_of(name: str, venv: Path) -> str | None:
    """The tool's version; None where it can't be had here."""
    bench = Bench(venv, venv, {})
    try:
        if name in PROGRAMS:
            if shutil.which(PROGRAMS[name]) is None:
                return None
            return (await bench.run(PROGRAMS[name], "--version")).strip().splitlines()[-1]
        if not bench.venv.exists():
            await bench.run(sys.executable, "-m", "venv", str(venv), HOME=os.environ.get("HOME", str(venv)))
            await bench.run(str(bench.venv / "pip"), "install", "-q", PACKAGES[name])
        package = PACKAGES[name].partition("[")[0]
        look = f"import importlib.metadata as m; print(m.version({package!r}))"
        return (await bench.run(str(bench.venv / "python"), "-c", look)).strip()
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        print(f"{name}: {error}")
        return None


async def try_out(name: str, folder: Path, venv: Path) -> bool:
    """Run a tool and print what happened; whether all was well."""
    version = await version_of(name, venv)
    if version is None:
        print(f"{name}: not here, skipped")
        return True
    async with recorded() as (settings, came), company_proxy() as (variables, seen):
        number, _ = await finished_export(settings, ROWS)
        came.clear()
        shown = text(name, settings).replace("JOB_ID/", f"{number}/")
        shown = re.sub(r"(page_size: |limit\W+)100", r"\g<1>20", shown)
        try:
            rows = await TOOLS[name](Bench(folder, venv, variables), shown)
        except RuntimeError as error:
            print(f"{name} {version}: {error}")
            return False
        wanted = ROWS if name in PROGRAMS else SURVEYS
        print(f"{name} {version}: {rows} of {wanted} rows; seen by the HTTP proxy: {len(seen)}")
        for request in sent(bytes(came)):
            print(f"    {request}")
        return rows == wanted and not seen


def main() -> None:
    """Run the tools that are asked for, one after the other."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venvs", type=Path, help="a folder in which the environments are kept")
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=", ".join(TOOLS))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        venvs = (asked.venvs or Path(work) / "venvs").absolute()
        good = []
        for name in asked.tools or TOOLS:
            folder, venv = Path(work) / name, venvs / name
            folder.mkdir()
            venv.mkdir(parents=True, exist_ok=True)
            good.append(asyncio.run(try_out(name, folder, venv)))
    sys.exit(not all(good))


main()
