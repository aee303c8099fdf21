"""Single test functions out of pytest files, and for each assertion the same test with a wrong expectation.

Each runs alone in a sandbox of its own, so that nothing there tells whether it is a true test or one that must fail.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from agentgym.graders.pytest_ids_assertions import Assertion, assertions
from agentgym.graders.sources import parse

Function = ast.FunctionDef | ast.AsyncFunctionDef
_FEW = 5
"""Short tests get so many twins in all, so that guessing which runs are the true ones does not pay."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of one test function."""

    path: str
    function: str
    """Its id without parameters."""
    source: str
    """The test file with this function as its only test."""
    must_pass: bool


@dataclass(frozen=True, slots=True)
class Trials:
    """What is tried beside the run of whole files."""

    trials: tuple[Trial, ...]
    by_value: bool
    """Every assertion of every function that the agent could not read has a twin that differs in an expectation, and
    all of them are tried; there is such a function. Who knows a test can tell it from its twin."""


def plan(
    tests: Mapping[str, str], ids: Sequence[str], limit: int, rng: random.Random, known: Collection[str] = ()
) -> Trials:
    """Return the trials of the functions behind some ids, in random order, with at most `limit` twins.

    Args:
        tests: the test files' sources by path.
        ids: the tests.
        limit: how many twins there may be.
        rng: decides their order and their wrong values.
        known: the functions that the agent could read.
    """
    functions = list(dict.fromkeys(one.partition("[")[0] for one in ids))
    true: dict[str, Trial] = {}
    twins: list[tuple[bool, Trial]] = []
    covered = any(one not in known for one in functions)
    for name in functions:
        path, *qualname = name.split("::")
        try:
            source = alone(tests[path], qualname)
        except (KeyError, SyntaxError):  # the function is made elsewhere: by a base class, or while the file runs
            covered = covered and name in known
            continue
        true[name] = Trial(path, name, source, must_pass=True)
        found = list(_twins(source, qualname, rng, -(-_FEW // len(functions))))
        covered = covered and (name in known or all(by_value for by_value, _ in found))
        twins += [(by_value, Trial(path, name, text, must_pass=False)) for by_value, text in found]
    chosen = twins if len(twins) <= limit else rng.sample(twins, limit)
    tried = {one.function for _, one in chosen}
    trials = [*(one for name, one in true.items() if name in tried), *(one for _, one in chosen)]
    rng.shuffle(trials)
    return Trials(tuple(trials), covered and len(chosen) == len(twins))


def unchanged(ids: Sequence[str], before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    """Return the functions behind some ids that read the same before and after."""
    return {one for one in {one.partition("[")[0] for one in ids} if _same(one, before, after)}


def _same(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    path, *qualname = name.split("::")
    if path not in before or before[path] == after.get(path, before[path]):
        return path in before
    try:
        texts = {ast.unparse(find(parse(source), qualname)) for source in (before[path], after[path])}
    except (KeyError, SyntaxError):
        return False
    return len(texts) == 1


def alone(source: str, qualname: Sequence[str]) -> str:
    r"""Return a test file with one function as its only test, in the form in which its twins are written, too.

    >>> print(alone("def test_a(): pass\ndef test_b(): assert 1", ["test_b"]))
    def test_b():
        assert 1

    Raises:
        KeyError: the file does not define the function in so many words.
    """
    module = parse(source)
    wanted = find(module, qualname)
    names = (one for one in ast.walk(wanted) if isinstance(one, ast.Name | ast.Attribute))
    _prune(module, wanted, {one.id if isinstance(one, ast.Name) else one.attr for one in names})
    return ast.unparse(module)


def _prune(home: ast.Module | ast.ClassDef, wanted: Function, used: set[str]) -> None:
    body: list[ast.stmt] = []
    for one in home.body:
        if isinstance(one, Function) and one.name.startswith("test") and one is not wanted and one.name not in used:
            continue
        if isinstance(one, ast.ClassDef):
            _prune(one, wanted, used)
        body.append(one)
    home.body = body or [ast.Pass()]


def find(module: ast.Module, qualname: Sequence[str]) -> Function:
    """Return a function by the names of its classes and its own.

    Raises:
        KeyError: it is not there, or there twice.
    """
    name = qualname[-1]
    owners = _owners(module, qualname)
    home: ast.Module | ast.ClassDef = owners[-1] if owners else module
    found = [one for one in home.body if isinstance(one, Function) and one.name == name]
    if len(found) != 1:
        raise KeyError(f"wanted one function {'::'.join(qualname)}, found {len(found)}")
    return found[0]


def _owners(module: ast.Module, qualname: Sequence[str]) -> list[ast.ClassDef]:
    home: ast.Module | ast.ClassDef = module
    owners: list[ast.ClassDef] = []
    for name in qualname[:-1]:
        classes = [one for one in home.body if isinstance(one, ast.ClassDef) and one.name == name]
        if len(classes) != 1:
            raise KeyError(f"wanted one class {name}, found {len(classes)}")
        home = classes[0]
        owners.append(home)
    return owners


def _twins(source: str, qualname: Sequence[str], rng: random.Random, enough: int) -> Iterator[tuple[bool, str]]:
    """Yield files with one wrong expectation each, of every assertion; failing that, one that fails at its end."""
    count = len(_assertions(source, qualname)[1])
    contradicted: set[int] = set()
    for place in list(range(count)) * max(1, -(-enough // max(1, count))):
        module, found = _assertions(source, qualname)
        contradict = found[place].contradict
        by_value = contradict(rng) if contradict is not None else None
        if by_value is not None:
            contradicted.add(place)
            yield by_value, ast.unparse(ast.fix_missing_locations(module))
    if len(contradicted) < count or not count:
        yield False, _canary(source, qualname)


def _assertions(source: str, qualname: Sequence[str]) -> tuple[ast.Module, list[Assertion]]:
    module = parse(source)
    return module, assertions(module, find(module, qualname))


def _canary(source: str, qualname: Sequence[str]) -> str:
    module = parse(source)
    find(module, qualname).body.append(ast.Assert(ast.Constant(False)))
    return ast.unparse(ast.fix_missing_locations(module))
