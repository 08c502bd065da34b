"""Which module may import which: a change to the table below is a change of the design."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import proxy

PACKAGE = Path(proxy.__file__).parent
GUIDE = Path(__file__).parent.parent / "CONTRIBUTING.md"
SANDBOX = "sandbox"

MAY_IMPORT: dict[str, set[str]] = {
    # What knows nothing of the rest
    "errors": set(),
    "contentsquare": set(),
    "origin": set(),
    "secret": set(),
    "redact": set(),
    "sink": set(),
    "quick_log": {"sink"},
    "log": {"quick_log", "redact", "sink"},
    "events": set(),
    "expiry": {"events"},
    "init": {"errors"},
    "peer": set(),
    "process": set(),
    "notify": set(),
    "threads": set(),
    "names": {"threads"},
    "activation": {"errors", "origin"},
    # The configuration
    "settings": {"contentsquare", "origin", "secret"},
    "schema": {"secret", "settings"},
    "layers": {"settings"},
    "environment": {"schema"},
    "faults": {"schema"},
    "rules": {"contentsquare", "faults", "origin", "secret", "settings"},
    "config": {"environment", "errors", "faults", "layers", "rules", "schema", "secret", "settings"},
    # A refresh
    "lease": {"errors", "events", "origin"},
    "token_answer": {"errors", "lease", "origin"},
    "oauth": {"contentsquare", "errors", "lease", "names", "origin", "secret", "token_answer", "__init__"},
    "rotation": {"errors", "oauth"},
    # A request
    "http1": {"errors"},
    "slots": {"errors", "uploads"},
    "uploads": set(),
    "chunked": {"errors", "http1"},
    "body": {"errors", "http1"},
    "request": {"body", "chunked", "errors", "http1"},
    "measures": {"contentsquare", "request"},
    "server": {"peer", "request"},
    "request_id": {"http1", "request"},
    "answer": {"errors", "request", "request_id"},
    "guard": {"errors", "http1"},
    "callers": {"errors", "http1", "settings"},
    "policy": {"callers", "contentsquare", "errors", "http1"},
    "route": {"contentsquare", "errors"},
    "dial": {"errors", "http1", "names", "origin"},
    "upstream": {"chunked", "errors", "http1", "origin"},
    "pool": {"dial", "errors", "origin", "upstream"},
    "fields": {"http1", "lease"},
    "small_error": {"http1"},
    "caching": {"fields", "http1"},
    "stored": set(),
    "recording": {"caching", "contentsquare", "fields", "http1", "request", "stored"},
    "attempt": {
        "chunked",
        "contentsquare",
        "errors",
        "fields",
        "http1",
        "request",
        "small_error",
        "upstream",
    },
    "forward": {
        "attempt",
        "contentsquare",
        "errors",
        "fields",
        "lease",
        "pool",
        "request",
        "slots",
        "upstream",
    },
    "sharing": {
        "caching",
        "contentsquare",
        "errors",
        "fields",
        "forward",
        "recording",
        "request",
        "stored",
    },
    # What brings both together
    "project": {
        "contentsquare",
        "errors",
        "events",
        "lease",
        "log",
        "measures",
        "oauth",
        "rotation",
        "sharing",
        "slots",
        "token_answer",
    },
    "accounts": {"errors", "project"},
    "reload": {"errors", "events", "settings", "threads"},
    "metrics": {"__init__", "contentsquare", "expiry", "measures", "project", "reload"},
    "admin": {
        "__init__",
        "answer",
        "errors",
        "expiry",
        "lease",
        "measures",
        "metrics",
        "project",
        "reload",
        "request",
        "route",
        "threads",
    },
    "snippets": {"__init__", "errors", "origin", "secret", "settings"},
    "live": {"contentsquare", "dial", "errors", "expiry", "lease", "oauth", "origin", "settings"},
    "completion": {"config", "environment", "schema", "snippets"},
    "init_command": {"errors", "init", "rules"},
    "live_command": {"live", "settings", "tables"},
    "facade": {
        "answer",
        "callers",
        "contentsquare",
        "errors",
        "policy",
        "project",
        "request",
        "route",
    },
    "door": {"server"},
    "listeners": {"activation", "door", "errors", "origin", "server", "settings"},
    "generation": {
        "accounts",
        "callers",
        "dial",
        "errors",
        "events",
        "forward",
        "guard",
        "listeners",
        "log",
        "oauth",
        "origin",
        "pool",
        "project",
        "reload",
        "route",
        "settings",
        "sharing",
        "slots",
        "stored",
    },
    "request_log": {"contentsquare", "forward", "log", "project", "request", "request_id"},
    "gateway": {
        "admin",
        "answer",
        "callers",
        "contentsquare",
        "errors",
        "events",
        "facade",
        "forward",
        "generation",
        "listeners",
        "policy",
        "project",
        "request",
        "request_log",
        "route",
    },
    "app": {
        "activation",
        "errors",
        "events",
        "expiry",
        "gateway",
        "generation",
        "listeners",
        "log",
        "notify",
        "measures",
        "process",
        "project",
        "reload",
        "settings",
    },
    "status_command": {"config", "console", "environment", "errors", "origin", "tables"},
    # What people start
    "console": {"errors"},
    "tables": set(),
    "reading": {"config", "errors", "process", "secret", "settings"},
    "serving": {
        "__init__",
        "activation",
        "app",
        "console",
        "errors",
        "log",
        "notify",
        "process",
        "project",
        "settings",
    },
    "start": {"activation", "process", "reading", "serving"},
    "cli": {
        "__init__",
        "activation",
        "completion",
        "config",
        "console",
        "dial",
        "errors",
        "expiry",
        "init",
        "init_command",
        "listeners",
        "live",
        "live_command",
        "origin",
        "process",
        "sandbox",
        "sandbox_command",
        "serving",
        "settings",
        "snippets",
        "start",
        "status_command",
        "tables",
    },
    "sandbox_command": {
        "activation",
        "config",
        "console",
        "contentsquare",
        "errors",
        "origin",
        "sandbox",
        "serving",
        "settings",
    },
    "__main__": {"cli", "console", "errors", "process", "start"},
    "__init__": set(),
    # The simulated Contentsquare: knows the vendor, and nothing of the proxy
    SANDBOX: {"contentsquare"},
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module by its name in the table; those of the sandbox share one."""
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        yield place.parts[0].removesuffix(".py"), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module, *, from_top: bool = False) -> set[str]:
    """The modules of ours that a module imports, wherever; ``from_top``: as it is loaded."""
    found: set[str] = set()
    for node in _at_top(tree) if from_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "import by the full name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found.update(_module_of(name) for name in names if name.split(".")[0] == "proxy")
    return found


