"""Read Python source that others wrote, without running it."""

from __future__ import annotations

import ast
import threading
import warnings

_lock = threading.Lock()


def parse(source: str) -> ast.Module:
    r"""Return the syntax tree of a module; what the compiler thinks of its style is not our user's business.

    >>> ast.unparse(parse("x = '\\.'"))
    "x = '\\\\.'"
    """
    # One thread at a time: warning filters are global, and CPython 3.11 confuses the depths of concurrent parsers.
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)  # noqa: TID251


def parse_expression(source: str) -> ast.expr:
    """Return the syntax tree of one expression."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source.strip(), mode="eval").body  # noqa: TID251
