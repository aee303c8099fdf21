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
    with _lock, warnings.catch_warnings():  # the filters are global: one thread at a time
        warnings.simplefilter("ignore")
        return ast.parse(source)
