"""What a wrong query has in common with a right one: Reasoning-SQL's partial signals.

Each is a measurement between 0 and 1 for a verdict's components. A scheme such as `weighted` keeps every right query
above every wrong one, whatever these are
(Reasoning-SQL: Reinforcement Learning with SQL Tailored Partial Rewards for Reasoning-Enhanced Text-to-SQL).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Set

_TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|\d+\.?\d*|\w+|<>|[<>!=]=|\|\||\S""")
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)


def tokens(sql: str) -> list[str]:
    """Return the tokens of a query without comments, and in lower case but for its texts.

    >>> tokens("SELECT Name FROM t WHERE x >= 'A b' -- why")
    ['select', 'name', 'from', 't', 'where', 'x', '>=', "'A b'"]
    """
    found = _TOKEN.findall(_COMMENT.sub(" ", sql))
    return [one if one.startswith("'") else one.strip('"`[]').lower() or one for one in found if one != ";"]


def ngrams(sql: str, gold: str, size: int = 2) -> float:
    """Return the Jaccard index of the sets of `size` tokens in a row."""
    return jaccard(_grams(sql, size), _grams(gold, size))


def jaccard(one: Set[Hashable], other: Set[Hashable]) -> float:
    """Return the share of what is in either that is in both; 0 if nothing is in either.

    >>> jaccard({1, 2}, {2, 3, 4})
    0.25
    """
    return len(one & other) / len(one | other) if one or other else 0.0


def outermost_order(sql: str) -> bool:
    """Whether a query orders its own rows, and not only those of a query inside it.

    >>> outermost_order("SELECT a FROM t ORDER BY a")
    True
    >>> outermost_order("SELECT max(a) FROM (SELECT a FROM t ORDER BY a)")
    False
    """
    return _order_ends(sql) is not None


def with_ties_broken(sql: str, columns: int, direction: str) -> str:
    """Return a query whose rows, where its own order leaves a choice, are ordered by all its columns.

    >>> with_ties_broken("SELECT a, b FROM t ORDER BY a LIMIT 3", 2, "DESC")
    'SELECT a, b FROM t ORDER BY a , 1 DESC, 2 DESC LIMIT 3'
    """
    end = _order_ends(sql)
    if end is None:
        return sql
    more = "".join(f", {column} {direction}" for column in range(1, columns + 1))
    return f"{sql[:end].rstrip()} {more} {sql[end:]}".rstrip()


def _order_ends(sql: str) -> int | None:
    """Return where the terms of a query's own ORDER BY end, if it has one."""
    depth, before, inside = 0, "", False
    for found in _TOKEN.finditer(_COMMENT.sub(lambda one: " " * len(one[0]), sql)):
        one = found[0].lower()
        depth += (one == "(") - (one == ")")
        if depth == 0 and (before, one) == ("order", "by"):
            inside = True
        elif depth == 0 and inside and one in ("limit", "offset", ";"):
            return found.start()
        before = one
    return len(sql) if inside else None


def _grams(sql: str, size: int) -> set[tuple[str, ...]]:
    found = tokens(sql)
    return {tuple(found[at : at + size]) for at in range(len(found) - size + 1)}
