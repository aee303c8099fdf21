"""Names of tests as published sets have them: lists or JSON texts, and some cut off in their parameters."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from agentgym_envs.code.refusals import Refused


def listed(value: Any) -> tuple[str, ...]:
    """Return test ids that are a list, or a JSON text of one.

    Raises:
        ValueError: they are neither.
    """
    found = json.loads(value) if isinstance(value, str) and value.strip() else value or ()
    names = list(found) if isinstance(found, Iterable) and not isinstance(found, str) else [found]
    if not all(isinstance(one, str) and one for one in names):
        raise ValueError(f"wanted a list of test ids, or a JSON text of one, found {str(value)[:60]!r}")
    return tuple(names)


def usable(failing: Iterable[str], passing: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return fail-to-pass and pass-to-pass ids that pytest can be asked for.

    An id that was cut off behind a `[` stands for every set of its test's parameters, and nothing is named twice:

    >>> usable(["t.py::test_a[1 -", "t.py::test_a[2]", "t.py::test_b"], ["t.py::test_a[3]", "t.py::test_c[x]"])
    (('t.py::test_a', 't.py::test_b'), ('t.py::test_c[x]',))

    Raises:
        Refused: there is none that fails, or one is not of pytest's form.
    """
    first = _whole(failing, frozenset())
    second = _whole(passing, frozenset(first))
    if not first:
        raise Refused("it names no test that fails before")
    for one in (*first, *second):
        if ".py::" not in one:
            raise Refused(f"its tests are not named as pytest names them: {one[:80]!r}")
    return first, second


def _whole(ids: Iterable[str], taken: frozenset[str]) -> tuple[str, ...]:
    names = [one if "[" not in one or one.endswith("]") else one.partition("[")[0] for one in ids]
    all_of = {one for one in names if "[" not in one} | {one for one in taken if "[" not in one}
    kept = (one for one in names if "[" not in one or one.partition("[")[0] not in all_of)
    return tuple(one for one in dict.fromkeys(kept) if one not in taken)
