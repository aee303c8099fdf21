"""Judge answers as data: one answer of the declared kind, compared with a gold that never leaves this side."""

from __future__ import annotations

from typing import Any, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from agentgym.errors import VerifierError
from agentgym.graders import answer_math
from agentgym.graders.answer_kinds import Kind, Math
from agentgym.graders.answer_text import standing
from agentgym.sandbox import SandboxBackend
from agentgym.task import Task
from agentgym.types import Submission, Trust, Verdict

MAX_CHARACTERS = 20_000
_KINDS: TypeAdapter[Any] = TypeAdapter(Kind, config=ConfigDict(title="answer"))


class AnswerGrader:
    """Compares `submission.answer` with the gold, as `hidden.data` declares.

    The answer is what the assistant itself wrote into the call that handed it in; no observation, and so no tool's or
    retrieved text, is ever read. It must be one answer and nothing else: text around it, several answers, and what is
    not of the declared kind score 0.
    """

    trust = Trust.RPC
    levels = ("no_submission", "empty", "malformed", "failed", "partial", "passed")

    def check(self, task: Task) -> None:
        """Refuse a malformed task.

        Raises:
            VerifierError: saying what is malformed, such as a gold that an empty answer would match.
            MissingExtraError: the task needs a package that is not installed.
        """
        if isinstance(read_spec(task), Math):
            answer_math.require()

    def grade(self, task: Task, submission: Submission, sandboxes: SandboxBackend) -> Verdict:  # noqa: ARG002
        """Return the verdict on a submission's answer; no sandbox is needed, because nothing is run.

        Raises:
            VerifierError: the task is malformed.
            MissingExtraError: the task needs a package that is not installed.
            InfrastructureError: the process that compares expressions is gone.
        """
        spec = read_spec(task)
        text = submission.answer or ""
        if not text.strip():
            return _verdict("empty", 0.0, "wanted an answer, found nothing")
        if len(text) > MAX_CHARACTERS:
            return _verdict("malformed", 0.0, f"wanted at most {MAX_CHARACTERS} characters, found {len(text)}")
        answer, problem = standing(text, spec.where)
        if answer is None:
            return _verdict("malformed", 0.0, problem)
        if not answer:
            return _verdict("empty", 0.0, "wanted an answer, found nothing")
        found = spec.judge(answer)
        if found.problem:
            return _verdict("malformed", 0.0, f"the answer does not count: {found.problem}")
        if found.value == 1.0:
            return _verdict("passed", 1.0, "")
        level = "partial" if found.value > 0.0 else "failed"
        return _verdict(level, found.value, "the answer is not the expected one")


def read_spec(task: Task) -> Kind:
    """Read what the answer grader needs: one of the kinds of answers, from `hidden.data`.

    Raises:
        VerifierError: it is malformed.
    """
    try:
        return cast(Kind, _KINDS.validate_python(task.hidden.data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        reason = f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"
        raise VerifierError(f"the answer task {task.id!r} is malformed: {reason}") from error


def _verdict(level: str, value: float, feedback: str) -> Verdict:
    return Verdict(value=value, level=level, trust=Trust.RPC, feedback=feedback)
