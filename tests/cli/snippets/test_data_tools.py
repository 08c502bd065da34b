"""The texts by which data tools read an export's file: the tools run them, past a company's HTTP proxy."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest
from support.power_query import ended, evaluate, has_parser
from support.snippets import (
    KEY,
    TOOLS_PYTHON,
    executed,
    finished_export,
    has_r_package,
    needs,
    needs_package,
    served,
    text,
    with_and_without_callers,
)

from proxy.config.settings import Settings

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])  # the tools have no loop
ROWS = 3
SURVEYS = 47
"""The number of the sandbox's surveys."""

DUCKDB = """
import os, sys, duckdb, duckdb_extension_httpfs
[file] = __import__("pathlib").Path(duckdb_extension_httpfs.__file__).parent.rglob("httpfs.duckdb_extension")
sql = open("it.sql").read().replace("INSTALL httpfs", f"INSTALL '{file}'")
connection = duckdb.connect(config={"extension_directory": "extensions"})
connection.execute(sql.replace("KEY'", os.environ["CSQ_KEY"] + "'"))
print(connection.execute("SELECT count(*), count(DISTINCT session_id) FROM export").fetchone())
"""
"""DuckDB, with its extension from PyPI in place of its own server."""


async def with_job(what: str, settings: Settings) -> tuple[str, str]:
    """The text for a finished export, and the export's content."""
    number, content = await finished_export(settings, ROWS)
    assert len(content.splitlines()) == ROWS + 1
    return text(what, settings).replace("JOB_ID/", f"{number}/"), content


def part(shown: str, name: str) -> str:
    """A part of the text ``export``, below its heading."""
    parts = re.split(r"^--- (.*)\n", shown, flags=re.MULTILINE)
    [found] = [body for heading, body in zip(parts[1::2], parts[2::2], strict=True) if name in heading]
    return found


@needs("bash")
@needs("curl")
@with_and_without_callers
@pytest.mark.parametrize("language", ["Python", "curl"])
async def test_the_texts_of_languages_store_the_file(
    language: str, with_callers: bool, tmp_path: Path
) -> None:
    program = sys.executable if language == "Python" else "bash"
    async with served(with_callers) as settings:
        shown, content = await with_job("export", settings)
        await executed(tmp_path, program, "it", file="it", content=part(shown, language))
    assert (tmp_path / "export.csv").read_text() == content
    assert not (tmp_path / "export.part").exists()


@needs("bash")
@needs("curl")
@pytest.mark.parametrize("language", ["Python", "curl"])
async def test_no_file_is_stored_where_there_is_no_export(language: str, tmp_path: Path) -> None:
    program = sys.executable if language == "Python" else "bash"
    async with served(True) as settings:
        with pytest.raises(AssertionError, match="404"):
            await executed(
                tmp_path, program, "it", file="it", content=part(text("export", settings), language)
            )
    assert not (tmp_path / "export.csv").exists()


@pytest.mark.skipif(not has_parser(), reason="no node with @microsoft/powerquery-parser in $NODE_PATH here")
@with_and_without_callers
async def test_power_query_reads_an_export_by_one_constant_url(with_callers: bool) -> None:
    async with served(with_callers) as settings:
        shown, content = await with_job("export", settings)
        rows, errors = await ended(await evaluate(part(shown, "Power BI"), key=KEY if with_callers else ""))
    assert errors == ""
    assert [",".join(row.values()) for row in rows] == content.splitlines()[1:]
    assert [*rows[0]] == ["session_id", "country_code"]


@pytest.mark.parametrize(
    "what", [pytest.param(name, marks=needs_package(name)) for name in ("pandas", "polars")]
)
@with_and_without_callers
async def test_a_table_of_python_has_the_export_s_rows(
    what: str, with_callers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):  # Polars loads certificates for plain HTTP, too
        monkeypatch.delenv(name)
    async with served(with_callers) as settings:
        shown, _ = await with_job(what, settings)
        shown += "print('shape', table.shape)\n"
        printed = await executed(
            tmp_path, TOOLS_PYTHON, "it.py", file="it.py", content=shown, NO_PROXY="other"
        )
    assert printed.splitlines()[-1] == f"shape ({ROWS}, 2)"


@pytest.mark.skipif(not has_r_package("jsonlite"), reason="no R with jsonlite here")
@with_and_without_callers
async def test_r_has_the_export_s_rows_and_each_page_of_the_surveys(
    with_callers: bool, tmp_path: Path
) -> None:
    async with served(with_callers) as settings:
        shown, _ = await with_job("r", settings)
        shown = shown.replace("limit=100", "limit=20").replace(
            "# for", 'cat("rows", nrow(table), "\\n")\nfor'
        )
        printed = await executed(tmp_path, "Rscript", "it.R", file="it.R", content=shown)
    table, _, surveys = printed.partition(f"rows {ROWS} \n")
    assert "session_id" in table
    assert len(set(surveys.splitlines())) == len(surveys.splitlines()) == SURVEYS


@needs_package("duckdb")
@needs_package("duckdb_extension_httpfs")
@with_and_without_callers
async def test_duckdb_has_the_export_s_rows_by_sql_alone(with_callers: bool, tmp_path: Path) -> None:
    async with served(with_callers) as settings:
        shown, _ = await with_job("duckdb", settings)
        [host] = re.findall(r"start DuckDB with no_proxy=(\S+) in", shown)
        await asyncio.to_thread((tmp_path / "it.sql").write_text, shown)
        printed = await executed(tmp_path, TOOLS_PYTHON, "it.py", file="it.py", content=DUCKDB, no_proxy=host)
    assert printed == f"({ROWS}, {ROWS})\n"


@needs("sh")
@needs("wget")
@with_and_without_callers
async def test_the_line_of_cron_stores_the_file(with_callers: bool, tmp_path: Path) -> None:
    async with served(with_callers) as settings:
        shown, content = await with_job("wget", settings)
        [line] = re.findall(r"^15 6 \* \* \* (.*)$", shown, re.MULTILINE)
        wgetrc = f"header = X-API-Key: {KEY}\n"
        printed = await executed(tmp_path, "sh", "-c", line, file=".csq-wgetrc", content=wgetrc)
        assert (printed, (tmp_path / "export.csv").read_text()) == ("", content)
        (tmp_path / "export.csv").unlink()
        line = re.sub(r"/\d+/latest", "/none/latest", line)
        printed = await executed(tmp_path, "sh", "-c", line, file=".csq-wgetrc", content=wgetrc)
    assert printed == f"No export: see http://127.0.0.1:{settings.server.port}/-/\n"
    assert not (tmp_path / "export.csv").exists()
