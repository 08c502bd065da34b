"""README, CONTRIBUTING and SECURITY say what is so: files, codes and functions that they name exist."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import proxy
from proxy.errors import ProxyError

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", ".github/SECURITY.md", "CHANGELOG.md")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def definitions(path: Path) -> set[str]:
    """Functions and classes by their names, methods as ``Class.method``."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            parts = (part for part in node.body if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)))
            found |= {f"{node.name}.{part.name}" for part in parts}
    return found


def test_the_readme_stays_short() -> None:
    assert len(text_of("README.md").splitlines()) <= 260


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_a_document_links_to_is_there(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text_of(name))
    assert not [link for link in links if not ((ROOT / name).parent / link).exists()]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_heading_that_a_document_links_to_is_there(name: str) -> None:
    text = text_of(name)
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    there = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= there


def test_contributing_names_files_that_exist() -> None:
    named = set(re.findall(r"`([a-z0-9_./]+\.py|[a-z0-9_]+/)`", text_of("CONTRIBUTING.md")))
    assert not [one for one in named if not (ROOT / one).exists() and not (ROOT / "proxy" / one).exists()]


def test_the_walks_name_functions_that_exist() -> None:
    steps = re.findall(r"`([a-z0-9_/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", text_of("CONTRIBUTING.md"))
    assert len(steps) > 40
    wrong = [
        f"{file}: {name}"
        for file, names in steps
        for name in re.findall(r"`([\w.]+)`", names)
        if name not in definitions(ROOT / "proxy" / file)
    ]
    assert not wrong


def test_the_dockerfile_imports_modules_that_exist() -> None:
    [line] = re.findall(r"import (encodings[^\"]*)", text_of("Dockerfile"))
    assert [importlib.import_module(name) for name in line.split(", ")]


def test_the_readme_has_every_error_of_the_proxys_with_its_status() -> None:
    for module in pkgutil.walk_packages(proxy.__path__, "proxy."):
        if module.name != "proxy.__main__":
            importlib.import_module(module.name)
    kinds = [ProxyError]
    statuses: dict[str, set[int]] = {}
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if kind is not ProxyError and kind.__module__.startswith("proxy."):
            statuses.setdefault(kind.code, set()).add(kind.status)
    told = {}
    for codes, numbers in re.findall(
        r"^\| (`PROXY_[^|]*) \| ([0-9, ]+) \|", text_of("README.md"), re.MULTILINE
    ):
        for code in re.findall(r"PROXY_\w+", codes):
            told[code] = set(map(int, numbers.split(",")))
    assert told.keys() == statuses.keys()
    for code, numbers in statuses.items():
        assert numbers <= told[code]
