"""Mine a repository: walk its history, try what might be a task, keep what is one, and say why the rest is not."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from agentgym import registry
from agentgym.errors import SandboxError, TaskError, VerifierError
from agentgym.image import ImageSpec
from agentgym.sandbox import SandboxBackend, SandboxSpec
from agentgym.types import Record, Split, Submission, Verdict
from agentgym_envs.swe.folders import instance as read_folder
from agentgym_envs.swe.mining.candidates import Candidate, Limits, RefusedError, candidate
from agentgym_envs.swe.mining.environment import generated, image_for, import_roots, version_at
from agentgym_envs.swe.mining.folders import keep, pack, stage
from agentgym_envs.swe.mining.git import NoCommitError, Repository, Snapshot
from agentgym_envs.swe.mining.issue import Found, Writer, plain
from agentgym_envs.swe.mining.journal import Entry, Journal
from agentgym_envs.swe.mining.runs import ROUNDS, Evidence, Setting, judge, rounds
from agentgym_envs.swe.sources import Archive, unpack
from agentgym_envs.swe.tasks import Environment, SweInstance, to_task

logger = logging.getLogger(__name__)
_NOOP = "diff --git a/NOTES b/NOTES\nnew file mode 100644\n--- /dev/null\n+++ b/NOTES\n@@ -0,0 +1 @@\n+-\n"


class Settings(Record):
    """What decides which tasks come out; a run that is taken up again must have the same."""

    since: str | None = "2016-01-01"
    """Commits before this date are left out; before 2016 much is Python 2."""
    revision: str = "HEAD"
    limits: Limits = Limits()
    strict: bool = True
    """Also refuse where the test files cannot be collected before, none passes before and after, or one fails after."""
    rounds: Annotated[int, Field(ge=1)] = ROUNDS
    image: ImageSpec | None = None
    """What the image of all commits is made of; None asks pip for the dependencies that the project names."""
    environment: Environment = Environment(total_s=60.0, twins=8)
    """How tests are run; its image is found out, and its import roots are those of each commit."""
    split: Split = "train"


@dataclass(frozen=True, slots=True)
class Mined:
    """What became of a history."""

    out: Path
    repository: str
    commits: int
    """That were looked at."""
    valid: tuple[str, ...]
    """The ids of the tasks."""
    refused: tuple[Entry, ...]
    broken: tuple[str, ...]
    """Commits that could not be tried for the sandboxes' sake; another run tries them again."""

    @property
    def reasons(self) -> dict[str, int]:
        """How many commits were refused for each reason, the most frequent first."""
        return dict(Counter(one.reason for one in self.refused).most_common())

    def report(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "repository": self.repository,
            "commits": self.commits,
            "valid": [*self.valid],
            "refused": self.reasons,
            "details": [one.model_dump(mode="json") for one in self.refused],
            "not_tried": [*self.broken],
        }


