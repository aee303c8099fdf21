"""Small repositories with one planted defect: to learn the tools on, and to test with where there is no network."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from agentgym.sandbox import SandboxSpec
from agentgym.task import Hidden, Public, Task
from agentgym.types import Split
from agentgym_envs.code.splits import digest
from agentgym_envs.swe.diffs import change
from agentgym_envs.swe.hints import tiers
from agentgym_envs.swe.sources import Repository


class _Part(NamedTuple):
    """A function of the library, the ways in which it can be wrong, and tests that tell."""

    module: str
    name: str
    source: str
    defects: Sequence[tuple[str, str, str]]
    """What stands there, what is put in its place, and how a user sees it."""
    visible: str
    hidden: str


_PARTS = (
    _Part(
        "words",
        "initials",
        'def initials(name):\n    """Return the first letters of a name\'s parts, in capitals."""\n'
        "    return ''.join(part[0].upper() for part in name.split())\n",
        (
            (".upper()", "", "initials('ada lovelace') is 'al'; it should be in capitals"),
            ("part[0]", "part[:2]", "initials('ada lovelace') has more than one letter of each name"),
        ),
        "    assert words.initials('') == ''\n",
        "    assert words.initials('ada lovelace') == 'AL'\n    assert words.initials('Jo') == 'J'\n",
    ),
    _Part(
        "words",
        "shorten",
        'def shorten(text, width):\n    """Return a text of at most `width` characters, with dots if it was cut."""\n'
        "    if len(text) <= width:\n        return text\n    return text[: width - 3] + '...'\n",
        (
            ("<= width", "< width", "a text of exactly the wanted width is cut by shorten"),
            ("width - 3", "width", "what shorten returns is longer than the wanted width"),
        ),
        "    assert words.shorten('abc', 9) == 'abc'\n",
        "    assert words.shorten('abcdef', 6) == 'abcdef'\n    assert words.shorten('abcdefgh', 7) == 'abcd...'\n",
    ),
    _Part(
        "numbers",
        "clamp",
        'def clamp(value, low, high):\n    """Return the value, or the bound that it is beyond."""\n'
        "    return max(low, min(value, high))\n",
        (
            ("max(low, min(value, high))", "min(low, max(value, high))", "clamp returns a bound for values within"),
            ("min(value, high)", "value", "clamp lets values above the upper bound through"),
        ),
        "    assert numbers.clamp(-5, 0, 3) in (0, 3)\n",
        "    assert numbers.clamp(2, 0, 3) == 2\n    assert numbers.clamp(9, 0, 3) == 3\n"
        "    assert numbers.clamp(-1, 0, 3) == 0\n",
    ),
    _Part(
        "numbers",
        "mean",
        'def mean(values):\n    """Return the mean of some numbers, 0 of none."""\n'
        "    return sum(values) / len(values) if values else 0\n",
        (
            (" if values else 0", "", "mean([]) raises ZeroDivisionError"),
            ("len(values)", "(len(values) + 1)", "mean([2, 4]) is 2 and should be 3"),
        ),
        "    assert numbers.mean([0, 0]) == 0\n",
        "    assert numbers.mean([]) == 0\n    assert numbers.mean([2, 4]) == 3\n",
    ),
    _Part(
        "lists",
        "chunks",
        'def chunks(items, size):\n    """Return the items in lists of `size`, the last one may be shorter."""\n'
        "    return [items[start : start + size] for start in range(0, len(items), size)]\n",
        (
            ("len(items)", "len(items) - size + 1", "chunks drops the last items where they do not fill a list"),
            ("start + size", "size", "the second list that chunks returns is empty"),
        ),
        "    assert lists.chunks([1], 1) == [[1]]\n",
        "    assert lists.chunks([1, 2, 3], 2) == [[1, 2], [3]]\n    assert lists.chunks([1, 2], 1) == [[1], [2]]\n",
    ),
    _Part(
        "lists",
        "unique",
        'def unique(items):\n    """Return each item once, in the order in which they came first."""\n'
        "    return list(dict.fromkeys(items))\n",
        (
            ("list(dict.fromkeys(items))", "sorted(set(items))", "unique forgets the order of its items"),
            ("dict.fromkeys(items)", "items", "unique returns the same item more than once"),
        ),
        "    assert lists.unique([1]) == [1]\n",
        "    assert lists.unique([3, 1, 3, 2]) == [3, 1, 2]\n    assert lists.unique([2, 2]) == [2]\n",
    ),
)


def tasks(count: int, seed: int = 0) -> Iterator[Task]:
    """Yield tasks; there are two defects in each of six functions, in repositories that are called after the seed."""
    for number in range(seed, seed + count):
        yield task(number)


def task(seed: int) -> Task:
    """Return the task of a seed: every defect once in twelve seeds, in an order of modules that varies."""
    rng = random.Random(seed)
    broken = _PARTS[seed % len(_PARTS)]
    old, new, said = broken.defects[seed // len(_PARTS) % len(broken.defects)]
    package = f"kit{seed}"
    right = _library(package, rng)
    place = f"{package}/{broken.module}.py"
    wrong = {**right, place: right[place].replace(broken.source, broken.source.replace(old, new, 1))}
    wrong_bytes, right_bytes = ({name: text.encode() for name, text in files.items()} for files in (wrong, right))
    test_file = f"tests/test_{broken.module}.py"
    function = f"test_{broken.name}_works"
    hidden_test = f"\n\ndef {function}():\n{broken.hidden}"
    patch = change(wrong_bytes, right_bytes).diff
    kept = [f"{test_file}::test_{one.name}" for one in _PARTS if one.module == broken.module]
    return Task(
        id=f"{package}-{broken.name}",
        split=_split_of(broken),
        public=Public(prompt=f"{said}.", files=wrong, data={"repo": package, "base_commit": ""}),
        hidden=Hidden(
            data={
                "fail_to_pass": [f"{test_file}::{function}"],
                "pass_to_pass": [*kept],
                "tests": {test_file: right[test_file] + hidden_test},
                "twins": 8,
            },
            reference={"patch": patch},
        ),
        hints=tiers(patch, Repository(wrong_bytes)),
        sandbox=SandboxSpec(memory_mb=512, pids=128),
        grader="pytest_ids",
        difficulty=0.1,
    )


def _split_of(broken: _Part) -> Split:
    """Hold out whole functions, by their digests: one for each of the two splits that are not trained on."""
    order = sorted(_PARTS, key=lambda one: digest(one.source))
    return "test" if broken is order[-1] else "validation" if broken is order[-2] else "train"


def _library(package: str, rng: random.Random) -> Mapping[str, str]:
    parts = rng.sample(_PARTS, len(_PARTS))
    files = {f"{package}/__init__.py": "", "README.md": f"# {package}\n\nSmall helpers.\n", "tests/__init__.py": ""}
    for module in dict.fromkeys(one.module for one in parts):
        own = [one for one in parts if one.module == module]
        files[f"{package}/{module}.py"] = f'"""Helpers for {module}."""\n\n\n' + "\n\n".join(one.source for one in own)
        tests = [f"def test_{one.name}():\n{one.visible}" for one in own]
        files[f"tests/test_{module}.py"] = f"from {package} import {module}\n\n\n" + "\n\n".join(tests)
    return files
