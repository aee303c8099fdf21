"""The native trainer: a supervised warm start, then multi-turn GRPO, in a loop that one can read."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import count
from typing import Any

import torch

from agentgym import registry
from agentgym.evaluate import attempt_all, summarise
from agentgym.learnable import Learnable
from agentgym.policy import Sampling
from agentgym.recipe import Prepared
from agentgym.rewards import Rewards
from agentgym.rollout import Rollouts
from agentgym.run import RunDirectory
from agentgym.sampling import ShuffledSampler, derive_seed
from agentgym.tokens import TokenBuffer
from agentgym.types import Group, Trajectory, pass_rate
from agentgym_trainers.advantages import Credit, gather_rewards
from agentgym_trainers.batch import TokenBatch, split_rows
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.checkpoint import Checkpoint, CheckpointError, Checkpoints
from agentgym_trainers.corrections import refuse_cancellation
from agentgym_trainers.demonstrations import demonstrate, texts_of, tokenise, train_context
from agentgym_trainers.learner import Learner
from agentgym_trainers.losses import off_policy_codes
from agentgym_trainers.models import load_model, new_model
from agentgym_trainers.native import Progress
from agentgym_trainers.policy import TokenPolicy
from agentgym_trainers.reporting import Metrics, rollout_metrics
from agentgym_trainers.settings import TrainerSettings
from agentgym_trainers.trackers import Trackers


def train(prepared: Prepared, run: RunDirectory, *, resume: bool, progress: Progress | None = None) -> None:
    """Train to the recipe's last step, from the run's latest checkpoint if `resume`.

    Raises:
        CheckpointError: the run has checkpoints of another recipe, or has some and is not to be resumed.
        CollapseError: the loss is no longer a number.
    """
    Trainer(prepared, run, progress).train(resume=resume)


class Trainer:
    """One run. Steps count through both phases, the warm start's first, and name logs, trajectories and checkpoints."""

    def __init__(self, prepared: Prepared, run: RunDirectory, progress: Progress | None = None) -> None:
        """Take a prepared recipe, where to write, and whom to tell."""
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
        self._demonstrations: list[TokenBuffer] = []
        policy = self.settings.policy
        self._estimate = partial(registry.lookup("advantages", policy.advantage), **policy.advantage_options)
        refuse_cancellation(prepared.scheme, policy.advantage, self._estimate)
        parts = {"scheme": prepared.scheme, "guidance": prepared.guidance}
        self._learnables = {name: part for name, part in parts.items() if isinstance(part, Learnable)}

    def train(self, *, resume: bool) -> None:
        """Run all phases."""
        if self.settings.compute.threads:
            torch.set_num_threads(self.settings.compute.threads)
        checkpoint = self.checkpoints.latest()
        if checkpoint and not resume:
            raise CheckpointError(f"{self.run.path} has checkpoints already; resume it, or train into a new folder")
        first_step = checkpoint.step + 1 if checkpoint else 0
        self.run.rewind(first_step)
        self.tracker = Trackers.open(self.run, self.recipe.trackers, first_step)
        with closing(self.tracker), asyncio.Runner() as runner:
            runner.run(self._train(checkpoint))

    async def _train(self, checkpoint: Checkpoint | None) -> None:
        await self._build(checkpoint)
        gc.collect()
        gc.freeze()  # a full collection walks all of torch: a tenth of a second, several times per rollout
        try:
            if checkpoint is None or self.step < self.settings.sft.steps:
                await self._warm_start()
            await self._improve()
        finally:
            gc.unfreeze()
            await self.engine.close()

    async def _warm_start(self) -> None:
        """Imitate the demonstrations' assistant tokens."""
        sft = self.settings.sft
        while self.step < sft.steps:
            order = torch.Generator().manual_seed(derive_seed(self.recipe.seed, "sft", self.step))
            picked = torch.randint(len(self._demonstrations), (sft.batch_size,), generator=order).tolist()
            metrics = self.learner.sft_step([self._demonstrations[index] for index in picked])
            self.step += 1
            self._log("sft", self.step, sft.steps, {f"sft/{name}": value for name, value in metrics.items()})
            if self.step % self.settings.checkpoint.sft_every == 0 and self.step < sft.steps:
                self._save()
        self._begin_policy()
        self._log("eval", 0, self.settings.policy.steps, await self.evaluate())
        self._save()

    async def _improve(self) -> None:
        """Sample, price, learn; evaluate and save now and then."""
        policy, every = self.settings.policy, self.recipe.evaluation.every
        while (done := self.step - self.settings.sft.steps) < policy.steps:
            began = time.monotonic()
            groups = await self._rollout()
            rewards = [self.prepared.scheme(group) for group in groups]
            sampled = time.monotonic()
            metrics = rollout_metrics(groups, rewards) | self._learn(groups, rewards)
            metrics |= {"seconds/rollout": sampled - began, "seconds/learn": time.monotonic() - sampled}
            for learnable in self._learnables.values():
                metrics |= learnable.update(groups)
            self._sampler.update({group.task_id: pass_rate(group.trajectories) for group in groups})
            self.step, done = self.step + 1, done + 1
            self._log("policy", done, policy.steps, metrics)
            self.run.write_trajectories(self.step, groups, rewards)
            if done == policy.steps or (every and done % every == 0):
                self._log("eval", done, policy.steps, await self.evaluate())
            if done == policy.steps or done % self.settings.checkpoint.every == 0:
                self._save()

    def _log(self, phase: str, done: int, steps: int, metrics: Metrics) -> None:
        self.tracker.log(self.step, metrics)
        self._progress(phase, done, steps, dict(metrics))

    async def _rollout(self) -> list[Group]:
        policy = self.settings.policy
        tasks = [self._tasks[name] for name in self._sampler.next(policy.tasks_per_step)]
        speaker = TokenPolicy(
            self.engine, self.chat, Sampling(temperature=policy.temperature, max_tokens=self._context), self._context
        )
        limits = self.recipe.limits.model_copy(update={"waves": True})
        rollouts = Rollouts(self.prepared.make_training_env, speaker, limits)
        seed = derive_seed(self.recipe.seed, "rollout", self.step)
        return await rollouts.run_guided(tasks, self.prepared.guidance, size=policy.attempts, seed=seed)

    def _learn(self, groups: Sequence[Group], rewards: Sequence[Rewards]) -> Metrics:
        """Turn rewards into advantages and take optimizer steps."""
        policy = self.settings.policy
        attempts = [one for group in groups for one in group.trajectories]
        contexts = [train_context(one) for one in attempts]
        whole = TokenBatch.of(contexts)
        credit = Credit(*gather_rewards(rewards), whole.turn_BL, whole.sampled_BL)
        batch, advantage_BL, attempt_B = split_rows(contexts, whole, self._estimate(credit))
        shuffle = torch.Generator().manual_seed(derive_seed(self.recipe.seed, "minibatches", self.step))
        metrics = self.learner.policy_step(
            batch, advantage_BL, off_policy_codes([one.off_policy for one in attempts])[attempt_B], policy,
            registry.lookup("losses", policy.loss), generator=shuffle,
        )  # fmt: skip
        self.engine.update_weights()
        return {f"train/{name}": value for name, value in metrics.items()}

    async def evaluate(self) -> Metrics:
        """Attempt the held-out tasks, keep the trajectories, return the report's figures."""
        section, tasks = self.recipe.evaluation, self.prepared.held_out
        engine = self._make_engine("eager")
        try:
            groups = await attempt_all(
                self.prepared.make_env,
                tasks,
                TokenPolicy(engine, self.chat, section.sampling, self._context),
                attempts=section.attempts,
                limits=self.recipe.limits,
                seed=self.recipe.seed,
                on_done=self._counter("held-out attempts", len(tasks) * section.attempts),
            )
        finally:
            await engine.close()
        self.run.write_trajectories(self.step, groups, name="evaluation")
        return summarise(tasks, groups, attempts=section.attempts).metrics()

    async def _build(self, checkpoint: Checkpoint | None) -> None:
        """Make or load the model, its chat format, engine and learner, and continue where a checkpoint ends."""
        model, compute = self.settings.model, self.settings.compute
        state = checkpoint.load(self._plain_recipe) if checkpoint else None
        warm = state is None or state["step"] < self.settings.sft.steps
        shown = await self._demonstrate() if warm and self.settings.sft.steps else []
        if checkpoint is not None:
            self.model, tokenizer = load_model(checkpoint.model_path, compute.device)
        elif model.path is not None:
            self.model, tokenizer = load_model(model.path, compute.device)
        else:
            corpus = texts_of(shown) or [task.public.prompt for task in self.prepared.train]
            self.model, tokenizer = new_model(model, corpus, derive_seed(self.recipe.seed, "model"), compute.device)
        chat = self.settings.chat
        self.chat = ChatFormat(tokenizer, thinking=chat.thinking, calls=chat.calls)
        self._context = min(model.context_length, self.model.config.max_position_embeddings)
        tools = [one.schema for one in self.prepared.make_env().tools.values()]
        tokenised = await tokenise(shown, self.chat, self._context, tools)
        self._demonstrations = [row for one in tokenised for row in train_context(one).rows()]
        self.engine = self._make_engine("lockstep")
        self.learner = Learner(self.model, compute)
        self.learner.begin(self.settings.sft.optim, self.settings.sft.steps)
        if state is not None:
            self._restore(state)

    def _make_engine(self, batching: str) -> Any:
        engine = self.settings.engine
        given = {"batching": batching, "max_batch": self.settings.compute.max_batch, **engine.options}
        return registry.create("engines", engine.name, model=self.model, **given)

    async def _demonstrate(self) -> list[Any]:
        sft = self.settings.sft
        tasks = self.prepared.train[: sft.demonstrations]
        return await demonstrate(
            self.prepared.make_env,
            tasks,
            self.recipe.limits,
            hinted_share=sft.hinted_share,
            seed=derive_seed(self.recipe.seed, "demonstrations"),
            on_done=self._counter("demonstrations", len(tasks)),
        )

    def _counter(self, phase: str, total: int) -> Callable[[Trajectory], None]:
        """Return what tells of each finished episode of a phase."""
        done = count(1)
        return lambda _: self._progress(phase, next(done), total, {})

    def _begin_policy(self) -> None:
        policy = self.settings.policy
        steps = policy.steps * policy.epochs * policy.minibatches
        self.learner.begin(policy.optim, steps, keep_reference=bool(policy.loss_options.get("kl_weight")))

    def _save(self) -> None:
        state = {
            "step": self.step,
            "learner": self.learner.state(),
            "sampler": self._sampler.state_dict(),
            "learnables": {name: one.state_dict() for name, one in self._learnables.items()},
            "weight_version": self.engine.weight_version,
        }
        self.checkpoints.write(self.step, self.model, self.chat.tokenizer, state, self._plain_recipe)

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        if self.step >= self.settings.sft.steps:
            self._begin_policy()
        self.learner.load_state(state["learner"])
        self._sampler.load_state_dict(state["sampler"])
        for name, one in self._learnables.items():
            one.load_state_dict(state["learnables"][name])
        self.engine.update_weights(state["weight_version"])
