"""The JSON schemas of Contentsquare's answers, in proxy/sandbox/schemas: tests hold answers against them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

import proxy.sandbox

SCHEMAS = Path(proxy.sandbox.__file__).parent / "schemas"


def names() -> Iterator[tuple[str, str]]:
    """The method and the path's pattern of each answer that has a schema."""
    for name in _found():
        method, _, pattern = name.partition(" ")
        yield method, pattern


def hold(method: str, path: str, content: object) -> None:
    """Fail unless ``content`` has the shape of a successful answer of this path."""
    _check(_of(method, path.partition("?")[0]), content)


def hold_refusal(content: object, *, oauth: bool = False) -> None:
    """Fail unless ``content`` has the shape of an error, of the APIs or of RFC 6749."""
    _check(_validator("errors.json", "oauth" if oauth else "api"), content)


def fits(method: str, path: str, content: object) -> bool:
    """Whether ``content`` has the shape of a successful answer of this path."""
    return bool(_of(method, path.partition("?")[0]).is_valid(content))


def _check(validator: Any, content: object) -> None:
    faults = [f"{fault.json_path}: {fault.message[:300]}" for fault in validator.iter_errors(content)]
    assert not faults, "\n".join(faults)


def _of(method: str, path: str) -> Any:
    """Of two that fit, the path with fewer parameters wins. Speed Analysis answers all methods alike."""
    if path.startswith("/v1/speed-analysis/"):
        method = "POST"
    for name in sorted(_found(), key=lambda name: name.count("{")):
        known, _, pattern = name.partition(" ")
        if known == method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", pattern), path):
            return _validator(_found()[name], name)
    raise AssertionError(f"No schema for {method} {path}")


@functools.cache
def _found() -> dict[str, str]:
    """The file of each answer, by its method and path."""
    return {
        name: path.name
        for path in SCHEMAS.glob("*.json")
        for name in _read(path.name)["$defs"]
        if " " in name
    }


@functools.cache
def _read(file: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((SCHEMAS / file).read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(content)
    return content


@functools.cache
def _validator(file: str, name: str) -> Any:
    pointer = (
        name.replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D").replace(" ", "%20")
    )
    return Draft202012Validator({**_read(file), "$ref": f"#/$defs/{pointer}"})
