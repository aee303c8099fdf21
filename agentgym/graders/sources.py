"""Read Python source that others wrote, without running it."""

from __future__ import annotations

import ast
import threading
import warnings
from contextlib import suppress
from typing import Any, Literal

_TRIES = 20
_lock = threading.Lock()


def parse(source: str) -> ast.Module:
    r"""Return the syntax tree of a module; what the compiler thinks of its style is not our user's business.

    >>> ast.unparse(parse("x = '\\.'"))
    "x = '\\\\.'"
    """
    module: ast.Module = _read(source, "exec")
    return module


def parse_expression(source: str) -> ast.expr:
    """Return the syntax tree of one expression."""
    expression: ast.Expression = _read(source.strip(), "eval")
    return expression.body


def _read(source: str, mode: Literal["exec", "eval"]) -> Any:
    """Parse, one thread at a time: warning filters are global, and CPython 3.11 confuses the depths of several parsers.

    Those of the standard library take no lock: whoever prints a traceback meanwhile parses its lines.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(_TRIES):
            with suppress(SystemError):
                return ast.parse(source, mode=mode)  # noqa: TID251
        return ast.parse(source, mode=mode)  # noqa: TID251
