"""Many cases in one test, where to begin it takes longer than to run each of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

Test = Callable[..., Any]


def together(names: str | tuple[str, ...], cases: Iterable[object]) -> Callable[[Test], Test]:
    """As `pytest.mark.parametrize`, but all cases are one test with its fixtures; a failure names its case.

    The cases must leave the fixtures as they found them.
    """
    wanted = (names,) if isinstance(names, str) else names
    params = [case if isinstance(case, type(pytest.param())) else _param(case, len(wanted)) for case in cases]

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        async def run_all(**others: Any) -> None:
            for param in params:
                with _named(param, wanted) as values:
                    await test(**values, **others)

        @functools.wraps(test)
        def call_all(**others: Any) -> None:
            for param in params:
                with _named(param, wanted) as values:
                    test(**values, **others)

        run = run_all if inspect.iscoroutinefunction(test) else call_all
        signature = inspect.signature(test)
        rest = [one for name, one in signature.parameters.items() if name not in wanted]
        vars(run)["__signature__"] = signature.replace(parameters=rest)
        return run

    return decorate


@contextmanager
def _named(param: Any, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The arguments of a case, which an error in it names."""
    values = dict(zip(names, param.values, strict=True))
    try:
        yield values
    except BaseException as exc:
        exc.add_note(f"The case is {param.id or values!r}.")
        raise


def _param(case: Any, length: int) -> Any:
    return pytest.param(case) if length == 1 else pytest.param(*case)
