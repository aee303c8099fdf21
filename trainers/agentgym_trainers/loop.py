"""The native trainer: a supervised warm start, then multi-turn policy gradients, in a loop that one can read."""

from __future__ import annotations

import asyncio
import gc
import math
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack, closing
from functools import partial
from typing import Any

import torch

from agentgym.difficulty import difficulties_of
from agentgym.errors import RecipeError, TaskError
from agentgym.learnable import Learnable
from agentgym.recipe import Prepared
from agentgym.run import STOPPED, RunDirectory
from agentgym.sampling import ShuffledSampler, derive_seed
from agentgym.types import pass_rate
from agentgym_trainers.asynchronous import Asynchronous
from agentgym_trainers.build import Parts, build
from agentgym_trainers.checkpoint import Checkpoint, CheckpointError, Checkpoints, restore_generators
from agentgym_trainers.collect import Collector, LockStep, Room
from agentgym_trainers.flops import peak_flops
from agentgym_trainers.heap import share_heap
from agentgym_trainers.metrics import evaluated, why_not_best
from agentgym_trainers.native import Progress
from agentgym_trainers.optimizer import CollapseError
from agentgym_trainers.reporting import Metrics, Stopwatch, resources, rollout_metrics, unaided_rewards
from agentgym_trainers.settings import TrainerSettings
from agentgym_trainers.trackers import Trackers
from agentgym_trainers.update import Update
from agentgym_trainers.watch import Watch
from agentgym_trainers.world import World


def train(prepared: Prepared, run: RunDirectory, *, resume: bool, progress: Progress | None = None) -> None:
    """Train to the recipe's last step, from the run's latest checkpoint if `resume`.

    Raises:
        CheckpointError: the run has checkpoints of another recipe, or has some and is not to be resumed.
        CollapseError: the loss is no longer a number, or a rule of `trainer.watch.stop` was broken.
    """
    Trainer(prepared, run, progress).train(resume=resume)


