"""Judge programs of any language by what they print, run by run, each in a sandbox of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from agentgym.errors import VerifierError
from agentgym.graders.function import Preview, clean
from agentgym.graders.languages import Language
from agentgym.graders.stdio_cases import StdioCase, StdioShared, StdioSpec, read_spec, shared_part
from agentgym.graders.stdio_check import check
from agentgym.graders.stdio_run import BuildError, Programs, Ran, compile_in, run_in
from agentgym.sandbox import Sandbox, SandboxBackend
from agentgym.task import Public, Task
from agentgym.types import Submission, Trust, Verdict

_MAX_SOURCE = 200_000
_SHOWN = 80
_PREVIEW_FOLDER = ".preview"


@dataclass(frozen=True, slots=True)
class Program:
    """A submission that can be built."""

    language: Language
    source: str


class StdioGrader:
    """Builds a submission once, runs it for each case in a fresh sandbox, and compares on this side what it printed.

    A run holds one case's input and nothing else: no expected output, no other case, no trace of another run. The
    value is 1 only if every case passes. What a submission does to its own runs scores 0; that it was the submission,
    and not the machine, is shown by a harmless program of the same language.
    """

    trust = Trust.RPC
    levels = ("no_submission", "empty", "broken", "failed", "passed")

    def check(self, task: Task) -> None:
        """Refuse a malformed task.

        Raises:
            VerifierError: saying what is malformed.
        """
        read_spec(task)

    def grade(self, task: Task, submission: Submission, sandboxes: SandboxBackend) -> Verdict:
        """Return the verdict on a submission of one source file, or of source as the answer.

        Raises:
            SandboxError: the machinery failed; the submission is not to blame.
            VerifierError: the task is malformed.
        """
        spec = read_spec(task)
        program, problem = program_of(submission, spec.shared)
        if program is None:
            return _verdict("empty", problem)
        places = Programs(sandboxes, clean(task.sandbox), spec.shared)
        try:
            files = places.build(program.language, program.source)
        except BuildError as error:
            places.show_that_running_works(program.language)
            return _verdict("broken", f"the program does not build: {_head(str(error))}", {"passed": 0.0})
        runs = places.run(program.language, files, spec.cases)
        if not any(one.end == "ok" for one in runs):
            places.show_that_running_works(program.language)
        return judge(spec, runs, _passed(spec, runs, places))

    def preview(self, public: Public, code: str, box: Sandbox) -> Preview:
        """Run the visible examples in the agent's own sandbox, as a program of the task's first language."""
        shared = shared_part(public)
        cases = shared.examples
        if not cases:
            return Preview(0, 0, True, "there are no visible examples")
        if shared.output is None:
            return Preview(0, len(cases), True, "the outputs of this task are checked when they are handed in")
        language, folder = shared.languages[0], f"{box.workdir}/{_PREVIEW_FOLDER}"
        box.write(f"{folder}/{language.file}", code.encode("utf-8", "replace"))
        try:
            compile_in(box, language, shared, folder)
        except BuildError as error:
            return Preview(0, len(cases), False, f"error: {_head(str(error))}")
        runs = [run_in(box, language, shared, case, folder) for case in cases]
        passed = _compared(shared, cases, runs)
        ran = sum(one.end == "ok" for one in runs)
        return Preview(sum(passed), len(cases), True, _first_failure(cases, runs, passed) or "ok", ran)


def program_of(submission: Submission, shared: StdioShared) -> tuple[Program | None, str]:
    """Return the one program of a submission, in the language that its file's name tells; or why there is none."""
    texts = [*submission.files.items(), ("", submission.answer or "")]
    sources = [(name, text) for name, text in texts if text.strip()]
    if len(sources) != 1:
        return None, f"wanted one source file, found {len(sources)}"
    name, text = sources[0]
    if len(text) > _MAX_SOURCE:
        return None, f"wanted at most {_MAX_SOURCE} characters of source, found {len(text)}"
    if len(shared.languages) == 1:
        return Program(shared.languages[0], text), ""
    ending = PurePosixPath(name).suffix
    for one in shared.languages:
        if one.extension == ending:
            return Program(one, text), ""
    wanted = ", ".join(one.extension for one in shared.languages)
    return None, f"wanted a file whose name ends in one of {wanted}, found {ending or 'no file name'!r}"


def judge(spec: StdioSpec, runs: Sequence[Ran], passed: Sequence[bool]) -> Verdict:
    """Return the verdict on the runs of all cases; of the hidden ones its text tells only how many fail."""
    visible = len(spec.shared.examples)
    components: dict[str, float | None] = {"passed": sum(passed) / len(passed)}
    if visible:
        components["visible"] = sum(passed[:visible]) / visible
    if all(passed):
        return _verdict("passed", "", components)
    shown = _first_failure(spec.shared.examples, runs[:visible], passed[:visible])
    hidden = passed[visible:]
    feedback = shown or f"{list(hidden).count(False)} of {len(hidden)} hidden cases fail{_how(runs[visible:])}"
    return _verdict("failed", feedback, components)


def _passed(spec: StdioSpec, runs: Sequence[Ran], places: Programs) -> list[bool]:
    if spec.checker is None:
        return _compared(spec.shared, spec.cases, runs)
    ended = [index for index, one in enumerate(runs) if one.end == "ok"]
    passed = [False] * len(runs)
    if ended:
        items = [(spec.cases[index], runs[index].stdout) for index in ended]
        for index, right in zip(ended, check(places.sandboxes, places.spec, spec.checker, items), strict=True):
            passed[index] = right
    return passed


def _compared(shared: StdioShared, cases: Sequence[StdioCase], runs: Sequence[Ran]) -> list[bool]:
    if shared.output is None:
        raise VerifierError("there is nothing to compare with: the task names neither an output mode nor a checker")
    output = shared.output
    return [
        one.end == "ok" and output.same(case.stdout.encode("utf-8", "surrogatepass"), one.stdout)
        for case, one in zip(cases, runs, strict=True)
    ]


def _first_failure(cases: Sequence[StdioCase], runs: Sequence[Ran], passed: Sequence[bool]) -> str:
    # Safe to quote: each run held its own visible input only.
    for number, (case, ran, good) in enumerate(zip(cases, runs, passed, strict=True), start=1):
        if not good:
            given = f" with the arguments {_quote(' '.join(case.args))}" if case.args else ""
            found = ran.text[:200] if ran.end != "ok" else f"printed {_quote(ran.stdout.decode('utf-8', 'replace'))}"
            return f"visible example {number}: for {_quote(case.stdin)}{given} it {found}, want {_quote(case.stdout)}"
    return ""


def _how(runs: Sequence[Ran]) -> str:
    """Return how hidden runs ended, in words that are the same whatever they hold."""
    words = {"exit": "a crash", "cpu": "too slow", "clock": "too slow", "memory": "too much memory",
             "flood": "too much output", "unrun": "no time left"}  # fmt: skip
    ends = [words[one.end] for one in runs if one.end != "ok"]
    return f" ({', '.join(dict.fromkeys(ends))})" if ends else ""


def _quote(text: str) -> str:
    return json.dumps(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…", ensure_ascii=False)


def _head(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:4])[:400]


def _verdict(level: str, feedback: str, components: dict[str, float | None] | None = None) -> Verdict:
    return Verdict(
        value=1.0 if level == "passed" else 0.0,
        level=level,
        trust=Trust.RPC,
        components=components or {},
        feedback=feedback,
    )
