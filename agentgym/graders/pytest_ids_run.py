"""Run pytest once in a fresh sandbox, and read what was signed there."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agentgym.errors import SandboxError
from agentgym.graders.calls import NoAnswers, source_of
from agentgym.graders.patches import Tree
from agentgym.graders.pytest_ids_spec import PytestSpec
from agentgym.sandbox import ExecResult, Sandbox, SandboxBackend, SandboxSpec

_GRACE_S = 10.0
_PATIENCE = 4.0
_LIMIT = 1 << 24
_OUTCOMES = frozenset(("passed", "failed", "error", "skipped", "xfailed", "xpassed", "tampered"))
_CANARY = """
import pytest


@pytest.fixture
def broken():
    raise ValueError({b})


def test_unequal():
    assert {a} == {b}


def test_raises():
    raise ValueError({a})


def test_set_up(broken):
    pass


class TestMethods:
    def test_missing(self):
        with pytest.raises(KeyError):
            pass
"""
_CANARIES = _CANARY.count("def test_")


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of pytest showed."""

    state: str
    """`ended`; `late`, `died`: it did not come to its end; `forged`: someone else spoke in its name."""
    outcomes: Mapping[str, str] = field(default_factory=dict)
    """By id: `passed`, `failed`, `error`, `skipped`, `xfailed`, `xpassed`, `tampered`, `duplicate`."""
    canaries: tuple[str, ...] = ()
    """The outcomes of tests that must fail, `missing` if they were not run."""
    collected: int = 0
    """Every test in the files that were run, wanted or not."""
    messages: Mapping[str, str] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether the run came to its end, untouched, and every test that must fail did."""
        tampered = "tampered" in self.outcomes.values() or "tampered" in self.canaries
        return self.state == "ended" and not tampered and not {"passed", "missing"} & {*self.canaries}

    def of(self, wanted: str) -> list[str]:
        """Return the outcomes of one id, or of every set of parameters of an id without them."""
        if wanted in self.outcomes:
            return [self.outcomes[wanted]]
        return [one for name, one in self.outcomes.items() if "[" not in wanted and name.partition("[")[0] == wanted]

    def passed(self, wanted: str) -> bool:
        """Whether a test was seen, once, and plainly passed."""
        found = self.of(wanted)
        return bool(found) and {*found} == {"passed"}


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: a tree, and which of its tests count."""

    files: Tree
    select: Sequence[str]
    executable: Sequence[str] = ()
    canary: bool = False
    messages: bool = False
    removed: Sequence[str] = ()
    """What the image has and the tree has not."""
    present: Sequence[str] = ()
    """What the image has and the tree has, too."""


def run(sandboxes: SandboxBackend, box_spec: SandboxSpec, spec: PytestSpec, plan: Plan) -> Run:
    """Run the selected tests of a tree in a sandbox of their own.

    Raises:
        NoAnswers: the run's report is missing or not signed.
        SandboxError: the sandbox failed, or has no pytest.
    """
    with sandboxes.start(box_spec) as box:
        return _run_in(box, spec, plan)


def _run_in(box: Sandbox, spec: PytestSpec, plan: Plan) -> Run:
    root = spec.root or f"{box.workdir.rstrip('/')}/repository"
    files = dict(plan.files)
    canaries = [f"test_{secrets.token_hex(4)}.py" for _ in range(2 * plan.canary)]
    numbers = secrets.SystemRandom().sample(range(2, 1000), 4)
    for place, name in enumerate(canaries):
        files[name] = _CANARY.format(a=numbers[place], b=numbers[place + 2]).encode()
    box.upload({f"{root}/{name}": data for name, data in files.items()})
    key = secrets.token_bytes(32)
    order = {
        "root": root,
        "roots": [root if one == "." else f"{root}/{one}" for one in spec.import_roots],
        "ini": spec.ini,
        "plugins": list(spec.plugins),
        "conftests": [f"{root}/{name}" for name in (*files, *plan.present) if _is_conftest(name)],
        "files": [*canaries[:1], *dict.fromkeys(one.partition("::")[0] for one in plan.select), *canaries[1:]],
        "select": list(plan.select),
        "canaries": canaries,
        "messages": plan.messages,
        "executable": list(plan.executable),
        "removed": list(plan.removed),
    }
    request = {"key": key.hex(), "total_s": spec.total_s, "order": order}
    result = box.exec(
        ("python3", "-I", "-S", "-c", source_of("_pytest_runner.py"), source_of("_pytest_worker.py")),
        timeout=_PATIENCE * spec.total_s + _GRACE_S,
        stdin=ascii(request).encode(),
        output_limit=_LIMIT,
    )
    return _read(result, key, canaries)


def _is_conftest(name: str) -> bool:
    return name.rpartition("/")[2] == "conftest.py"


def _read(result: ExecResult, key: bytes, canaries: Sequence[str]) -> Run:
    if result.stdout.startswith(b"missing ") and result.exit_code == 0:
        python = result.stdout[8:200].decode("utf-8", "replace").strip()
        raise SandboxError(
            f"{python} in the sandbox has no pytest: run `apt-get install python3-pytest`, or use an image that has it"
        )
    if result.timed_out or result.exit_code != 0:
        raise NoAnswers("the submission ended its own judging", result)
    signed = [body for line in result.stdout.splitlines() if (body := _verified(line, key)) is not None]
    if len(signed) != 1:
        raise NoAnswers("the outcomes are not signed", result)
    told = json.loads(signed[0])
    return _understood(str(told["state"]), [str(one) for one in told["messages"]], canaries)


def _verified(line: bytes, key: bytes) -> bytes | None:
    signature, _, body = line.partition(b" ")
    wanted = hmac.new(key, body, hashlib.sha256).hexdigest().encode()
    return body if hmac.compare_digest(signature, wanted) else None


def _understood(state: str, messages: Sequence[str], canaries: Sequence[str]) -> Run:
    """Read the worker's messages; one that the worker would not have written makes the run `forged`."""
    outcomes: dict[str, str] = {}
    texts: dict[str, str] = {}
    counts: Counter[str] = Counter()
    collected = 0
    seen: list[str] = []
    for message in messages:
        try:
            found = json.loads(message)
        except (ValueError, RecursionError):
            return Run("forged")
        match found:
            case ["collected", int(collected), [*_]]:
                counts["collected"] += 1
            case ["test", str(name), str(outcome), str(text)] if outcome in _OUTCOMES:
                if name.partition("::")[0] in canaries:
                    seen.append(outcome)
                else:
                    outcomes[name] = "duplicate" if name in outcomes else outcome
                    texts[name] = text
            case ["broken", str(name), str(text)]:
                texts[name] = text
            case ["framework", bool(intact)]:
                counts["framework"] += 1
                state = state if intact else "forged"
            case _:
                return Run("forged")
    if counts["collected"] > 1 or (state == "ended" and counts["framework"] != 1):
        return Run("forged")
    seen += ["missing"] * (_CANARIES * len(canaries) - len(seen))
    return Run(state, outcomes, tuple(seen), collected, texts)