class Miner:
    """Mines one repository into a folder of task folders; safe to kill, and to start again."""

    def __init__(
        self,
        repository: Repository,
        out: Path,
        sandboxes: SandboxBackend,
        settings: Settings | None = None,
        *,
        issue: Writer = plain,
    ) -> None:
        """Prepare; runs nothing yet.

        Args:
            repository: whose history is walked.
            out: where the set lies; several repositories may share one.
            sandboxes: where tests are run. Where it has images, one is built for the repository.
            settings: what may become a task.
            issue: what writes the issues.

        Raises:
            TaskError: the folder was mined with other settings.
        """
        self.repository = repository
        self.settings = settings or Settings()
        self.sandboxes = sandboxes
        self.issue = issue
        self.out = out
        self.name = repository.name
        self.tip = repository.resolve(self.settings.revision)
        said = {"repository": self.name, "modules": sorted(repository.modules), **self.settings.model_dump(mode="json")}
        self.journal = Journal(out / "mining" / f"{self.name.replace('/', '__')}.jsonl", said)

    def image(self) -> str | None:
        """Return the name of the image for all commits, built if it is not there; None without images.

        Raises:
            TaskError: it cannot be built from what the repository names.
        """
        if "image" not in self.sandboxes.capabilities:
            return None
        spec = image_for(self.repository, self.tip, self.settings.image)
        try:
            self.sandboxes.accept(SandboxSpec(image=spec.name))
        except SandboxError as error:
            if spec.pip and "No module named pip" in str(error):
                raise TaskError(
                    f"{self.name} needs {', '.join(spec.pip)}, and the base image has no pip: give an image with its "
                    "packages from apt, or with another base"
                ) from error
            raise
        return spec.name

    def candidates(self) -> tuple[list[Candidate], list[Entry]]:
        """Return what might become tasks, newest first, and the rest with reasons; runs nothing."""
        found, refused = [], []
        for commit in self.repository.history(self.tip, self.settings.since):
            try:
                found.append(candidate(self.repository, commit, self.settings.limits))
            except RefusedError as error:
                refused.append(Entry(commit=commit.sha, reason=error.reason, detail=error.detail))
        return found, refused

    def mine(
        self,
        *,
        jobs: int = 2,
        limit: int | None = None,
        on_start: Callable[[int], None] = lambda _: None,
        on_done: Callable[[Entry], None] = lambda _: None,
    ) -> Mined:
        """Try every candidate that was not tried before.

        Args:
            jobs: how many are tried at once.
            limit: how many tasks there should be, with those of earlier runs; None tries all candidates.
            on_start: told how many candidates there are.
            on_done: told of each that is tried, or was tried before.
        """
        image = self.image()
        found, refused = self.candidates()
        commits = len(found) + len(refused)
        on_start(len(found))
        tried = {one.commit: one for one in self.journal.entries()}
        valid = [one.instance_id for one in tried.values() if one.instance_id]
        for entry in tried.values():
            on_done(entry)
        broken: list[str] = []
        left = iter([one for one in found if one.commit.sha not in tried])
        for entry in self._all(left, image, jobs, lambda: limit is not None and len(valid) >= limit):
            if entry.infrastructure:
                broken.append(f"{entry.commit}: {entry.detail}")
                continue
            self.journal.add(entry)
            tried[entry.commit] = entry
            if entry.instance_id:
                valid.append(entry.instance_id)
            on_done(entry)
        refused += [one for one in tried.values() if not one.instance_id]
        return Mined(self.out, self.name, commits, tuple(valid), tuple(refused), tuple(broken))

    def try_one(self, one: Candidate, image: str | None) -> Entry:
        """Run one candidate's tests and grader, and write its folder if it is a task."""
        try:
            instance_id = self._keep(one, image)
        except RefusedError as error:
            return Entry(commit=one.commit.sha, reason=error.reason, detail=error.detail)
        except NoCommitError as error:
            return Entry(commit=one.commit.sha, reason="a submodule's commit is missing", detail=str(error))
        except SandboxError as error:
            logger.warning("a commit could not be tried commit=%s reason=%s", one.commit.sha, error)
            return Entry(commit=one.commit.sha, reason="could not be tried", detail=str(error), infrastructure=True)
        return Entry(commit=one.commit.sha, instance_id=instance_id)

    def _all(
        self, left: Iterator[Candidate], image: str | None, jobs: int, enough: Callable[[], bool]
    ) -> Iterator[Entry]:
        pool = ThreadPoolExecutor(jobs, thread_name_prefix="mine")
        running: set[Future[Entry]] = set()
        try:
            while True:
                while len(running) < jobs and not enough() and (one := next(left, None)) is not None:
                    running.add(pool.submit(self.try_one, one, image))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in done)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _keep(self, one: Candidate, image: str | None) -> str:
        base = self._before(one)
        tip = self.repository.snapshot(one.commit.sha).files
        before, after = one.before(base.files, tip), one.after(base.files, tip)
        roots = import_roots(base.files)
        environment = self.settings.environment.model_copy(update={"image": image, "import_roots": roots})
        box = SandboxSpec(**environment.model_dump(include={"image", "memory_mb", "pids", "disk_mb"}))
        setting = Setting(
            box.model_copy(update={"env": environment.variables}),
            roots,
            environment.ini,
            environment.plugins,
            environment.total_s,
        )
        evidence = rounds(self.sandboxes, one, before, after, setting, self.settings.rounds)
        judge(evidence, strict=self.settings.strict)
        archive = pack(base.files, base.executable)
        instance = self._instance(one, evidence, environment, archive)
        more = {"fix_commit": one.commit.sha, "unstable": len(evidence.unstable)}
        staged = stage(self.out, instance, archive, more)
        try:
            self._prove(staged)
            keep(self.out, staged)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return instance.instance_id

    def _prove(self, staged: Path) -> None:
        """Ask the grader of the task as it will be loaded: the solution is worth 1, and a change of nothing 0."""
        try:
            task = to_task(read_folder(staged))
        except TaskError as error:
            raise RefusedError("the task cannot be loaded", str(error)) from error
        grader = registry.create("graders", "pytest_ids")
        for diff, wanted in ((str(task.hidden.reference["patch"]), 1.0), (_NOOP, 0.0)):
            try:
                verdict: Verdict = grader.grade(task, Submission(data={"diff": diff}), self.sandboxes)
            except VerifierError as error:
                raise RefusedError("the grader refuses the task", str(error)) from error
            if verdict.value != wanted:
                what = "the solution" if wanted else "a change of nothing"
                raise RefusedError(f"the grader does not give {what} {wanted:g}", verdict.feedback)

    def _before(self, one: Candidate) -> Snapshot:
        """Return the parent's files that a task can hold, and those that a build would have added."""
        found = self.repository.snapshot(one.commit.parent)
        try:
            content = unpack(pack(found.files, found.executable))
        except TaskError as error:
            raise RefusedError("the repository is too large for a task", str(error)) from error
        made = generated(content.files, version_at(self.repository, one.commit.parent))
        return Snapshot({**content.files, **made}, content.executable)

    def _instance(self, one: Candidate, evidence: Evidence, environment: Environment, archive: bytes) -> SweInstance:
        commit = one.commit
        try:
            patch = self.repository.diff(commit.parent, commit.sha, one.source)
            test_patch = self.repository.diff(commit.parent, commit.sha, one.tests)
        except TaskError as error:
            raise RefusedError("changes a file that is not text", str(error)) from error
        text = self.issue(Found(self.name, commit.message, patch, evidence.errors))
        return SweInstance(
            instance_id=f"{self.name.replace('/', '__')}-{commit.sha[:10]}",
            repo=self.name,
            base_commit=commit.parent,
            problem_statement=text,
            patch=patch,
            test_patch=test_patch,
            FAIL_TO_PASS=evidence.fail_to_pass,
            PASS_TO_PASS=evidence.pass_to_pass,
            source=Archive(path="repository.tar.gz", sha256=hashlib.sha256(archive).hexdigest()),
            environment=environment,
            created_at=commit.date,
            version=version_at(self.repository, commit.parent),
            split=self.settings.split,
        )
