"""One software engineering problem, in the field names of SWE-bench, and the task that is made of it."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, JsonValue, field_validator

from agentgym.errors import TaskError
from agentgym.graders.patches import PatchError, apply, parse
from agentgym.graders.pytest_ids_spec import BINARY, PROTECTED
from agentgym.graders.pytest_ids_twins import find
from agentgym.graders.sources import parse as parse_source
from agentgym.image import BUILD, ImageSpec
from agentgym.sandbox import SandboxSpec
from agentgym.task import Hidden, Public, Task
from agentgym.types import Record, Split
from agentgym_envs.swe.hints import tiers
from agentgym_envs.swe.history import alone
from agentgym_envs.swe.sources import InImage, Repository, Source, read

_JUDGING = {"import_roots", "ini", "plugins", "protected", "total_s", "twins"}


class Unfit(TaskError):  # noqa: N818 -- a finding about an instance
    """An instance whose parts do not fit one another."""


class Environment(Record):
    """Where an instance runs, and how its tests are run there."""

    image: str | None = None
    """A sandbox image: a name, or an `agentgym.image.ImageSpec.name` to build once; None is the backend's own."""
    import_roots: tuple[str, ...] = (".",)
    """Folders of the repository from which its modules are imported, such as `src`."""
    ini: dict[str, str] = {}
    """Settings of pytest, which reads no file of the repository for any."""
    plugins: tuple[str, ...] = ()
    """Modules of pytest plugins that the image has; no others are loaded."""
    protected: tuple[str, ...] = PROTECTED
    """Patterns of files that a submission changes in vain."""
    variables: dict[str, str] = {}
    memory_mb: Annotated[int, Field(ge=16)] = 1024
    pids: Annotated[int, Field(ge=4)] = 256
    disk_mb: Annotated[int, Field(ge=1)] | None = None
    total_s: Annotated[float, Field(gt=0, le=3600)] = 120.0
    """Seconds that one run of the tests may take."""
    twins: Annotated[int, Field(ge=0, le=1000)] = 16
    """How many must-fail twins of the hidden tests may run beside them; each takes a sandbox of its own."""


