"""Run a commit's tests without and with its source, again and again, and say which of them tell the two apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from agentgym.errors import TaskError
from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec
from agentgym_envs.swe.mining.candidates import Candidate, RefusedError

ROUNDS = 3
_GRACE_S = 10.0
_REPORT_BYTES = 1 << 26
_REPORT = "/tmp/agentgym-probe.json"
_FAILED = frozenset(("failed", "error"))
_FAILING = _FAILED | {"missing"}

Tree = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Setting:
    """How a repository's tests are run; the same for every commit."""

    box: SandboxSpec
    roots: tuple[str, ...] = (".",)
    ini: Mapping[str, str] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    total_s: float = 60.0
    """Seconds that one run may take."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What one run of pytest showed."""

    tests: Mapping[str, str]
    """By id: `passed`, `failed`, `error`, `skipped`, `xfailed`, `xpassed`, `duplicate`."""
    messages: Mapping[str, str]
    """The errors of those that failed, in a few words."""
    broken: Mapping[str, str]
    """What could not be collected, and why."""

    def of(self, name: str) -> str:
        """Return the outcome of a test; `missing` if it was not run."""
        return self.tests.get(name, "missing")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What all rounds agree on."""

    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    unstable: tuple[str, ...]
    """Ids whose outcome is not the same in each round, such as those that contain a time."""
    errors: Mapping[str, str]
    """What the failing tests said, by id; by file where the file could not be collected."""
    failing: tuple[str, ...]
    """What fails with the source, too."""
    broken_before: Mapping[str, str]
    """The files that could not be collected without the source, and why."""
    broken_after: Mapping[str, str]


def run(box: Sandbox, root: str, candidate: Candidate, setting: Setting, seed: int) -> Outcomes:
    """Run the candidate's test files once, in the order that the seed draws.

    Raises:
        RefusedError: the run came to no end.
        SandboxError: the sandbox failed.
        TaskError: it has no pytest.
    """
    order = {
        "root": root,
        "roots": [root if one == "." else f"{root}/{one}" for one in setting.roots],
        "ini": dict(setting.ini),
        "plugins": list(setting.plugins),
        "files": list(candidate.run),
        "seed": seed,
        "report": _REPORT,
    }
    box.exec(("rm", "-f", _REPORT))
    result = box.exec(
        ("python3", "-I", "-S", "-c", _probe()), stdin=json.dumps(order).encode(), timeout=setting.total_s + _GRACE_S
    )
    if result.timed_out:
        raise RefusedError("the tests take too long", f"more than {setting.total_s:g} s")
    try:
        told: dict[str, Any] = json.loads(box.read(_REPORT, limit=_REPORT_BYTES))
    except (FileNotFoundError, ValueError) as error:
        if "No module named 'pytest'" in result.output:
            raise TaskError("the sandbox's python3 has no pytest: take an image that has it") from error
        raise RefusedError("the tests end their own run", result.output[-300:].strip()) from error
    return Outcomes(told["outcomes"], told["messages"], told["broken"])


def rounds(
    sandboxes: SandboxBackend, candidate: Candidate, before: Tree, after: Tree, setting: Setting, count: int = ROUNDS
) -> Evidence:
    """Run the tests before and after, `count` times, each time in a fresh sandbox and in another order.

    Raises:
        RefusedError: a run came to no end.
        SandboxError: a sandbox failed.
    """
    pairs: list[tuple[Outcomes, Outcomes]] = []
    for seed in range(count):
        with sandboxes.start(setting.box) as box:
            found = []
            for place, tree in (("before", before), ("after", after)):
                root = f"{box.workdir.rstrip('/')}/{place}/repository"
                box.upload({f"{root}/{name}": data for name, data in tree.items()})
                found.append(run(box, root, candidate, setting, seed))
        pairs.append((found[0], found[1]))
        if not any(_fixed(one, pairs) for one in pairs[0][1].tests):
            break  # further rounds could only take away
    return agree(pairs)


def agree(pairs: Sequence[tuple[Outcomes, Outcomes]]) -> Evidence:
    """Return what pairs of runs, before and after, agree on."""
    names = sorted({name for pair in pairs for one in pair for name in one.tests})
    fixed = [name for name in names if _fixed(name, pairs)]
    kept = [name for name in names if all(one.of(name) == "passed" for pair in pairs for one in pair)]
    unstable = [name for name in names if any(_differ(name, side) for side in zip(*pairs, strict=True))]
    first = pairs[0][0]
    failing = [name for name in names if pairs[0][1].of(name) in _FAILED and name not in unstable]
    errors = {name: first.messages[name] for name in fixed if name in first.messages}
    return Evidence(
        tuple(fixed), tuple(kept), tuple(unstable), {**errors, **first.broken}, tuple(failing), first.broken,
        pairs[0][1].broken,
    )  # fmt: skip


def judge(evidence: Evidence, *, strict: bool) -> None:
    """Refuse evidence that makes no task.

    Args:
        evidence: of all rounds.
        strict: also refuse where the test files cannot even be collected before, no test passes before and after, or
            one fails after.

    Raises:
        RefusedError: with the reason.
    """
    if not evidence.fail_to_pass and evidence.broken_after:
        raise RefusedError("the tests cannot be collected after", _first(evidence.broken_after.values()))
    if not evidence.fail_to_pass:
        reason = "no test fails before and passes after"
        raise RefusedError(reason if not evidence.unstable else "no test repeats its outcome", _first(evidence.failing))
    if not strict:
        return
    if evidence.broken_before:
        raise RefusedError("the tests cannot be collected before", _first(evidence.broken_before.values()))
    if evidence.failing or evidence.broken_after:
        raise RefusedError("a test fails after, too", _first((*evidence.failing, *evidence.broken_after)))
    if not evidence.pass_to_pass:
        raise RefusedError("no test passes before and after")


def _fixed(name: str, pairs: Sequence[tuple[Outcomes, Outcomes]]) -> bool:
    return all(before.of(name) in _FAILING and after.of(name) == "passed" for before, after in pairs)


def _differ(name: str, side: Iterable[Outcomes]) -> bool:
    return len({one.of(name) for one in side}) > 1


def _first(texts: Iterable[str]) -> str:
    return next(iter(texts), "")[:300]


@cache
def _probe() -> str:
    return resources.files("agentgym_envs.swe.mining").joinpath("_probe.py").read_text(encoding="utf-8")
