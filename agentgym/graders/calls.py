"""Put calls to a submission that runs in a sandbox, and judge the answers on this side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from agentgym.errors import VerifierError
from agentgym.graders.cases import Case, Shared
from agentgym.graders.values import MalformedError, Tree, parse, show
from agentgym.sandbox import ExecResult, Sandbox

_REPLY_BYTES = (1 << 18) + 64
_GRACE_S = 5.0
_PATIENCE = 4.0
"""How much longer than its limit a command may take, because time in a crowded machine's queue does not count."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one call."""

    kind: str
    """`value`; `raised`, `data` (not plain data), `timeout`, `died`: no value; `broken`, `syntax`: nothing could be
    called."""
    tree: Tree | None = None
    """The value, or the error's text."""

    @property
    def text(self) -> str:
        """The answer as the agent may read it."""
        match self.kind, self.tree:
            case "value", tree if tree is not None:
                return show(tree)
            case "timeout", _:
                return "too slow"
            case _, ("s", str(reason)):
                return reason.replace("\n", " ")
        return "the process ended without an answer"


class NoAnswers(Exception):  # noqa: N818 -- the grader decides whose fault it is
    """The command ended without an answer for every call, or with more than that."""

    def __init__(self, reason: str, result: ExecResult) -> None:
        super().__init__(f"{reason} (exit code {result.exit_code}{', timed out' if result.timed_out else ''})")


def call(box: Sandbox, code: str, shared: Shared, cases: Sequence[Case]) -> list[Answer]:
    """Run the calls of `cases`, and nothing else of them, on the submission's code.

    Raises:
        NoAnswers: not exactly one answer for each call came back.
        SandboxError: the sandbox failed.
    """
    request = {
        "code": code,
        "setup": shared.setup,
        "entry": shared.entry,
        "calls": [one.call for one in cases],
        "case_s": shared.case_s,
        "total_s": shared.total_s,
    }
    limit = _REPLY_BYTES * len(cases)
    result = ask_python(
        box, "_runner.py", request, timeout=_PATIENCE * shared.total_s + _GRACE_S, output_limit=2 * limit
    )
    if result.timed_out or result.truncated or result.exit_code != 0:
        raise NoAnswers("the submission ended its own judging", result)
    return _read_answers(result, len(cases))


def _read_answers(result: ExecResult, count: int) -> list[Answer]:
    answers: list[Answer] = []
    try:
        for line in result.stdout.splitlines():
            index, _, reply = line.partition(b" ")
            if index != b"%d" % len(answers):
                raise NoAnswers("the answers are out of order", result)
            answers.append(Answer(*parse(reply)))
    except MalformedError as error:
        raise NoAnswers(str(error), result) from error
    if len(answers) == 1 and answers[0].kind == "syntax":
        return answers * count
    if len(answers) != count:
        raise NoAnswers(f"wanted {count} answers, found {len(answers)}", result)
    return answers


def hold(box: Sandbox, setup: str, items: Sequence[tuple[Tree, str]]) -> list[bool]:
    """Return which conditions hold, evaluated in a sandbox that never held the submission.

    Raises:
        VerifierError: a condition is malformed, which is the task's fault.
        SandboxError: the sandbox failed.
    """
    if not items:
        return []
    request = {"setup": setup, "items": list(items)}
    result = ask_python(
        box, "_checker.py", request, timeout=3.0 * len(items) + _GRACE_S, output_limit=1024 * len(items)
    )
    lines = result.stdout.decode("utf-8", "replace").splitlines()
    for line, (_, condition) in zip(lines, items, strict=False):
        if line.startswith("!"):
            raise VerifierError(f"the condition {condition!r} is malformed: {line[1:]}")
    held = [line == "1" for line in lines]
    # Only the submission's values can have ended the command early, by size or by time.
    return [*held, *[False] * (len(items) - len(held))][: len(items)]


def ask_python(
    box: Sandbox, program: str, request: Mapping[str, Any], *, timeout: float, output_limit: int
) -> ExecResult:
    """Run one of our programs in a sandbox, isolated from its files and variables, on a request as its input."""
    stdin = ascii(dict(request)).encode()
    return box.exec(
        ("python3", "-I", "-S", "-c", source_of(program)), timeout=timeout, stdin=stdin, output_limit=output_limit
    )


@cache
def source_of(program: str) -> str:
    """Return the text of one of our programs, to be sent into a sandbox."""
    return resources.files("agentgym.graders").joinpath(program).read_text(encoding="utf-8")
