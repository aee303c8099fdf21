"""Judge by a task format's own run script. Easy to fool, so a task must say which trust it accepts."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from agentgym.errors import VerifierError
from agentgym.graders.function import clean
from agentgym.graders.patches import PatchError, safe_path
from agentgym.graders.pytest_ids_spec import Candidate, candidate
from agentgym.sandbox import ExecResult, Sandbox, SandboxBackend
from agentgym.task import Task
from agentgym.types import Record, Submission, Trust, Verdict

_RESULT_BYTES = 256
_NOT_FOUND = (126, 127)


class ScriptSpec(Record):
    """What the grader needs, kept in `hidden.data`; the files that the agent worked on are `public.files`."""

    trust: Literal["separate", "shared"]
    """The task's word that it accepts so little. An exit code is `separate`: the judged code runs in the process tree
    that makes it. A result file is `shared`: the judged code can write it itself."""
    command: Annotated[tuple[str, ...], Field(min_length=1)]
    """Run in the folder of the files."""
    tests: dict[str, str] = {}
    """The script and its tests, laid over whatever the submission has there, by path."""
    protected: tuple[str, ...] = ()
    """Patterns of further files that keep their original content whatever the submission brings."""
    result_file: str | None = None
    """A file in which the script leaves a number from 0 to 1; None: exit code 0 is 1 and any other 0."""
    total_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Seconds that the script may take."""

    @field_validator("tests")
    @classmethod
    def _paths(cls, tests: dict[str, str]) -> dict[str, str]:
        return {safe_path(path): text for path, text in tests.items()}

    @model_validator(mode="after")
    def _honest(self) -> Self:
        if self.result_file is not None:
            safe_path(self.result_file)
            if self.trust != "shared":
                raise ValueError("the judged code can write the result file; wanted trust: shared, found separate")
        return self

    @property
    def files(self) -> list[str]:
        """What keeps its original content beside the protected files."""
        return [self.result_file] if self.result_file is not None else []


class ScriptGrader:
    """Runs a task's script on the submission in a fresh sandbox, and believes it.

    Nothing of the submission that stands where the script, its tests or its result belong counts; what the judged code
    does while the script runs is not guarded against.
    """

    levels = ("no_submission", "empty", "malformed", "failed", "passed")

    def check(self, task: Task) -> None:
        """Refuse a task that could not be judged, or that does not say which trust it accepts.

        Raises:
            VerifierError: the task is malformed.
        """
        read_spec(task)

    def grade(self, task: Task, submission: Submission, sandboxes: SandboxBackend) -> Verdict:
        """Return the verdict on a diff, or on whole files.

        Raises:
            SandboxError: the machinery failed; the submission is not to blame.
            VerifierError: the task is malformed, or its script's program does not exist.
        """
        spec = read_spec(task)
        base = {name: text.encode() for name, text in task.public.files.items()}
        trust = Trust(spec.trust)
        if submission.empty:
            return _verdict(0.0, "empty", trust, "nothing was submitted")
        try:
            found = candidate(spec, base, submission)
        except PatchError as error:
            return _verdict(0.0, "malformed", trust, str(error))
        if found.files == base:
            return _verdict(0.0, "empty", trust, "the submission changes nothing that counts")
        with sandboxes.start(clean(task.sandbox)) as box:
            value, feedback, result = _run(box, spec, found)
        if result.exit_code in _NOT_FOUND:
            with sandboxes.start(clean(task.sandbox)) as box:
                _refuse_missing(box, spec, task)
        return _verdict(value, "passed" if value == 1.0 else "failed", trust, feedback)


def read_spec(task: Task) -> ScriptSpec:
    """Read what a script task's grader needs.

    Raises:
        VerifierError: the task is malformed, or does not say which trust it accepts.
    """
    try:
        return ScriptSpec.model_validate(task.hidden.data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        hint = "; name the trust that this task accepts, separate or shared" if where == "trust" else ""
        raise VerifierError(f"the script task {task.id!r} is malformed: {where}: {first['msg']}{hint}") from error


def _run(box: Sandbox, spec: ScriptSpec, found: Candidate) -> tuple[float, str, ExecResult]:
    root = f"{box.workdir.rstrip('/')}/repository"
    box.upload({f"{root}/{name}": data for name, data in found.with_tests(spec.tests).items()})
    if found.executable:
        box.exec(("chmod", "755", *found.executable), cwd=root)
    result = box.exec(spec.command, timeout=spec.total_s, cwd=root)
    if result.timed_out:
        return 0.0, "the script took too long", result
    if spec.result_file is None:
        good = result.exit_code == 0
        return float(good), "" if good else f"the script ended with exit code {result.exit_code}", result
    try:
        text = box.read(f"{root}/{spec.result_file}", limit=_RESULT_BYTES).decode("ascii")
        value = float(text)
    except (FileNotFoundError, ValueError):
        return 0.0, "the script left no number as its result", result
    if not (math.isfinite(value) and 0.0 <= value <= 1.0):
        return 0.0, "the script's result is not a number from 0 to 1", result
    return value, "" if value == 1.0 else f"the script's result is {value:g}", result


def _refuse_missing(box: Sandbox, spec: ScriptSpec, task: Task) -> None:
    # Asked in a sandbox without the submission, which could otherwise pass its own failure off as the task's.
    program = spec.command[0]
    if "/" not in program and not box.exec(("sh", "-c", 'command -v -- "$1"', "sh", program)).ok:
        raise VerifierError(f"the sandbox of {task.id!r} has no {program!r}; use an image that has it")


def _verdict(value: float, level: str, trust: Trust, feedback: str) -> Verdict:
    return Verdict(value=value, level=level, trust=trust, feedback=feedback)
