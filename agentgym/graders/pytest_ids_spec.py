"""What a repository task with named tests is made of, and the tree that a submission leads to."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Protocol, Self

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from agentgym.errors import VerifierError
from agentgym.graders.patches import PatchError, Tree, apply, check_tree, parse, safe_path
from agentgym.task import Public, Task
from agentgym.types import Record, Submission

logger = logging.getLogger(__name__)
PROTECTED = ("tests/**", "**/tests/**", "**/test_*.py", "**/*_test.py")
"""What a submission may not change unless the task says otherwise: test files and what lies beside them."""
BINARY = "binary"
"""Where `public.data` keeps the files of the repository that are not text: base64 by path."""
_NEVER = (
    *("**/conftest.py", "**/pytest.ini", "**/.pytest.ini", "**/sitecustomize.py", "**/usercustomize.py", "**/*.pth"),
    *("**/*.pyc", "**/*.pyo", "**/__pycache__/**", "**/*.dist-info/**", "**/*.egg-info/**", "**/*.egg-link"),
)
_ID = re.compile(r"[^:]+\.py(::[^:\[\]]+)+(\[.*\])?", re.DOTALL)


class PytestSpec(Record):
    """What the grader needs, kept in `hidden.data`; the repository itself is `public.files`."""

    fail_to_pass: Annotated[tuple[str, ...], Field(min_length=1)]
    """Ids of tests that fail without a solution. An id without `[…]` stands for every set of its parameters."""
    pass_to_pass: tuple[str, ...] = ()
    """Ids of tests that pass before and must pass after."""
    tests: dict[str, str] = {}
    """Files laid over whatever the submission has there, by path."""
    test_patch: str = ""
    """What brings the tests as a diff, where only the image has the files that it changes; `tests` wins over it."""
    protected: tuple[str, ...] = PROTECTED
    """Patterns of further files that keep their original content whatever the submission brings."""
    import_roots: tuple[str, ...] = (".",)
    """Folders of the repository from which its modules are imported, such as `src`."""
    ini: dict[str, str] = {}
    """Settings of pytest, which reads no file of the repository for any."""
    plugins: tuple[str, ...] = ()
    """Modules of pytest plugins that the sandbox's image has; no others are loaded."""
    root: Annotated[str, Field(pattern=r"^/.*[^/]$")] | None = None
    """Where the sandbox's image holds the repository, if `public.files` does not."""
    total_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Seconds that one run of pytest may take; tests of whole files run together, each twin alone."""
    twins: Annotated[int, Field(ge=0, le=1000)] = 40
    """How many must-fail twins may run; 0 leaves them out. With fewer than the assertions need, trust is lower."""

    @field_validator("fail_to_pass", "pass_to_pass")
    @classmethod
    def _ids(cls, ids: tuple[str, ...]) -> tuple[str, ...]:
        for one in ids:
            if not _ID.fullmatch(one):
                raise ValueError(f"wanted ids like 'tests/test_a.py::test_b[1]', found {one!r}")
            safe_path(one.partition("::")[0])
        return ids

    @field_validator("tests")
    @classmethod
    def _paths(cls, tests: dict[str, str]) -> dict[str, str]:
        return {safe_path(path): text for path, text in tests.items()}

    @field_validator("ini")
    @classmethod
    def _lines(cls, ini: dict[str, str]) -> dict[str, str]:
        for name, value in ini.items():
            if "\n" in name or re.search(r"\n\S", value):
                raise ValueError(f"wanted the continued lines of {name!r} indented")
        return ini

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if len({*self.ids}) < len(self.ids):
            raise ValueError("a test is named twice in fail_to_pass and pass_to_pass")
        return self

    @property
    def ids(self) -> tuple[str, ...]:
        """Every test that must pass."""
        return self.fail_to_pass + self.pass_to_pass

    @property
    def files(self) -> list[str]:
        """The test files, in order of first mention."""
        return list(dict.fromkeys(one.partition("::")[0] for one in self.ids))


def read_spec(task: Task) -> PytestSpec:
    """Read what a repository task's grader needs.

    Raises:
        VerifierError: the task is malformed.
    """
    try:
        return PytestSpec.model_validate(task.hidden.data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VerifierError(f"the pytest_ids task {task.id!r} is malformed: {where}: {first['msg']}") from error


def check_base(task: Task, spec: PytestSpec, base: Mapping[str, bytes]) -> None:
    """Refuse a task whose repository lacks what its tests need.

    Raises:
        VerifierError: naming what is missing.
    """
    files = {**base, **spec.tests}
    folders = {".", *(name.rsplit("/", end)[0] for name in files for end in range(1, name.count("/") + 1))}
    for what, names, known in (("test file", spec.files, files), ("import root", spec.import_roots, folders)):
        for name in names:
            if name not in known:
                raise VerifierError(f"the repository of {task.id!r} has no {what} {name!r}; add it or leave it out")


def with_test_patch(task: Task, spec: PytestSpec, base: Tree) -> PytestSpec:
    """Return the spec with the test files that its test patch makes of a repository's.

    Raises:
        VerifierError: the patch does not fit, or brings what is not text.
    """
    if not spec.test_patch.strip():
        return spec
    try:
        after = apply(base, parse(spec.test_patch)).files
        tests = {name: data.decode() for name, data in after.items() if base.get(name) != data}
    except (PatchError, UnicodeDecodeError) as error:
        raise VerifierError(f"the test patch of {task.id!r} does not fit its repository: {error}") from error
    return spec.model_copy(update={"test_patch": "", "tests": {**tests, **spec.tests}})


def given(public: Public) -> Tree:
    """Return the repository that a task's public part holds: `files`, and those of `data` that are not text.

    Raises:
        VerifierError: what should be base64 is not.
    """
    binary = public.data.get(BINARY, {})
    try:
        pairs = {name: base64.b64decode(str(text), validate=True) for name, text in dict(binary).items()}  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise VerifierError(f"wanted public.data[{BINARY!r}] as base64 texts by path: {error}") from error
    return {**{name: text.encode() for name, text in public.files.items()}, **pairs}


class Deciding(Protocol):
    """What a submission may not change."""

    @property
    def protected(self) -> tuple[str, ...]:
        """Patterns of files that keep their original content."""
        ...

    @property
    def files(self) -> list[str]:
        """Further files that keep it."""
        ...

    @property
    def tests(self) -> dict[str, str]:
        """Files laid over whatever is there."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """The repository as the submission would have it, with everything that decides put back in its place."""

    files: Tree
    executable: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    """What the submission changed in vain: tests, conftest files, and what Python or pytest would load unasked."""

    def with_tests(self, tests: Mapping[str, str]) -> Tree:
        """Return the tree under the given test files."""
        return {**self.files, **{name: text.encode() for name, text in tests.items()}}


def candidate(spec: Deciding, base: Tree, submission: Submission) -> Candidate:
    """Apply a submission to a repository: whole `files` and `data["deleted"]`, or a unified diff in `data["diff"]`.

    Raises:
        PatchError: the submission is refused; the sentence is safe to show.
    """
    files, modes = _changed(base, submission)
    ignored = []
    for name in sorted({*base, *files}):
        if files.get(name) == base.get(name) and name not in modes:
            continue
        if _matches(name, (*_NEVER, *spec.protected)) or name in spec.files or name in spec.tests:
            ignored.append(name)
            files.pop(name, None)
            if name in base:
                files[name] = base[name]
    check_tree(files)
    try:
        check_tree(Candidate(files).with_tests(spec.tests))
    except PatchError:  # a folder where a test file belongs, or the reverse: the test's place is not for the taking
        blocked = [name for name in files if _blocks(name, spec.tests)]
        ignored += blocked
        files = {name: data for name, data in files.items() if name not in blocked}
    executable = tuple(name for name, on in modes.items() if on and name in files and name not in ignored)
    return Candidate(files, executable, tuple(ignored))


def collect(base: Mapping[str, bytes], found: Mapping[str, bytes]) -> Submission:
    """Return what an agent's folder, as `Sandbox.download` gives it, changes in a repository.

    What Python leaves behind, what is git's, and what is not text stays out.
    """
    files: dict[str, str] = {}
    for name, data in found.items():
        if base.get(name) == data or _matches(name, (*_NEVER, ".git/**", "**/.git/**")):
            continue
        try:
            files[name] = data.decode("utf-8")
        except UnicodeDecodeError:
            logger.info("left a file that is not text out of a submission path=%s", name)
    deleted: list[JsonValue] = [name for name in base if name not in found]
    return Submission(files=files, data={"deleted": deleted} if deleted else {})


def _changed(base: Tree, submission: Submission) -> tuple[Tree, Mapping[str, bool]]:
    diff, deleted = submission.data.get("diff"), submission.data.get("deleted", [])
    unknown = sorted({*submission.data} - {"diff", "deleted"})
    if unknown:
        raise PatchError(f"wanted a diff, or files and deleted, found {unknown[0]!r}")
    if diff is not None:
        if submission.files or deleted:
            raise PatchError("wanted either a diff or whole files, found both")
        if not isinstance(diff, str):
            raise PatchError(f"wanted the diff as text, found {type(diff).__name__}")
        patched = apply(base, parse(diff))
        return patched.files, patched.executable
    if not isinstance(deleted, list) or not all(isinstance(one, str) for one in deleted):
        raise PatchError("wanted deleted as a list of paths")
    gone = {safe_path(str(one)) for one in deleted}
    kept = {name: data for name, data in base.items() if name not in gone}
    given: dict[str, bytes] = {}
    for name, text in submission.files.items():
        given[safe_path(name)] = _encoded(name, text)
    return {**kept, **given}, {}


def _encoded(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise PatchError(f"wanted text in {name!r}, found a lone surrogate") from error


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    # `**/` also stands for no folder at all, which fnmatch does not know.
    return any(fnmatchcase(name, one) or (one.startswith("**/") and fnmatchcase(name, one[3:])) for one in patterns)


def _blocks(name: str, tests: Mapping[str, Any]) -> bool:
    return any(one.startswith(f"{name}/") or name.startswith(f"{one}/") for one in tests)
