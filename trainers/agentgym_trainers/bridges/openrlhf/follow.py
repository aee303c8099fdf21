"""Follows OpenRLHF from its files: metrics, rules that end a run, and checkpoints of ours made of what it saves."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from agentgym.recipe import Prepared
from agentgym.run import STOPPED, RunDirectory
from agentgym_trainers.bridges.openrlhf.argv import Files
from agentgym_trainers.bridges.openrlhf.events import Events, Metrics, Told
from agentgym_trainers.bridges.openrlhf.options import Settings
from agentgym_trainers.bridges.openrlhf.submit import TrainingFailedError
from agentgym_trainers.checkpoint import CheckpointError, Checkpoints
from agentgym_trainers.native import Progress
from agentgym_trainers.optimizer import CollapseError
from agentgym_trainers.trackers import Trackers
from agentgym_trainers.watch import Watch

_TAG = "global_step"
_FINITE = ("train/loss", "train/grad_norm")


class Follower:
    """One start of OpenRLHF. Its steps count from 1; ours go on from the warm start's."""

    def __init__(
        self, prepared: Prepared, run: RunDirectory, settings: Settings, files: Files, progress: Progress | None
    ) -> None:
        """Say what is trained, where it writes, and whom to tell."""
        self._prepared = prepared
        self._run = run
        self._settings = settings
        self._files = files
        self._progress = progress or (lambda *_: None)
        self._watch = Watch(settings.watch)
        self._checkpoints = Checkpoints(run.checkpoints, settings.checkpoint.keep)
        self._scores: dict[int, float] = {}
        self._doubted: set[int] = set()
        """Steps whose weights are from beyond a bound."""
        self._broken = False
        self._seen = 0

    def steps_saved(self) -> int:
        """Return the step of OpenRLHF's newest checkpoint that can be gone on from; 0 before the first."""
        latest = self._files.checkpoints / "_actor" / "latest"
        if not latest.is_file():
            return 0
        tag = latest.read_text(encoding="utf-8").strip()
        number = tag.rpartition(_TAG)[2]
        if not number.isdigit():
            raise CheckpointError(f"wanted a tag such as {_TAG}20 in {latest}, found {tag!r}; train into a new folder")
        return int(number)

    @contextmanager
    def begin(self, done: int) -> Iterator[None]:
        """Forget what is later than the steps done, and open the run's trackers.

        Raises:
            CollapseError: a rule was broken, or a loss is no number; with the checkpoint that is left from before.
        """
        first = self._settings.sft.steps + done + 1
        self._run.rewind(first)
        (self._run.path / STOPPED).unlink(missing_ok=True)
        shutil.rmtree(self._files.metrics, ignore_errors=True)
        shutil.rmtree(self._files.final, ignore_errors=True)
        self._events = Events(self._files.metrics / "run")
        self._trackers = Trackers.open(self._run, self._prepared.recipe.trackers, first)
        with closing(self._trackers):
            try:
                yield
            except CollapseError as error:
                step = self._seen
                self._catch_up()
                raise self._stopped(step, error) from error
            finally:  # also of a training that was interrupted, or failed
                self._catch_up()

    def look(self, *, ended: bool = False) -> None:
        """Log what is new, keep the checkpoints that are whole, and end a run that a rule ends.

        Raises:
            CollapseError: a rule was broken, or a loss is no number.
        """
        for told in self._events.read(all_written=ended):
            reason = self._hear(told)
            if reason is not None:
                raise CollapseError(reason)
        self._adopt(ended=ended)

    def finish(self) -> None:
        """Keep the model of the last step.

        Raises:
            TrainingFailedError: there are fewer steps than asked for.
        """
        steps = self._settings.policy.steps
        if self._seen < steps:
            raise TrainingFailedError(
                f"OpenRLHF ended well after step {self._seen} of {steps}; its log is {self._files.folder / 'log.txt'}"
            )
        self._keep(steps, self._files.final)

    def _catch_up(self) -> None:
        """Log and keep what OpenRLHF left as it ended."""
        for told in self._events.read(all_written=True):
            self._hear(told)
        self._adopt(ended=True)

    @property
    def _doubtful(self) -> bool:
        return self._broken or self._watch.suspicious

    def _hear(self, told: Told) -> str | None:
        """Log what is told, hold it against the rules, and return why the run ends, if it does."""
        training, doubted = "rollout/reward" in told.metrics, self._doubtful
        reason = self._reason(self._log(told, training=training))
        self._broken = self._broken or reason is not None
        # An evaluation may be told after later steps, whose doubts are not about its weights.
        if self._doubtful and (training or not doubted):
            self._doubted.update(range(told.step, self._seen + 1))
        return reason

    def _log(self, told: Told, *, training: bool) -> Metrics:
        metrics = dict(told.metrics)
        if training:
            self._seen = told.step
            if {"rollout/outcome", "rollout/step_reward"} <= metrics.keys():
                metrics |= self._watch.trends(metrics)
        elif (best := self._settings.checkpoint.best) is not None:
            self._scores[told.step] = metrics.get(best, math.nan)
        self._trackers.log(self._settings.sft.steps + told.step, metrics)
        self._progress("policy" if training else "eval", told.step, self._settings.policy.steps, metrics)
        return metrics

    def _reason(self, metrics: Metrics) -> str | None:
        bad = next((name for name in _FINITE if not math.isfinite(metrics.get(name, 0.0))), None)
        if bad is not None:
            return f"{bad} is {metrics[bad]}"
        return self._watch.reason_to_stop(metrics)

    def _stopped(self, step: int, why: CollapseError) -> CollapseError:
        """Leave the reason in the run's folder, and say which checkpoint is from before, as the native trainer does."""
        good = self._checkpoints.good()
        kept = "there is no good checkpoint" if good is None else f"the last checkpoint from before is {good.path}"
        step += self._settings.sft.steps
        reason = f"stopped after step {step}: {why}; {kept}"
        self._run.write_json(STOPPED, {"step": step, "reason": reason})
        return CollapseError(reason)

    def _adopt(self, *, ended: bool) -> None:
        """Make checkpoints of the folders that are whole: the tokenizer is written last."""
        wanted = {one.name for one in Path(self._files.model).glob("tokenizer*")} | {
            "config.json",
            "tokenizer_config.json",
        }
        # An evaluation is told after the steps that were sampled ahead of it.
        behind = max(1, self._settings.schedule.max_staleness)
        for folder in sorted(self._files.checkpoints.glob(f"*{_TAG}*_hf"), key=_step_of):
            whole = wanted <= {one.name for one in folder.iterdir()}
            if whole and (ended or _step_of(folder) + behind <= self._seen):
                self._keep(_step_of(folder), folder)

    def _keep(self, step: int, folder: Path) -> None:
        score = self._scores.get(step)
        score = None if score is None or math.isnan(score) else score
        recipe = self._prepared.recipe.model_dump(mode="json")
        # What was never told of is as what was told last.
        doubt = step in self._doubted or (step > self._seen and self._doubtful)
        self._checkpoints.adopt(self._settings.sft.steps + step, folder, recipe, score=score, suspicious=doubt)


def _step_of(folder: Path) -> int:
    return int(folder.name.rpartition(_TAG)[2].removesuffix("_hf"))