class Trainer:
    """One run. Steps count through both phases, the warm start's first, and name logs, trajectories and checkpoints."""

    parts: Parts
    collector: Collector
    world: World

    def __init__(self, prepared: Prepared, run: RunDirectory, progress: Progress | None = None) -> None:
        """Take a prepared recipe, where to write, and whom to tell.

        Raises:
            RecipeError: advantage, loss and critic do not go together, or no evaluation reports the metric by which the
                best checkpoint is kept.
        """
        self.prepared = prepared
        self.recipe = prepared.recipe
        self.settings: TrainerSettings = self.recipe.trainer_settings()
        self.run = run
        self.step = 0
        self.checkpoints = Checkpoints(run.checkpoints, self.settings.checkpoint.keep)
        self._progress = progress or (lambda *_: None)
        self._plain_recipe = self.recipe.model_dump(mode="json")
        self._tasks = {task.id: task for task in prepared.train}
        self._sampler = ShuffledSampler(list(self._tasks), derive_seed(self.recipe.seed, "sampler"))
        self._update = Update(self.settings, prepared.scheme)
        self._watch = Watch(self.settings.watch)
        self._difficulties = difficulties_of(prepared.train)
        self._told_later: Metrics = {}
        parts = {"scheme": prepared.scheme, "guidance": prepared.guidance}
        self._learnables = {name: part for name, part in parts.items() if isinstance(part, Learnable)}
        reported = evaluated(self.recipe.evaluation.attempts, difficulties_of(prepared.held_out).values())
        if (reason := why_not_best(self.settings.checkpoint.best, reported)) is not None:
            raise RecipeError(reason)

    def train(self, *, resume: bool) -> None:
        """Run all phases."""
        share_heap()
        if self.settings.compute.threads:
            torch.set_num_threads(self.settings.compute.threads)
        self.world = World.join(self.settings.compute.device)
        with ExitStack() as stack:
            stack.callback(self.world.leave)
            if not self.world.main:  # the first process writes for all
                scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="agentgym-"))
                self.run = RunDirectory.create(scratch, self.recipe, name="run")
            self._run(self.world.agree(self.checkpoints.latest()), resume=resume)

    def _run(self, checkpoint: Checkpoint | None, *, resume: bool) -> None:
        self.world.refuse_overlap(self.settings.schedule.max_staleness)
        if checkpoint and not resume:
            raise CheckpointError(f"{self.run.path} has checkpoints already; resume it, or train into a new folder")
        state = checkpoint.load(self._plain_recipe) if checkpoint else None  # first: a refusal must forget nothing
        first_step = checkpoint.step + 1 if checkpoint else 0
        self.run.rewind(first_step)
        (self.run.path / STOPPED).unlink(missing_ok=True)
        self.tracker = Trackers.open(self.run, self.recipe.trackers if self.world.main else (), first_step)
        with closing(self.tracker), asyncio.Runner() as runner:
            training = self._train(checkpoint, state)
            del state  # as large as the model and its moments
            runner.run(training)

    async def _train(self, checkpoint: Checkpoint | None, state: Mapping[str, Any] | None) -> None:
        async with AsyncExitStack() as opened:
            self.parts = await build(self.prepared, self.settings, checkpoint, state, self._progress, self.world)
            opened.callback(vars(self).pop, "parts")
            opened.push_async_callback(self.parts.engine.close)
            kind = Asynchronous if self.settings.schedule.max_staleness else LockStep
            self.collector = kind(self.parts, self._sampler, self._tasks)
            self._room = Room(self.parts.chat, self.parts.context_length, min(3, self.settings.policy.steps))
            opened.callback(vars(self).pop, "collector")
            opened.push_async_callback(self.collector.close)
            if checkpoint is not None and state is not None:
                self._restore(checkpoint, state)
                await self.parts.engine.update_weights(version=state["weight_version"])
            del state
            gc.collect()
            gc.freeze()  # a full collection walks all of torch: a tenth of a second, several times per rollout
            opened.callback(gc.unfreeze)
            await self._run_phases(warm=checkpoint is None or self.step < self.settings.sft.steps)

    async def _run_phases(self, *, warm: bool) -> None:
        try:
            if warm:
                await self._warm_start()
            await self._improve()
        except CollapseError as error:
            raise self._stopped(error) from error

    async def _warm_start(self) -> None:
        """Imitate the demonstrations' assistant tokens."""
        sft, shown = self.settings.sft, self.parts.demonstrations
        while self.step < sft.steps:
            clock = Stopwatch()
            order = torch.Generator().manual_seed(derive_seed(self.recipe.seed, "sft", self.step))
            picked = torch.randint(len(shown), (sft.batch_size,), generator=order).tolist()
            learnt = self.parts.learner.sft_step([shown[index] for index in picked])
            clock.lap("learn")
            self.step += 1
            metrics = {f"sft/{name}": value for name, value in learnt.items()}
            self._log("sft", self.step, sft.steps, metrics | self._costs(clock, metrics))
            due = self.step % self.settings.checkpoint.sft_every == 0 and self.step < sft.steps
            if due and not self._watch.suspicious:
                await self._save()
            await asyncio.sleep(0)  # an interrupt is heard only where something is awaited
        suspicious = self._watch.suspicious
        self._watch.end_warm_start()
        self._update.begin(self.parts.learner)
        await self.parts.engine.update_weights(version=self.parts.engine.weight_version)
        await self._save(await self._evaluate(0), suspicious=suspicious)

    async def _improve(self) -> None:
        """Sample, price, learn; evaluate and save now and then."""
        policy, every = self.settings.policy, self.recipe.evaluation.every
        while (done := self.step - self.settings.sft.steps) < policy.steps:
            metrics = await self._policy_step()
            done += 1
            self._log("policy", done, policy.steps, metrics)
            due, score = done == policy.steps or done % self.settings.checkpoint.every == 0, None
            if done == policy.steps or (every and done % every == 0):
                score = await self._evaluate(done)
            if done == policy.steps or ((due or self._is_best(score)) and not self._watch.suspicious):
                await self._save(score)

    async def _policy_step(self) -> Metrics:
        clock = Stopwatch()
        self.prepared.clock.progress = (self.step - self.settings.sft.steps) / self.settings.policy.steps
        groups, metrics = await self.collector.next(self.step)
        self._room.check(groups)
        rewards = [self.prepared.scheme(group) for group in groups]
        clock.lap("rollout")
        seed = derive_seed(self.recipe.seed, "minibatches", self.step)
        done = self.step - self.settings.sft.steps
        learn = partial(self._update, self.parts.learner, groups, rewards, seed=seed, done=done)
        metrics |= await asyncio.to_thread(learn) if self.collector.overlaps else learn()
        clock.lap("learn")
        await self.collector.updated(last=done + 1 == self.settings.policy.steps)
        clock.lap("sync")
        unaided = unaided_rewards(groups, rewards, self.prepared.scheme)
        metrics |= rollout_metrics(groups, rewards, self._difficulties, unaided)
        for learnable in self._learnables.values():
            metrics |= learnable.update(groups)
        self._sampler.update({group.task_id: pass_rate(group.trajectories) for group in groups})
        self.step += 1
        self.run.write_trajectories(self.step, groups, rewards)
        metrics = self.world.agree(metrics | self._costs(clock, metrics))
        return metrics | self._watch.trends(metrics)

    def _costs(self, clock: Stopwatch, metrics: Metrics) -> Metrics:
        """Return what a step took, and what the checkpoint before it did."""
        compute, told = self.settings.compute, self._told_later
        self._told_later = {}
        spent = clock.metrics(metrics, self.parts.learner.take_flops(), peak_flops(compute, self.world.size))
        return spent | resources(compute.device) | told

    async def _evaluate(self, done: int) -> float | None:
        """Attempt the held-out tasks, keep the trajectories, and return the score that checkpoints are compared by."""
        began = time.monotonic()
        groups, metrics = await self.parts.evaluate()
        metrics["seconds/evaluate"] = time.monotonic() - began
        self.run.write_trajectories(self.step, groups, name="evaluation")
        self._log("eval", done, self.settings.policy.steps, metrics)
        best = self.settings.checkpoint.best
        score = math.nan if best is None else metrics[best]
        return None if math.isnan(score) else score

    def _is_best(self, score: float | None) -> bool:
        best = self.checkpoints.best(self._plain_recipe)
        return self.world.agree(score is not None and (best is None or best.score is None or score > best.score))

    def _log(self, phase: str, done: int, steps: int, metrics: Metrics) -> None:
        metrics = self.world.agree(metrics)  # times differ, and what they decide must not
        self.tracker.log(self.step, metrics)
        self._progress(phase, done, steps, dict(metrics))
        reason = self._watch.reason_to_stop(metrics)
        if reason is not None:
            raise CollapseError(reason)

    def _stopped(self, error: CollapseError) -> CollapseError:
        """Leave the reason in the run's folder, and say which checkpoint is from before."""
        good = self.checkpoints.good()
        kept = "there is no good checkpoint" if good is None else f"the last checkpoint from before is {good.path}"
        reason = f"stopped after step {self.step}: {error}; {kept}"
        self.run.write_json(STOPPED, {"step": self.step, "reason": reason})
        return CollapseError(reason)

    async def _save(self, score: float | None = None, *, suspicious: bool = False) -> None:
        began = time.monotonic()
        state = {
            "step": self.step,
            "watch": self._watch.state_dict(),
            "learner": self.parts.learner.state(),
            "sampler": self._sampler.state_dict(),
            "collector": self.collector.state_dict(),
            "learnables": {name: one.state_dict() for name, one in self._learnables.items()},
            "weight_version": self.parts.engine.weight_version,
        }
        model, tokenizer = self.parts.model, self.parts.chat.tokenizer
        if self.world.main:
            doubt = suspicious or self._watch.suspicious
            write = partial(self.checkpoints.write, self.step, model, tokenizer, state, self._plain_recipe)
            write = partial(write, score=score, suspicious=doubt)
            # Episodes under way would lose the time, and run out of it in the middle of a step.
            await asyncio.to_thread(write) if self.collector.overlaps else write()
        self._told_later = {"seconds/save": time.monotonic() - began}

    def _restore(self, checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
        try:
            self._go_on_from(state)
        except (RecipeError, TaskError):  # of the critic's own model, or of other tasks: no checkpoint is to blame
            raise
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"the state of {checkpoint.path} does not fit this recipe's model: "
                f"{' '.join(str(error).split())[:200]}; remove this checkpoint and resume from the one before"
            ) from error

    def _go_on_from(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        if self.step >= self.settings.sft.steps:
            self._update.begin(self.parts.learner)
        self.parts.learner.load_state(state["learner"])
        self._watch.load_state_dict(state["watch"])
        self._sampler.load_state_dict(state["sampler"])
        self.collector.load_state_dict(state["collector"])
        for name, one in self._learnables.items():
            one.load_state_dict(state["learnables"][name])
        restore_generators(state)
