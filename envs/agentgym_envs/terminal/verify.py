"""Judge what an agent left in a container by the task's own script, in a fresh one unless the task shares its own.

The files that were handed in are data: they are laid into a container that no agent has seen, beside tests that it has
not seen either, and nothing that stands where tests or results belong counts. What the judged programs do while the
script runs is not guarded against, as with every script that imports them.
"""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Mapping
from typing import Any

from agentgym.errors import VerifierError
from agentgym.graders.function import clean
from agentgym.graders.patches import PatchError
from agentgym.sandbox import ExecResult, Sandbox, SandboxBackend
from agentgym.task import Task
from agentgym.types import Submission, Trust, Verdict
from agentgym_envs.terminal.spec import VerifierSpec, decoded, read_spec, roots_of

TESTS = "/tests"
LOGS = "/logs/verifier"
LEVELS = ("no_submission", "empty", "malformed", "failed", "partial", "passed")
MOST_FILES = 10_000
MOST_BYTES = 1 << 26
_RESULT_BYTES = 1 << 16
_MOST_SAID = 300
_MOST_PATH_CHARS, _MOST_PATH_BYTES = 1000, 3500
_OURS = (TESTS, "/logs", "/solution")


def in_fresh(task: Task, submission: Submission, sandboxes: SandboxBackend) -> Verdict:
    """Return the verdict on files, in a fresh container.

    Raises:
        SandboxError: the machinery failed; the submission is not to blame.
        VerifierError: the task is malformed.
    """
    spec = read_spec(task)
    if not submission.data.get("contents") and not submission.data.get("deleted"):
        return _verdict(0.0, "empty", Trust.SEPARATE, "nothing was handed in")
    try:
        files = decoded(submission.data.get("contents", {}))
        deleted, executable = _paths(submission, "deleted"), _paths(submission, "executable")
    except PatchError as error:
        return _verdict(0.0, "malformed", Trust.SEPARATE, str(error))
    with sandboxes.start(clean(task.sandbox)) as box:
        roots = roots_of(task, box.workdir)
        for name in (*files, *deleted):
            if not is_handed_in(name, roots):
                return _verdict(0.0, "malformed", Trust.SEPARATE, f"{name[:200]!r} is no part of what is handed in")
        if deleted:
            box.exec(("rm", "-f", "--", *deleted))
        try:
            box.upload(files)
        except (ValueError, FileNotFoundError) as error:
            said = f"what was handed in cannot be laid where it was: {error}"
            return _verdict(0.0, "malformed", Trust.SEPARATE, said[:_MOST_SAID])
        if executable:
            box.exec(("chmod", "755", "--", *executable))
        return _judged(box, spec, Trust.SEPARATE)


def in_place(task: Task, box: Sandbox) -> Verdict:
    """Return the verdict on a container in which an agent worked.

    Raises:
        SandboxError: the machinery failed.
        VerifierError: the task is malformed.
    """
    return _judged(box, read_spec(task), Trust.SHARED)


def is_handed_in(name: str, roots: tuple[str, ...]) -> bool:
    """Whether a path is below the folders that count, not where tests and results are, and of a length that fits.

    >>> [is_handed_in(one, ("/app",)) for one in ("/app/a", "/app/../etc/passwd", "/tests/test.sh", "/apple")]
    [True, False, False, False]
    """
    if posixpath.normpath(name) != name or not name.isprintable():
        return False
    if len(name) > _MOST_PATH_CHARS or len(name.encode()) > _MOST_PATH_BYTES:
        return False
    if any(name == one or name.startswith(f"{one}/") for one in _OURS):
        return False
    return any(name == one or name.startswith(f"{one}/") for one in roots)


def _paths(submission: Submission, name: str) -> tuple[str, ...]:
    found = submission.data.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise PatchError(f"wanted {name} as a list of paths")
    return tuple(map(str, found))


def _judged(box: Sandbox, spec: VerifierSpec, trust: Trust) -> Verdict:
    ready = box.exec(("sh", "-c", f"mkdir -p {TESTS} {LOGS} && find {TESTS} {LOGS} -mindepth 1 -delete"))
    if not ready.ok and trust is Trust.SHARED:
        return _verdict(0.0, "failed", trust, "the agent left no place for tests")
    if not ready.ok:
        raise VerifierError(f"the task's container has no place for tests: {ready.output[-200:].strip()}")
    box.upload({f"{TESTS}/{name}": data for name, data in decoded({**spec.tests}).items()})
    given = {"TEST_DIR": TESTS, **spec.env}
    result = box.exec(("bash", f"{TESTS}/{spec.script}"), cwd=box.workdir, timeout=spec.total_s, env=given)
    if result.timed_out:
        return _verdict(0.0, "failed", trust, "the verifier took too long")
    if spec.result == "code":
        said = f"the verifier ended with exit code {result.exit_code}"
        return _verdict(float(result.exit_code == 0), "", trust, said)
    return _rewarded(box, spec, trust, result)


def _rewarded(box: Sandbox, spec: VerifierSpec, trust: Trust, result: ExecResult) -> Verdict:
    components: dict[str, float | None] = {}
    try:
        if (text := _text(box, "reward.txt")) is not None:
            value = float(text)
        elif (text := _text(box, "reward.json")) is not None:
            found = _numbers(json.loads(text))
            if spec.reward not in found and len(found) > 1:
                said = f"the verifier gives several rewards: choose one with reward=NAME ({', '.join(found)})"
                return _verdict(0.0, "failed", trust, said[:_MOST_SAID])
            components = {name: number for name, number in found.items() if name != spec.reward}
            value = found[spec.reward] if spec.reward in found else next(iter(found.values()))
        else:
            said = f"the verifier left no reward, and ended with exit code {result.exit_code}"
            return _verdict(0.0, "failed", trust, said)
    except (ValueError, TypeError, StopIteration, RecursionError, OverflowError):
        return _verdict(0.0, "failed", trust, "the verifier's reward is no number")
    if not (math.isfinite(value) and 0.0 <= value <= 1.0):
        return _verdict(0.0, "failed", trust, "the verifier's reward is not a number from 0 to 1")
    return _verdict(value, "", trust, f"the verifier's reward is {value:g}", components)


def _text(box: Sandbox, name: str) -> str | None:
    try:
        return box.read(f"{LOGS}/{name}", limit=_RESULT_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def _numbers(found: Any) -> dict[str, float]:
    if not isinstance(found, Mapping) or not all(isinstance(one, int | float) for one in found.values()):
        raise TypeError("wanted numbers by name")
    return {str(name): float(one) for name, one in found.items()}


def _verdict(
    value: float, level: str, trust: Trust, feedback: str, components: dict[str, float | None] | None = None
) -> Verdict:
    level = level or ("passed" if value == 1.0 else "partial" if value > 0.0 else "failed")
    said = "" if value == 1.0 else feedback
    return Verdict(value=value, level=level, trust=trust, feedback=said, components=components or {})