class SweInstance(Record):
    """A repository before a fix, the issue, and the tests that the fix turns."""

    instance_id: str
    repo: str
    base_commit: str
    problem_statement: str
    patch: str
    """The gold change, without tests. Never in the agent's reach."""
    test_patch: str = ""
    """What brings the tests, as a diff; `tests` is the same as whole files, and wins."""
    tests: dict[str, str] = {}
    FAIL_TO_PASS: tuple[str, ...]
    PASS_TO_PASS: tuple[str, ...] = ()
    source: Source
    """Where the repository's content at `base_commit` comes from."""
    environment: Environment = Environment()
    hints: tuple[str, ...] | None = None
    """Guidance, weakest first; None makes it from the gold change: files, functions, plan."""
    hints_text: str = ""
    """SWE-bench's comments on the issue; shown to nobody."""
    created_at: str = ""
    version: str = ""
    license: str = ""
    split: Split | None = None
    """None goes by the hash of `repo`, so that a held-out repository was never trained on."""
    difficulty: float | None = None

    @field_validator("FAIL_TO_PASS", "PASS_TO_PASS", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Take the lists as JSON texts too, as published sets have them."""
        return json.loads(value) if isinstance(value, str) else value


def to_task(instance: SweInstance) -> Task:
    """Return the task of an instance, judged by `pytest_ids`; fetches or reads the repository unless an image has it.

    The repository is `public.files`, or its image's folder; the gold change is in `hidden.reference` alone.

    Raises:
        TaskError: the repository cannot be had, or is none.
        Unfit: the gold or the tests do not fit it.
        InfrastructureError: a package index does not answer.
    """
    repository = None if isinstance(instance.source, InImage) else read(instance.source)
    environment = instance.environment
    failing: list[JsonValue] = [*instance.FAIL_TO_PASS]
    passing: list[JsonValue] = [*instance.PASS_TO_PASS]
    judging = environment.model_dump(mode="json", include=_JUDGING)
    if environment.protected == PROTECTED:  # the grader's own default, which half of all packages speak of: no secret
        del judging["protected"]
    spec: dict[str, JsonValue] = {"fail_to_pass": failing, "pass_to_pass": passing, **judging}
    data: dict[str, JsonValue] = {"repo": instance.repo, "base_commit": instance.base_commit}
    if repository is None:
        assert isinstance(instance.source, InImage)
        spec |= {"root": instance.source.root, "test_patch": instance.test_patch, "tests": {**instance.tests}}
        files: dict[str, str] = {}
    else:
        fits(instance, repository)
        tests = tests_of(instance, repository)
        _refuse_expected_failures(instance, {**repository.texts, **tests})
        spec["tests"] = {**tests}
        files = dict(repository.texts)
        if repository.binary:
            data[BINARY] = {**repository.binary}
        if repository.executable:
            data["executable"] = [*sorted(repository.executable)]
    return Task(
        id=instance.instance_id,
        split=instance.split or split_of_repository(instance.repo),
        public=Public(prompt=instance.problem_statement.strip() or instance.instance_id, files=files, data=data),
        hidden=Hidden(data=spec, reference={"patch": instance.patch}),
        hints=tiers(instance.patch, repository) if instance.hints is None else instance.hints,
        sandbox=sandbox_of(instance),
        grader="pytest_ids",
        difficulty=instance.difficulty,
    )


def sandbox_of(instance: SweInstance) -> SandboxSpec:
    """Return where an instance runs; a repository in an image is given to the agent's user there, without its past.

    Raises:
        TaskError: no image is named that can be built on.
    """
    one = instance.environment
    place = SandboxSpec(image=one.image, memory_mb=one.memory_mb, pids=one.pids, disk_mb=one.disk_mb, env=one.variables)
    if not isinstance(instance.source, InImage):
        return place
    root = instance.source.root
    if one.image is None:
        raise TaskError(f"{instance.instance_id!r} names no image that holds {root}")
    made = ImageSpec.from_name(one.image) if one.image.startswith(BUILD) else ImageSpec(base=one.image)
    image = made.model_copy(update={"run": (*made.run, *instance.source.setup, alone(root))}).name
    return place.model_copy(update={"image": image, "workdir": root, "writable_root": True})


def tests_of(instance: SweInstance, repository: Repository) -> Mapping[str, str]:
    """Return the test files after the fix, whole: those given, else what the test patch makes of the repository's.

    Raises:
        Unfit: the test patch does not fit, or brings what is not text.
    """
    if instance.tests or not instance.test_patch.strip():
        return instance.tests
    try:
        after = apply(repository.files, parse(instance.test_patch)).files
        return {name: data.decode() for name, data in after.items() if repository.files.get(name) != data}
    except (PatchError, UnicodeDecodeError) as error:
        raise Unfit(f"the test patch of {instance.instance_id!r} does not fit its repository: {error}") from error


def fits(instance: SweInstance, repository: Repository) -> None:
    """Refuse an instance whose gold change cannot be applied to its repository.

    Raises:
        Unfit: with the first hunk that does not fit.
    """
    try:
        apply(repository.files, parse(instance.patch))
    except PatchError as error:
        raise Unfit(f"the gold patch of {instance.instance_id!r} does not fit its repository: {error}") from error


def _refuse_expected_failures(instance: SweInstance, tests: Mapping[str, str]) -> None:
    """Refuse tests that are marked as expected to fail: passing then is an xpass, which is no plain pass.

    Raises:
        Unfit: naming the test.
    """
    names = dict.fromkeys(one.partition("[")[0] for one in instance.FAIL_TO_PASS + instance.PASS_TO_PASS)
    modules: dict[str, ast.Module] = {}
    for name in names:
        path, *qualname = name.split("::")
        if "xfail" not in tests.get(path, ""):
            continue
        try:
            modules[path] = modules.get(path) or parse_source(tests[path])
            marks = find(modules[path], qualname).decorator_list
        except (KeyError, SyntaxError):  # made elsewhere: by a base class, or while the file runs
            continue
        if any("xfail" in ast.unparse(one) for one in marks):
            raise Unfit(f"the test {name} is marked as expected to fail, so that it can never plainly pass")


def split_of_repository(repo: str) -> Split:
    """Return the split of a repository: 80% train, 10% validation, 10% test.

    >>> split_of_repository("pytoolz/toolz"), split_of_repository("sdispater/tomlkit")
    ('train', 'validation')
    """
    share = int(hashlib.sha256(repo.lower().encode()).hexdigest()[:8], 16) / 0x1_0000_0000
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def gold_files(patch: str) -> tuple[str, ...]:
    """Return the files that a diff touches, in its order.

    Raises:
        PatchError: it is no diff.
    """
    touched = ((one.old, one.new) for one in parse(patch))
    return tuple(dict.fromkeys(name for pair in touched for name in pair if name is not None))
