"""Many cases in one test, where what they need takes longer to begin than each of them to run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest

Test = Callable[..., Awaitable[None]]


def together(names: str | tuple[str, ...], cases: Iterable[object]) -> Callable[[Test], Test]:
    """As `pytest.mark.parametrize`, but all cases are one test with its fixtures; a failure names its case.

    The cases must leave the fixtures as they found them.
    """
    wanted = (names,) if isinstance(names, str) else names
    params = [case if isinstance(case, type(pytest.param())) else _param(case, len(wanted)) for case in cases]

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        async def run(**others: Any) -> None:
            for param in params:
                values = dict(zip(wanted, param.values, strict=True))
                try:
                    await test(**values, **others)
                except BaseException as exc:
                    exc.add_note(f"The case is {param.id or values!r}.")
                    raise

        signature = inspect.signature(test)
        rest = [one for name, one in signature.parameters.items() if name not in wanted]
        vars(run)["__signature__"] = signature.replace(parameters=rest)
        return run

    return decorate


def _param(case: Any, length: int) -> Any:
    return pytest.param(case) if length == 1 else pytest.param(*case)
