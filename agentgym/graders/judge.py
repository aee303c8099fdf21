"""Judge by a model's opinion where nothing better can be had: off unless asked for, and tried before it is believed."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentgym.errors import VerifierError
from agentgym.graders.judge_client import Client, EndpointError, RefusedError
from agentgym.graders.judge_probes import Qualification, fooled_by, qualify, read_probes
from agentgym.graders.judge_rubric import Rubric, RubricItem, messages_for, read_reply, read_rubric
from agentgym.graders.judge_settings import JudgeSettings, read_settings
from agentgym.sandbox import SandboxBackend
from agentgym.task import Task
from agentgym.types import Submission, Trust, Verdict

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_CONTROL = Rubric(
    question="What is 2 + 3?",
    reference="5",
    rubric=(RubricItem(id="correct", text="The submission gives the right sum as its only answer."),),
    score="all",
)


class UnreadableError(Exception):
    """The model's reply to this request is not what it was asked for."""


class JudgeGrader:
    """Asks a model whether each item of a rubric holds for a submission.

    It works only by settings that say `enabled: true`. Before its first verdict the model is tried on answers that hold
    nothing, and on labelled ones; before the first verdict on a task, on that task's own rubric. A model that one of
    the empty answers impresses is refused. A failing endpoint leaves the verdict unscored; a submission to which the
    model does not reply as asked, while it does to a harmless one, scores 0.
    """

    trust = Trust.OPINION
    levels = ("no_submission", "empty", "failed", "partial", "passed")

    def __init__(self, settings: JudgeSettings | Mapping[str, Any] | str | Path | None = None) -> None:
        """Take settings, a mapping or a YAML file of them; None looks for a file in the variable `AGENTGYM_JUDGE`."""
        self._given = settings

    def check(self, task: Task) -> None:
        """Refuse a malformed task, and every task while judges are off.

        Raises:
            VerifierError: saying what is malformed or missing.
        """
        read_rubric(task)
        read_settings(self._given)

    def qualification(self) -> Qualification:
        """Try the model, if that has not been done, and return how it did: attacks, false positives and negatives.

        Raises:
            VerifierError: judges are off, or the settings are malformed.
            EndpointError: the endpoint does not answer.
        """
        return _judge(read_settings(self._given)).qualification()

    def grade(self, task: Task, submission: Submission, sandboxes: SandboxBackend) -> Verdict:  # noqa: ARG002
        """Return the model's verdict; no sandbox is needed, because nothing is run.

        Raises:
            VerifierError: the task is malformed, judges are off, or this one is refused.
        """
        rubric = read_rubric(task)
        settings = read_settings(self._given)
        said = [submission.answer or "", *submission.files.values(), *map(str, submission.data.values())]
        if not any(one.isalnum() for text in said for one in text):
            return _verdict("empty", 0.0, "wanted an answer, found nothing")
        if len(submission.model_dump_json()) > settings.max_characters:
            return _verdict("failed", 0.0, f"wanted at most {settings.max_characters} characters, found more")
        judge = _judge(settings)
        try:
            judge.require_qualified(rubric)
            items = judge.items(rubric, submission)
        except EndpointError as error:
            return Verdict(value=None, level="unscored", trust=Trust.OPINION, error=str(error))
        except UnreadableError:
            return _verdict("failed", 0.0, "the judge cannot make sense of the submission")
        value = rubric.worth(items)
        met = sum(items.values())
        level = "passed" if value == 1.0 else "partial" if value > 0.0 else "failed"
        feedback = "" if level == "passed" else f"{met} of {len(items)} items of the rubric hold"
        return _verdict(level, value, feedback, {name: float(held) for name, held in items.items()})


class _Judge:
    """One model, shared by all graders with the same settings; safe to use from many threads."""

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings = settings
        self.client = Client(settings)
        self.probes = read_probes(settings.probes)
        self._lock = threading.Lock()
        self._qualification: Qualification | None = None
        self._tried: dict[str, tuple[str, ...]] = {}

    def qualification(self) -> Qualification:
        with self._lock:
            if self._qualification is None:
                settings = self.settings
                self._qualification = qualify(settings.model, self.worth, self.probes, settings.concurrency)
                logger.info("tried %s", self._qualification)
            return self._qualification

    def require_qualified(self, rubric: Rubric) -> None:
        found = self.qualification()
        problems = [f"is fooled by {kind}" for kind in found.fooled]
        for name, rate, limit in (
            ("false positives", found.false_positives.value, self.settings.max_false_positives),
            ("false negatives", found.false_negatives.value, self.settings.max_false_negatives),
        ):
            if rate > limit:
                problems.append(f"has {rate:.0%} {name}, of which {limit:.0%} are allowed")
        if problems:
            raise VerifierError(
                f"the judge {self.settings.model!r} is refused: it {', '.join(problems)}; choose another model"
            )
        fooled = self._tried_on(rubric)
        if fooled:
            raise VerifierError(
                f"the judge {self.settings.model!r} is refused for this task: for {', '.join(fooled)} it gives a "
                f"reward; write items that an empty answer cannot meet, or choose another model"
            )

    def _tried_on(self, rubric: Rubric) -> tuple[str, ...]:
        key = rubric.model_dump_json()
        if key not in self._tried:
            fooled = fooled_by(self.worth, rubric, self.settings.concurrency)
            with self._lock:
                self._tried[key] = fooled
        return self._tried[key]

    def worth(self, rubric: Rubric, answer: str) -> float:
        """Return what the model gives an answer; nothing, if it does not reply as asked."""
        try:
            return rubric.worth(self.items(rubric, Submission(answer=answer)))
        except UnreadableError:
            return 0.0

    def items(self, rubric: Rubric, submission: Submission) -> dict[str, bool]:
        """Return which items hold.

        Raises:
            UnreadableError: the model does not reply as asked, though it does to a harmless submission.
            EndpointError: the endpoint does not answer, or to nobody as asked.
        """
        try:
            return self._ask(rubric, submission)
        except UnreadableError as error:
            # Host evidence decides whose fault it is: else a losing agent could void its verdict by confusing a model.
            harmless = Submission(answer=f"5 ({secrets.token_hex(8)})")
            try:
                self._ask(_CONTROL, harmless)
            except UnreadableError:
                raise EndpointError(f"the judge replies to nobody as asked: {error}") from error
            raise

    def _ask(self, rubric: Rubric, submission: Submission) -> dict[str, bool]:
        messages = messages_for(rubric, submission)
        problem = "its reply is not the JSON object that was asked for"
        for seed in range(_ATTEMPTS):
            key = self.client.key(messages, seed)
            kept = self.client.replies.get(key)
            try:
                text = kept if kept is not None else self.client.complete(messages, seed)
            except RefusedError as error:
                raise UnreadableError(f"the request is refused with {error}") from error
            items = read_reply(rubric, text)
            if items is not None:
                self.client.replies.put(key, text)
                return items
        raise UnreadableError(problem)


_judges: dict[str, _Judge] = {}
_judges_lock = threading.Lock()


def _judge(settings: JudgeSettings) -> _Judge:
    key = settings.model_dump_json()
    with _judges_lock:
        if key not in _judges:
            _judges[key] = _Judge(settings)
        return _judges[key]


def _verdict(level: str, value: float, feedback: str, components: Mapping[str, float | None] | None = None) -> Verdict:
    return Verdict(value=value, level=level, trust=Trust.OPINION, components=dict(components or {}), feedback=feedback)
