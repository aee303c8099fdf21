"""Judge a repository by named tests: those that failed must pass, those that passed must still, each must be seen."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

from agentgym.errors import SandboxError, VerifierError
from agentgym.graders.calls import NoAnswers
from agentgym.graders.function import clean
from agentgym.graders.patches import MAX_FOLDER_BYTES, MAX_FOLDER_ENTRIES, PatchError, Tree, check_tree
from agentgym.graders.pytest_ids_run import Plan, Run, run
from agentgym.graders.pytest_ids_spec import (
    Candidate,
    PytestSpec,
    candidate,
    check_base,
    given,
    read_spec,
    with_test_patch,
)
from agentgym.graders.pytest_ids_twins import Trial, Trials, plan, unchanged
from agentgym.sandbox import SandboxBackend, SandboxSpec
from agentgym.task import Task
from agentgym.types import Submission, Trust, Verdict

_MAX_AT_ONCE = 4
_CONTROL = PytestSpec(fail_to_pass=("test_control.py::test_one",))
_CONTROL_FILES = {"test_control.py": b"def test_one():\n    pass\n"}
_FORGED = "the tests did not run as they stand: the submission ends, skips or changes them"


class PytestGrader:
    """Runs the wanted tests of a repository in fresh sandboxes, whole files first, then single tests beside twins.

    The value is 1 only if every wanted test is seen once and plainly passes, every canary fails, and every twin fails.
    Trust is `twins` where each assertion of each fail-to-pass test that the agent could not read has a twin that
    differs in its expectation only, else `separate`.
    """

    levels = ("no_submission", "empty", "malformed", "broken", "failed", "passed")

    def check(self, task: Task) -> None:
        """Refuse a task that could not be judged.

        Raises:
            VerifierError: the task is malformed.
        """
        spec = read_spec(task)
        if spec.root is None:
            base = given(task.public)
            check_base(task, with_test_patch(task, spec, base), base)

    def grade(self, task: Task, submission: Submission, sandboxes: SandboxBackend) -> Verdict:
        """Return the verdict on a diff, or on whole files.

        Raises:
            SandboxError: the machinery failed; the submission is not to blame.
            VerifierError: the task is malformed.
        """
        job = _Job(task, read_spec(task), sandboxes, clean(task.sandbox))
        base = job.base()
        spec = with_test_patch(task, job.spec, base)
        job = replace(job, spec=spec)
        check_base(task, spec, base)
        trials = job.trials(base)
        trust = Trust.TWINS if trials.by_value else Trust.SEPARATE
        if submission.empty:
            return _verdict("empty", trust, "nothing was submitted")
        try:
            found = candidate(spec, base, submission)
        except PatchError as error:
            return _verdict("malformed", trust, str(error))
        if found.files == base and not found.executable:
            return _verdict("empty", trust, f"the submission changes nothing that counts{_ignored(found)}")
        try:
            return job.judge(base, found, trials, trust)
        except NoAnswers as error:
            job.show_that_judging_works(error)
            return _verdict("failed", trust, "the submission ended the process that judged it")


@dataclass(frozen=True, slots=True)
class _Job:
    task: Task
    spec: PytestSpec
    sandboxes: SandboxBackend
    box: SandboxSpec

    def base(self) -> Tree:
        """Return the repository before the submission."""
        files = given(self.task.public)
        if self.spec.root is not None:
            if not self.box.writable_root:
                raise VerifierError(
                    f"{self.task.id!r} is judged in its image's {self.spec.root}; add writable_root: true"
                )
            files = {**self._image_files(self.spec.root), **files}
            files = {name: data for name, data in files.items() if ".git" not in name.split("/")}
        try:
            check_tree(files)
        except PatchError as error:
            raise VerifierError(f"the repository of {self.task.id!r} cannot be judged: {error}") from error
        return files

    def _image_files(self, root: str) -> dict[str, bytes]:
        with self.sandboxes.start(self.box) as box:
            try:
                return box.download(root, max_files=MAX_FOLDER_ENTRIES, max_bytes=MAX_FOLDER_BYTES)
            except (FileNotFoundError, ValueError) as error:  # nobody but the task's author has been there
                why = f"the repository of {self.task.id!r} cannot be read in its image: {error}"
                raise VerifierError(why) from error

    def trials(self, base: Tree) -> Trials:
        """Return the single tests to try, true ones and twins."""
        before = self.sources(base)
        ids, rng = self.spec.fail_to_pass, random.SystemRandom()
        known = unchanged(ids, before, self.spec.tests)
        return plan({**before, **self.spec.tests}, ids, self.spec.twins, rng, known)

    def sources(self, base: Tree) -> dict[str, str]:
        """Return the test files that the agent could read."""
        return {name: base[name].decode("utf-8", "replace") for name in self.spec.files if name in base}

    def judge(self, base: Tree, found: Candidate, trials: Trials, trust: Trust) -> Verdict:
        """Return the verdict on a repository."""
        files = found.with_tests(self.spec.tests)
        whole = self.run(base, Plan(files, self.spec.ids, found.executable, canary=True))
        components = _components(self.spec, whole)
        if not whole.sound:
            level = "broken" if whole.state == "ended" and not whole.outcomes else "failed"
            return _verdict(level, trust, f"{_why(whole)}{_ignored(found)}", {**components, "passed": 0.0})
        failing = [one for one in self.spec.ids if not whole.passed(one)]
        if failing:
            level = "broken" if not whole.outcomes else "failed"
            return _verdict(level, trust, self.explain(base, found, failing), components)
        problem = self.try_single(base, found, trials.trials)
        if problem:
            return _verdict("failed", trust, problem, {**components, "passed": 0.0})
        return _verdict("passed", trust, _ignored(found).lstrip("; "), components)

    def run(self, base: Tree, one: Plan) -> Run:
        """Run a tree; where the image holds the repository, only what differs is written."""
        if self.spec.root is None:
            return run(self.sandboxes, self.box, self.spec, one)
        own = given(self.task.public)
        changed = {name: data for name, data in one.files.items() if base.get(name) != data or name in own}
        removed = [name for name in base if name not in one.files and name not in own]
        smaller = replace(one, files=changed, removed=removed, present=[name for name in base if name in one.files])
        return run(self.sandboxes, self.box, self.spec, smaller)

    def try_single(self, base: Tree, found: Candidate, trials: Sequence[Trial]) -> str:
        """Run single tests, each in a sandbox of its own; return what is wrong, or nothing."""
        with ThreadPoolExecutor(min(_MAX_AT_ONCE, os.cpu_count() or 1)) as pool:
            open_runs: dict[Future[Run], Trial] = {}
            left = list(trials)
            while left or open_runs:
                while left and len(open_runs) < _MAX_AT_ONCE:
                    one = left.pop()
                    files = found.with_tests({**self.spec.tests, one.path: one.source})
                    step = Plan(self.without_true(files, one), [one.function], found.executable)
                    open_runs[pool.submit(self.run, base, step)] = one
                done, _ = wait(open_runs, return_when=FIRST_COMPLETED)
                for future in done:
                    problem = self.contradiction(open_runs.pop(future), future.result())
                    if problem:
                        return problem
        return ""

    def without_true(self, files: Tree, trial: Trial) -> Tree:
        """Leave out the other test files with fail-to-pass tests: nothing may tell a true test from its twin."""
        others = {one.partition("::")[0] for one in self.spec.fail_to_pass} - {trial.path}
        return {name: data for name, data in files.items() if name not in others}

    def contradiction(self, trial: Trial, found: Run) -> str:
        """Return what speaks against the submission in one trial."""
        if not found.sound and (trial.must_pass or found.state == "forged"):
            return _why(found)
        if not trial.must_pass:
            passing = "passed" in found.of(trial.function) or "tampered" in found.of(trial.function)
            return "tests with wrong expectations pass, too" if passing else ""
        wanted = [one for one in self.spec.fail_to_pass if one.partition("[")[0] == trial.function]
        return "" if all(found.passed(one) for one in wanted) else "a test fails when it runs alone"

    def explain(self, base: Tree, found: Candidate, failing: Sequence[str]) -> str:
        """Return which wanted tests fail: by name and error if the agent can see them, else by number."""
        known = unchanged(failing, self.sources(base), self.spec.tests)
        open_tests = [one for one in failing if one.partition("[")[0] in known]
        hidden = len(failing) - len(open_tests)
        parts = [f"{hidden} of the hidden tests fail"] if hidden else []
        if open_tests:
            # Run again without the hidden files: an error's text cannot carry what is not there.
            again = self.run(base, Plan(found.files, open_tests[:1], found.executable, messages=True))
            name = next((one for one in again.messages if one.startswith(open_tests[0])), "")
            reason = again.messages.get(name) or next(iter(again.messages.values()), "") or again.state
            more = f", and {len(open_tests) - 1} more that you can see" if len(open_tests) > 1 else ""
            parts.insert(0, f"{open_tests[0]} fails: {' '.join(reason.split())[:300]}{more}")
        return "; ".join(parts) + _ignored(found)

    def show_that_judging_works(self, cause: NoAnswers) -> None:
        """Tell the submission's fault from the machine's by a harmless test that is judged the same way."""
        try:
            found = run(self.sandboxes, self.box, _CONTROL, Plan(_CONTROL_FILES, _CONTROL.ids, canary=True))
        except NoAnswers as error:
            raise SandboxError(f"a harmless test cannot be judged in this sandbox: {error}") from cause
        if not found.passed(_CONTROL.ids[0]):
            raise SandboxError(f"a harmless test does not pass in this sandbox: it {found.state}") from cause


def _components(spec: PytestSpec, whole: Run) -> dict[str, float | None]:
    def share(ids: Sequence[str]) -> float:
        return sum(whole.passed(one) for one in ids) / len(ids)

    components: dict[str, float | None] = {"passed": share(spec.ids), "fail_to_pass": share(spec.fail_to_pass)}
    if spec.pass_to_pass:
        components["pass_to_pass"] = share(spec.pass_to_pass)
    return {**components, "other_tests": float(max(0, whole.collected - len(whole.outcomes) - len(whole.canaries)))}


def _why(found: Run) -> str:
    match found.state:
        case "late":
            return "the tests take too long"
        case "died":
            return "the process ended before all tests had run"
        case "ended" if not found.outcomes and "missing" in found.canaries:
            return "no test could be collected"
    return _FORGED


def _ignored(found: Candidate) -> str:
    if not found.ignored:
        return ""
    names = ", ".join(found.ignored[:3]) + (", …" if len(found.ignored) > 3 else "")
    return f"; left out of the submission: {names[:300]} (tests and their configuration stay as they were)"


def _verdict(level: str, trust: Trust, feedback: str, components: Mapping[str, float | None] | None = None) -> Verdict:
    value = 1.0 if level == "passed" else 0.0
    return Verdict(value=value, level=level, trust=trust, components=dict(components or {}), feedback=feedback)
