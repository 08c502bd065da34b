"""The folders' ranks: a module imports only from its own folder and from folders to the right of it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import proxy

PACKAGE = Path(proxy.__file__).parent
ROOT = "root words"
RANKS = (
    "cli",
    "app",
    "gateway",
    "admin",
    "projects",
    "tokens",
    "server",
    "upstream",
    "http1",
    "config",
    "logs",
    ROOT,
)
"""From left to right. `server` and `upstream` stand side by side, and so does `sandbox`, see below."""
ONLY_IMPORTED_BY = {"sandbox": {"cli"}, "cli": {ROOT}}
"""What only these folders may import; of the root words, `__main__` alone does."""
STRANGERS = {("server", "upstream")}
LIBRARIES = {
    "aiohttp": {"server", "sandbox", "tokens"},
    "orjson": {"logs"},
    "prometheus_client": {"admin"},
    "pydantic": {"config"},
    "pydantic_settings": {"config"},
    "rich": {"cli"},
    "structlog": {"app", "logs"},
    "typer": {"cli"},
}
"""The folders that may import a library; the others don't know that it is there."""


@functools.cache
def trees() -> dict[str, ast.Module]:
    """Every module by its dotted name below ``proxy``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


@functools.cache
def imported(module: str, *, from_top: bool = False) -> tuple[str, ...]:
    """The full names that a module imports, wherever; ``from_top``: as it is loaded."""
    return tuple(_imported(trees()[module], from_top=from_top))


def _imported(tree: ast.Module, *, from_top: bool) -> Iterator[str]:
    nodes = (node for node in tree.body if not isinstance(node, ast.If)) if from_top else ast.walk(tree)
    for node in nodes:  # the `if` at the top is `if TYPE_CHECKING:`
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "import by the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str | None:
    """The module of ours that a full name is in, None where it is another's."""
    parts = name.split(".")
    if parts[0] != "proxy":
        return None
    for end in range(len(parts), 1, -1):
        if (module := ".".join(parts[1:end])) in trees():
            return module
    return "__init__"


def folder_of(module: str) -> str:
    folder = module.partition(".")[0]
    return folder if folder in RANKS or folder == "sandbox" else ROOT


def arrows() -> Iterator[tuple[str, str]]:
    """Every import of one module by another."""
    for module in trees():
        for name in imported(module):
            target = module_of(name)
            if target is not None and target != module:
                yield module, target


def test_every_folder_has_its_rank() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {*RANKS, "sandbox"} - {ROOT}


def test_a_folder_imports_only_to_the_right() -> None:
    wrong = []
    for module, target in arrows():
        own, other = folder_of(module), folder_of(target)
        if other == own:
            continue
        if other in ONLY_IMPORTED_BY:
            fine = own in ONLY_IMPORTED_BY[other] and (own != ROOT or module == "__main__")
        elif own == "sandbox":
            fine = other == ROOT
        elif own == ROOT:
            fine = module == "__main__"
        else:
            fine = RANKS.index(own) < RANKS.index(other) and (own, other) not in STRANGERS
        if not fine:
            wrong.append(f"{module} imports {target}")
    assert not wrong, f"move the code, or hand it what it needs: {wrong}"


def test_no_module_imports_itself_by_a_detour() -> None:
    graph: dict[str, set[str]] = {}
    for module in trees():
        found = {module_of(name) for name in imported(module, from_top=True)}
        graph[module] = {name for name in found if name is not None} - {module}
    TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


def test_a_library_stays_in_the_folders_that_hide_it() -> None:
    used = {(name.partition(".")[0], module) for module in trees() for name in imported(module)}
    for library, folders in LIBRARIES.items():
        wrong = [module for name, module in used if name == library and folder_of(module) not in folders]
        assert not wrong, f"{library} is hidden by {folders}"


COMPILED = ("gateway", "http1", "logs", "projects", "server", "upstream")
NOT_COMPILED = {"gateway.oauth", "server.site"}


def test_no_compiled_coroutine_waits_while_it_handles_an_exception() -> None:
    """mypyc's coroutines leave that exception current: each later one of the thread has it as its context."""
    waiting = [
        f"{module}:{node.lineno}"
        for module, tree in trees().items()
        if folder_of(module) in COMPILED and module not in NOT_COMPILED
        for handler in ast.walk(tree)
        if isinstance(handler, ast.ExceptHandler)
        for node in ast.walk(handler)
        if isinstance(node, ast.Await)
    ]
    assert not waiting
