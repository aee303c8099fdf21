"""Judge functions by calling them out of process: the code under test never holds what is expected of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agentgym.errors import SandboxError
from agentgym.graders.calls import Answer, NoAnswers, call, hold
from agentgym.graders.cases import Case, FunctionSpec, Shared, read_spec, shared_part
from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec
from agentgym.task import Public, Task
from agentgym.types import Submission, Trust, Verdict

_MAX_CODE = 200_000
_CONTROL = Shared(entry=("f",))
_CONTROL_CASE = Case(call="f(1)", expected=2)


@dataclass(frozen=True, slots=True)
class Preview:
    """What the visible examples say of code that has not been handed in."""

    passed: int
    total: int
    compiles: bool
    text: str
    """`ok`, or the first failure in one line."""
    ran: int = 0
    """How many examples came to an end by themselves, right or wrong: no exception, no crash, in time."""
    suites: Mapping[str, bool] = field(default_factory=dict)
    """Of each visible test class, whether all its visible tests pass."""


class FunctionGrader:
    """Calls a submission's functions in a fresh sandbox and compares what they return, on this side, by exact type.

    The value is 1 only if every case passes. A submission that kills, stops or confuses its own judging scores 0; that
    it was the submission, and not the machine, is shown by a harmless function that is judged the same way.
    """

    trust = Trust.RPC
    levels = ("no_submission", "empty", "broken", "failed", "passed")

    def grade(self, task: Task, submission: Submission, sandboxes: SandboxBackend) -> Verdict:
        """Return the verdict on a submission of one file, or of code as the answer.

        Raises:
            SandboxError: the machinery failed; the submission is not to blame.
            VerifierError: the task is malformed.
        """
        spec = read_spec(task)
        code, problem = code_of(submission)
        if code is None:
            return _verdict("empty", problem)
        fresh = clean(task.sandbox)
        try:
            with sandboxes.start(fresh) as box:
                answers = call(box, code, spec.shared, spec.cases)
        except NoAnswers as error:
            _show_that_judging_works(sandboxes, fresh, error)
            return _verdict("failed", "the submission ended the process that judged it")
        return _judge(spec, answers, fresh, sandboxes)

    def preview(self, public: Public, code: str, box: Sandbox) -> Preview:
        """Run the visible examples in the agent's own sandbox."""
        shared = shared_part(public)
        cases = shared.examples
        if not cases:
            return Preview(0, 0, True, "there are no visible examples")
        try:
            answers = call(box, code, shared, cases)
        except NoAnswers as error:
            return Preview(0, len(cases), True, f"error: {error}")
        checked = [(one.tree, case.check) for case, one in zip(cases, answers, strict=True) if _to_check(case, one)]
        held = iter(hold(box, shared.setup, [(tree, check) for tree, check in checked if tree and check]))
        passed = [
            next(held) if _to_check(case, one) else _passes(shared, case, one)
            for case, one in zip(cases, answers, strict=True)
        ]
        compiles = not all(one.kind in ("broken", "syntax") for one in answers)
        ran = sum(one.kind == "value" for one in answers)
        return Preview(sum(passed), len(cases), compiles, _first_failure(cases, answers, passed), ran)


def code_of(submission: Submission) -> tuple[str | None, str]:
    """Return the one source text of a submission, or why there is none."""
    texts = [text for text in (*submission.files.values(), submission.answer or "") if text.strip()]
    if len(texts) != 1:
        return None, f"wanted one source file, found {len(texts)}"
    if len(texts[0]) > _MAX_CODE:
        return None, f"wanted at most {_MAX_CODE} characters of source, found {len(texts[0])}"
    return texts[0], ""


def clean(spec: SandboxSpec) -> SandboxSpec:
    """Return the sandbox for judging: like the task's, without network and variables."""
    return spec.model_copy(update={"network": "none", "env": {}})


def _show_that_judging_works(sandboxes: SandboxBackend, spec: SandboxSpec, cause: NoAnswers) -> None:
    try:
        with sandboxes.start(spec) as box:
            call(box, "def f(x): return x + 1", _CONTROL, [_CONTROL_CASE])
    except NoAnswers as error:
        raise SandboxError(f"a harmless function cannot be judged in this sandbox: {error}") from cause


def _judge(spec: FunctionSpec, answers: Sequence[Answer], fresh: SandboxSpec, sandboxes: SandboxBackend) -> Verdict:
    passed = [_passes(spec.shared, case, answer) for case, answer in zip(spec.cases, answers, strict=True)]
    open_cases = [index for index, case in enumerate(spec.cases) if _to_check(case, answers[index])]
    if open_cases:
        items = [(answers[index].tree or ("n", 0), spec.cases[index].check or "") for index in open_cases]
        with sandboxes.start(fresh) as box:
            for index, held in zip(open_cases, hold(box, spec.check_setup, items), strict=True):
                passed[index] = held
    visible = len(spec.shared.examples)
    components: dict[str, float | None] = {"passed": sum(passed) / len(passed)}
    if visible:
        components["visible"] = sum(passed[:visible]) / visible
    if all(passed):
        return _verdict("passed", "", components)
    if all(one.kind in ("broken", "syntax") for one in answers):
        return _verdict("broken", _why_broken(answers[0], spec.shared), components)
    return _verdict("failed", _why_failed(spec, passed), components)


def _to_check(case: Case, answer: Answer) -> bool:
    return case.check is not None and answer.kind == "value"


def _passes(shared: Shared, case: Case, answer: Answer) -> bool:
    wanted = case.wanted
    if answer.kind != "value" or answer.tree is None or wanted is None:
        return False
    return shared.comparison.same(wanted, answer.tree)


def _first_failure(cases: Sequence[Case], answers: Sequence[Answer], passed: Sequence[bool]) -> str:
    for case, answer, good in zip(cases, answers, passed, strict=True):
        if good:
            continue
        if answer.kind in ("broken", "syntax"):
            return f"error: {answer.text}"
        got = f"got {answer.text}" if answer.kind == "value" else answer.text
        return f"{case.call}: {got}, want {want(case)}"
    return "ok"


def want(case: Case) -> str:
    """Return what a visible case asks for."""
    if case.check is not None:
        return case.check
    if case.literal is not None:
        return case.literal
    return repr(case.expected)


def _why_broken(answer: Answer, shared: Shared) -> str:
    # A text that running code has produced may carry what it found in memory; the compiler's text cannot.
    if answer.kind == "syntax":
        return f"the submission does not compile: {answer.text}"
    names = f", or does not define {', '.join(shared.entry)}" if shared.entry else ""
    return f"the submission fails when it is loaded{names}"


def _why_failed(spec: FunctionSpec, passed: Sequence[bool]) -> str:
    visible = len(spec.shared.examples)
    for case, good in zip(spec.shared.examples, passed, strict=False):
        if not good:
            return f"the visible example {case.call} fails: want {want(case)}"
    return f"{passed[visible:].count(False)} of {len(passed) - visible} hidden cases fail"


def _verdict(level: str, feedback: str, components: dict[str, float | None] | None = None) -> Verdict:
    return Verdict(
        value=1.0 if level == "passed" else 0.0,
        level=level,
        trust=Trust.RPC,
        components=components or {},
        feedback=feedback,
    )