def _at_top(tree: ast.Module) -> Iterator[ast.AST]:
    for node in tree.body:
        if not isinstance(node, ast.If):  # of which we have `if TYPE_CHECKING:`
            yield node


def _module_of(name: str) -> str:
    parts = name.split(".")[1:]
    if parts and ((PACKAGE / f"{parts[0]}.py").exists() or (PACKAGE / parts[0]).is_dir()):
        return parts[0]
    return "__init__"


TREES = list(modules())


def test_every_module_has_its_place_in_the_table() -> None:
    homeless = {name for name, _ in TREES} - set(MAY_IMPORT)
    assert not homeless, f"proxy.{homeless}: give each a row in MAY_IMPORT, next to those that it resembles"


def test_the_guide_names_every_module() -> None:
    told = set(re.findall(r"`(\w+)\.py`", GUIDE.read_text(encoding="utf-8")))
    assert told == {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}


@pytest.mark.parametrize("module", sorted(MAY_IMPORT))
def test_a_module_imports_what_the_table_says_and_no_more(module: str) -> None:
    used = set().union(*(imported(tree) for name, tree in TREES if name == module)) - {module}
    surplus = used - MAY_IMPORT[module]
    assert not surplus, f"proxy.{module} imports {surplus}: move the code, or change the design's table"
    assert used == MAY_IMPORT[module], "what it no longer imports needn't be in the table"


def test_no_module_imports_itself_by_a_detour() -> None:
    graph: dict[str, set[str]] = {}
    for name, tree in TREES:
        graph.setdefault(name, set()).update(imported(tree, from_top=True) - {name})
    TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


@pytest.mark.parametrize(
    ("module", "foreign"),
    [
        *((name, "aiohttp") for name in sorted({*MAY_IMPORT} - {"oauth", "server", SANDBOX})),
        *((name, "pydantic") for name in sorted({*MAY_IMPORT} - {"layers"})),
        *((name, "prometheus_client") for name in sorted({*MAY_IMPORT} - {"metrics"})),
        *((name, "structlog") for name in sorted({*MAY_IMPORT} - {"app", "log"})),
    ],
)
def test_libraries_stay_behind_the_modules_that_hide_them(module: str, foreign: str) -> None:
    for name, tree in TREES:
        if name == module:
            used = {
                getattr(node, "module", None) or alias.name
                for node in ast.walk(tree)
                if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in node.names
            }
            assert foreign not in {full.split(".")[0] for full in used}
