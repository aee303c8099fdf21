"""Which commits may become tasks, and why the others may not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import Field

from agentgym.graders.pytest_ids_spec import PROTECTED
from agentgym.types import Record
from agentgym_envs.swe.mining.git import Change, Commit, Repository

_TESTS = (*PROTECTED, "**/conftest.py", "test/**", "**/test/**", "**/testing/**")
_RUN = ("test_*.py", "*_test.py")
_PROSE = (".md", ".rst", ".txt", ".adoc")
_BESIDE = (
    "docs/**",
    "doc/**",
    "examples/**",
    "benchmarks/**",
    ".*",
    "changelog",
    "changes",
    "authors",
    "news",
    "license",
)
"""What neither tests nor makes the behaviour that tests see."""
_PACKAGING = ("setup.py", "setup.cfg", "pyproject.toml", "tox.ini", "noxfile.py", "makefile", "poetry.lock", "uv.lock")


class Limits(Record):
    """How large a change may be."""

    source_files: Annotated[int, Field(ge=1)] = 5
    source_lines: Annotated[int, Field(ge=1)] = 250
    """Added and removed together."""
    test_files: Annotated[int, Field(ge=1)] = 4
    """That are run; what they use, such as data beside them, does not count."""


class RefusedError(Exception):
    """A commit is no task: a reason in a few fixed words, and what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason if not detail else f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Candidate:
    """A commit that changes source and tests."""

    commit: Commit
    source: tuple[str, ...]
    tests: tuple[str, ...]
    """Every changed file that belongs to the tests."""
    run: tuple[str, ...]
    """The test files among them."""
    lines: int
    """Changed lines of source."""

    def before(self, base: dict[str, bytes], after: dict[str, bytes]) -> dict[str, bytes]:
        """Return the parent's tree under the commit's tests."""
        return {**base, **{path: after[path] for path in self.tests if path in after}}

    def after(self, base: dict[str, bytes], after: dict[str, bytes]) -> dict[str, bytes]:
        """Return that tree with the commit's source, too."""
        gone = {path for path in self.source if path not in after}
        kept = {path: data for path, data in self.before(base, after).items() if path not in gone}
        return {**kept, **{path: after[path] for path in self.source if path in after}}


def is_test(path: str) -> bool:
    """Whether a file belongs to the tests.

    >>> [is_test(one) for one in ("tests/data/a.json", "pkg/a.py", "conftest.py", "pkg/a_test.py")]
    [True, False, True, True]
    """
    return _matches(path, _TESTS)


def is_run(path: str) -> bool:
    """Whether pytest should run a file: what lies beside tests is not all tests."""
    return any(fnmatchcase(PurePosixPath(path).name, one) for one in _RUN)


def is_source(path: str) -> bool:
    """Whether a file makes the behaviour that tests see.

    >>> [is_source(one) for one in ("pkg/a.py", "pkg/table.json", "docs/conf.py", "CHANGELOG.md", "setup.py")]
    [True, True, False, False, False]
    """
    if is_test(path) or PurePosixPath(path).suffix.lower() in _PROSE:
        return False
    return not _matches(path.lower(), _BESIDE) and path.lower() not in _PACKAGING


def candidate(repository: Repository, commit: Commit, limits: Limits) -> Candidate:
    """Return what a commit changes, if it may become a task.

    Raises:
        RefusedError: with the reason.
    """
    changes = repository.changes(commit)
    source = [one for one in changes if is_source(one.path)]
    tests = [one for one in changes if is_test(one.path) and one.kind != "D"]
    run = [one.path for one in tests if is_run(one.path)]
    if not any(one.path.endswith(".py") for one in source):
        raise RefusedError("changes no source")
    if not run:
        raise RefusedError("changes no test files")
    _refuse_large(source, run, limits)
    odd = next((one.path for one in (*source, *tests) if one.binary or not one.path.isprintable()), None)
    if odd is not None:
        raise RefusedError("changes a file that is not text", odd)
    lines = sum(one.lines for one in source)
    return Candidate(commit, tuple(one.path for one in source), tuple(one.path for one in tests), tuple(run), lines)


def _refuse_large(source: Sequence[Change], run: Sequence[str], limits: Limits) -> None:
    lines = sum(one.lines for one in source)
    if len(source) > limits.source_files:
        raise RefusedError("changes too many source files", str(len(source)))
    if lines > limits.source_lines:
        raise RefusedError("changes too many source lines", str(lines))
    if len(run) > limits.test_files:
        raise RefusedError("changes too many test files", str(len(run)))


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, one) or (one.startswith("**/") and fnmatchcase(path, one[3:])) for one in patterns)
