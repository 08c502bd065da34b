"""The tests mirror the package: each source file has a test file of its own, or is named here with the test
file that covers it; and no test file imports another."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import proxy

PACKAGE = Path(proxy.__file__).parent
TESTS = Path(__file__).parent
COVERED_BY = {
    "__main__": "cli/test_main",
    "admin/overview": "admin/test_admin",
    "admin/status": "admin/test_admin",
    "app/build": "app/test_reload",
    "app/session": "whole/test_windows_program",
    "tokens/record": "tokens/test_keeper",
    "cli/check": "cli/test_main",
    "cli/console": "cli/test_main",
    "cli/epilogs": "cli/test_export",
    "cli/live_report": "cli/test_live_check",
    "cli/running_proxy": "cli/test_status",
    "cli/sandbox": "cli/test_main",
    "cli/summary": "cli/test_main",
    "cli/tables": "cli/test_status",
    "config/keys": "config/test_load",
    "config/variables": "config/test_environment",
    "errors": "cli/test_power_query",
    "gateway/attempt": "gateway/test_gateway_truncation",
    "gateway/entrance": "gateway/test_own",
    "gateway/exports/calls": "gateway/exports/test_runs",
    "gateway/exports/pins": "gateway/exports/test_exports",
    "gateway/failures": "gateway/test_gateway_responses",
    "gateway/gateway": "gateway/test_gateway_requests",
    "gateway/generation": "app/test_reload",
    "gateway/held_error": "gateway/test_concurrency",
    "gateway/outward": "app/test_reload",
    "gateway/rewrite": "gateway/test_gateway_requests",
    "gateway/sharing/recording": "gateway/sharing/test_sharing",
    "gateway/tries": "gateway/test_exchange",
    "http1/heads": "http1/test_parser",
    "logs/background": "logs/test_sink",
    "projects/new_ids": "projects/test_accounts",
    "projects/readiness": "projects/test_project",
    "projects/services": "projects/test_project",
    "projects/shared_answers": "gateway/sharing/test_sharing",
    "projects/turns": "projects/test_slots",
    "sandbox/aids": "sandbox/test_sandbox",
    "sandbox/app": "sandbox/test_sandbox",
    "sandbox/catalog": "sandbox/test_sandbox_apis",
    "sandbox/enrichments": "sandbox/test_sandbox_apis",
    "sandbox/exports": "sandbox/test_storage",
    "sandbox/fields": "sandbox/test_storage",
    "sandbox/files": "sandbox/test_storage",
    "sandbox/options": "sandbox/test_sandbox",
    "sandbox/parameters": "sandbox/test_sandbox_apis",
    "sandbox/reports": "sandbox/test_speed",
    "sandbox/rows": "sandbox/test_storage",
    "sandbox/series": "sandbox/test_sandbox_apis",
    "sandbox/surveys": "sandbox/test_sandbox_apis",
    "sandbox/tokens": "sandbox/test_sandbox",
    "sandbox/wire": "sandbox/test_sandbox",
    "secret": "config/test_secrets",
    "server/answer": "admin/test_admin",
    "server/body": "gateway/test_gateway_framing",
    "server/caller_socket": "server/test_slow_readers",
    "server/connection": "server/test_seams",
    "server/departure": "gateway/test_gateway_truncation",
    "server/facts": "gateway/test_request_log",
    "server/linger": "gateway/test_gateway_requests",
    "server/request": "gateway/test_request_log",
    "server/request_id": "gateway/test_request_log",
    "server/site": "server/test_capacity",
}
"""The test file for a source file that has none of its own."""


def sources() -> set[str]:
    """The source files, without those that only map a folder."""
    paths = (path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    return {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in paths}


def own_test(source: str) -> Path:
    path = TESTS / source
    return path.with_name(f"test_{path.name}.py")


def test_each_source_file_has_its_test_file_or_is_named_with_the_one_that_covers_it() -> None:
    lonely = {source for source in sources() if not own_test(source).exists()}
    wrong = lonely ^ set(COVERED_BY)
    assert not wrong, f"write the test file, or amend COVERED_BY: {wrong}"
    missing = {name for name in COVERED_BY.values() if not (TESTS / f"{name}.py").exists()}
    assert not missing


def test_the_map_of_a_folder_defines_nothing() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        defined = [
            node for node in ast.parse(path.read_text("utf-8")).body if hasattr(node, "decorator_list")
        ]
        assert not defined, f"{path.relative_to(PACKAGE)}: move it into a module of its own"


def test_no_test_file_imports_another() -> None:
    for path in TESTS.rglob("*.py"):
        text = path.read_text("utf-8")
        if re.search(r"(?<!def )\btest_", text) is None:  # so it names none; to parse it takes time
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [part for alias in node.names for part in alias.name.split(".")]
            else:
                continue
            assert not any(name.startswith("test_") for name in names), (
                f"{path.relative_to(TESTS)}: what several files share belongs in tests/support"
            )
