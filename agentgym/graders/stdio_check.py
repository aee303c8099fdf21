"""Ask a task's checker about outputs, far from the submission, and hold the checker itself to its cases first."""

from __future__ import annotations

from collections.abc import Sequence

from agentgym.errors import SandboxError, VerifierError
from agentgym.graders.calls import ask_python
from agentgym.graders.stdio_cases import StdioCase
from agentgym.sandbox import SandboxBackend, SandboxSpec

_ITEM_S = 2.0
_GRACE_S = 10.0
_LINE_BYTES = 1024


def check(
    sandboxes: SandboxBackend, spec: SandboxSpec, checker: str, items: Sequence[tuple[StdioCase, bytes]]
) -> list[bool]:
    """Return which of the outputs the checker accepts.

    In the same sandbox it is first asked about each case's own output, which it must accept, and about an empty one,
    which it must refuse wherever the case's own is not empty.

    Raises:
        VerifierError: the checker is malformed, or does not tell its own cases' outputs from nothing.
        SandboxError: the sandbox failed.
    """
    cases = list(dict.fromkeys(case for case, _ in items))
    controls = [(case, text, right) for case in cases for text, right in ((case.stdout, True), ("", False))
                if right or case.stdout.strip()]  # fmt: skip
    asked = [(case.stdin, case.stdout, text) for case, text, _ in controls]
    asked += [(case.stdin, case.stdout, found.decode("utf-8", "replace")) for case, found in items]
    with sandboxes.start(spec) as box:
        result = ask_python(
            box,
            "_stdio_checker.py",
            {"checker": checker, "items": asked},
            timeout=_ITEM_S * len(asked) + _GRACE_S,
            output_limit=_LINE_BYTES * len(asked),
        )
    lines = result.stdout.decode("utf-8", "replace").splitlines()
    if not lines and not result.timed_out:
        raise SandboxError(f"no checker can run in this sandbox (exit code {result.exit_code}); it needs python3")
    broken = next((line[1:] for line in lines if line.startswith("!")), None)
    if broken is not None:
        raise VerifierError(f"the checker is malformed: {broken}")
    for (_, text, right), line in zip(controls, lines, strict=False):
        if (line == "1") != right:
            what = "refuses a case's own output" if text else "accepts an empty output"
            raise VerifierError(f"the checker {what}; mend it, or the case")
    if len(lines) < len(controls):
        raise VerifierError(f"the checker takes longer than {_ITEM_S:g} s, or more memory than the task gives")
    held = [line == "1" for line in lines[len(controls) :]]
    # The checker was shown to work, so only a submission's output can have ended it early, by its size or its form.
    return [*held, *[False] * (len(items) - len(held))]
