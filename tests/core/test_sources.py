"""Reading Python source that others wrote."""

from __future__ import annotations

import ast
import gc
import sys
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from agentgym.graders.sources import parse, parse_expression

MODULE = "\n".join(f"def f{n}(x):\n    return [g(y, {n}) for y in x if y > ({n} + x * (2 - y))]" for n in range(40))


@pytest.fixture
def _restless() -> Iterator[None]:
    """Threads take turns as often as they can, and objects are collected all the time."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(20)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)


class Cyclic:
    """The collector frees it by running Python, at which another thread may take over."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        self.itself = None  # type: ignore[assignment]


def failing() -> str:
    """Return a traceback, for which the standard library parses lines of this file."""
    try:
        return str(sum(one / 0 for one in range(3)) + [1, [2, 3]][0])  # type: ignore[operator]
    except ZeroDivisionError:
        return traceback.format_exc()


@pytest.mark.usefixtures("_restless")
def test_threads_that_parse_at_the_same_time_do_not_disturb_each_other() -> None:
    expression = "+".join(f"({n} * (x - [y, {n}][0]))" for n in range(200))
    wanted = ast.dump(parse(MODULE)), ast.dump(parse_expression(expression))

    def read(place: int) -> tuple[str, str]:
        for _ in range(50):
            Cyclic()
        if place % 2:  # takes no lock
            for _ in range(20):
                said = failing()
                assert "ZeroDivisionError" in said
        return ast.dump(parse(MODULE)), ast.dump(parse_expression(f" {expression}\n"))

    with ThreadPoolExecutor(6) as threads:
        assert set(threads.map(read, range(60))) == {wanted}


def test_the_style_of_what_others_wrote_warns_nobody() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ast.unparse(parse("x = '\\.'")) == "x = '\\\\.'"


@pytest.mark.parametrize("source", ["x = (", "x = '\0'"])
def test_what_is_no_python_is_refused(source: str) -> None:
    with pytest.raises((SyntaxError, ValueError)):
        parse(source)
