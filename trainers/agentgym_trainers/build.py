"""Make or load what a run works with: the model, its chat format, an engine, a learner, and demonstrations."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from itertools import count
from typing import Any

from agentgym import registry
from agentgym.errors import RecipeError
from agentgym.evaluate import attempt_all, summarise
from agentgym.policy import Sampling, TrainableEngine
from agentgym.recipe import Prepared
from agentgym.sampling import derive_seed
from agentgym.tokens import TokenBuffer
from agentgym.types import Group, Trajectory
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.checkpoint import Checkpoint, model_folder
from agentgym_trainers.critic import refuse_other_vocabulary
from agentgym_trainers.demonstrations import demonstrate, texts_of, tokenise, train_context
from agentgym_trainers.engines.hf import HFEngine
from agentgym_trainers.learner import Learner
from agentgym_trainers.lora import add_lora
from agentgym_trainers.memory import refuse_too_large
from agentgym_trainers.models import (
    chat_of,
    load_config,
    load_model,
    longest_context,
    new_config,
    new_model,
    refuse_longer,
)
from agentgym_trainers.native import Progress
from agentgym_trainers.options import checked_options
from agentgym_trainers.policy import TokenPolicy
from agentgym_trainers.settings import TrainerSettings
from agentgym_trainers.world import World

Metrics = dict[str, float]
_SLACK_S = 30.0
"""An environment's step may take its whole time and be told of a little late, without breaking lock-step."""
_PATIENCE_S = 120.0
"""At least so much, for no limit tells how long a sandbox may take to start."""


@dataclass(slots=True)
class Parts:
    """What a run works with."""

    prepared: Prepared
    settings: TrainerSettings
    model: Any
    chat: ChatFormat
    context_length: int
    """Tokens, prompt and answers together: the recipe's limit or the model's, whichever is less."""
    engine: TrainableEngine
    learner: Learner
    demonstrations: list[TokenBuffer]
    progress: Progress
    world: World
    gate: asyncio.Semaphore = field(init=False)
    """How many episodes run at once, whatever for."""

    def __post_init__(self) -> None:
        """Let as many run as the recipe's limits say."""
        self.gate = asyncio.Semaphore(self.prepared.recipe.limits.concurrency)

    def speaker(self, engine: Any, sampling: Sampling) -> TokenPolicy:
        """Return a policy that samples with an engine."""
        return TokenPolicy(engine, self.chat, sampling, self.context_length)

    @property
    def behaviour(self) -> Sampling:
        """How training episodes are sampled."""
        return Sampling(temperature=self.settings.policy.temperature)

    async def evaluate(self) -> tuple[list[Group], Metrics]:
        """Attempt the held-out tasks; return the attempts and the report's figures."""
        recipe, tasks = self.prepared.recipe, self.prepared.held_out
        section = recipe.evaluation
        engine = self._evaluation_engine()
        try:
            groups = await attempt_all(
                self.prepared.make_env,
                self.world.share(tasks),
                self.speaker(engine, section.sampling),
                attempts=section.attempts,
                limits=recipe.limits,
                seed=recipe.seed,
                on_done=counter(self.progress, "held-out attempts", len(self.world.share(tasks)) * section.attempts),
                gate=self.gate,
            )
        finally:
            if engine is not self.engine:
                await engine.close()
        groups = self.world.gather(groups)
        return groups, summarise(tasks, groups, attempts=section.attempts).metrics()

    def _evaluation_engine(self) -> TrainableEngine:
        """Return an engine that serves whoever comes first: the run's own, or one beside it that is soon closed."""
        waits = isinstance(self.engine, HFEngine) and self.engine.lockstep
        if self.engine.owns_weights and not waits:
            return self.engine
        # Weights that are cast anew for every token cost more than a copy in the smaller type.
        dtype = self.settings.engine.options.get("dtype") or self.settings.compute.dtype
        own = dtype != "float32"
        return make_engine(self.settings, self.model, "eager", own_weights=own, context_length=self.context_length)


def make_engine(
    settings: TrainerSettings,
    model: Any,
    batching: str,
    *,
    own_weights: bool = False,
    turn_s: float | None = None,
    context_length: int | None = None,
) -> TrainableEngine:
    """Build the recipe's engine over a model, with weights of its own where that is wanted and a choice.

    One that waits for silent episodes has the patience for a step of `turn_s`, and for a sandbox to start; one that
    takes a context has `context_length`. What the recipe says of either comes first.
    """
    engine = settings.engine
    target = registry.lookup("engines", engine.name)
    accepted = signature(target).parameters
    given: dict[str, Any] = {"batching": batching, "max_batch": settings.compute.max_batch}
    if settings.compute.dtype != "float32" and "dtype" in accepted:
        given["dtype"] = settings.compute.dtype
    if turn_s is not None and "patience_s" in accepted:
        given["patience_s"] = max(_PATIENCE_S, turn_s + _SLACK_S)
    if context_length is not None and "context_length" in accepted:
        given["context_length"] = context_length
    given |= checked_options("trainer.engine.options", engine.name, target, engine.options)
    if own_weights and "weights" in accepted:
        given.setdefault("weights", "copied")  # who asks for shared ones is told what does not go with them
    made: TrainableEngine = registry.create("engines", engine.name, model=model, **given)
    return made


def counter(progress: Progress, phase: str, total: int) -> Any:
    """Return what tells of each finished episode of a phase."""
    done = count(1)

    def tell(_: Trajectory) -> None:
        progress(phase, next(done), total, {})

    return tell


async def build(
    prepared: Prepared,
    settings: TrainerSettings,
    checkpoint: Checkpoint | None,
    state: Mapping[str, Any] | None,
    progress: Progress,
    world: World | None = None,
) -> Parts:
    """Build everything, from a checkpoint's model if there is one."""
    world = world or World()
    model_settings, compute, seed = settings.model, settings.compute, prepared.recipe.seed
    warm = state is None or state["step"] < settings.sft.steps
    _check_sizes(settings, checkpoint, world)
    shown = await _demonstrate(prepared, settings, progress, world) if warm and settings.sft.steps else []
    if checkpoint is not None:
        model, tokenizer = load_model(checkpoint.model_path, compute.device)
    elif model_settings.path is not None:
        model, tokenizer = load_model(model_folder(model_settings.path), compute.device)
    else:
        corpus = texts_of(shown) or [task.public.prompt for task in prepared.train]
        model, tokenizer = new_model(model_settings, corpus, derive_seed(seed, "model"), compute.device)
    if settings.lora is not None:
        add_lora(model, settings.lora, derive_seed(seed, "lora"))
    chat = chat_of(model, tokenizer, settings.chat)
    if settings.critic is not None and settings.critic.path is not None:
        refuse_other_vocabulary(settings.critic.path, tokenizer)
    asked = model_settings.context_length
    context = min(asked, longest_context(model.config, asked))
    env, by_id = prepared.make_env(), {task.id: task for task in prepared.train}
    tokenised = await tokenise(
        shown, chat, context, lambda name: [one.schema for one in env.tools_for(by_id[name]).values()]
    )
    rows = _imitable(tokenised)
    learner = Learner(model, compute, world)
    learner.begin(settings.sft.optim, settings.sft.steps)
    overlap = bool(settings.schedule.max_staleness)
    # Last, because whoever fails after it would have to close it.
    engine = make_engine(
        settings,
        model,
        "eager" if overlap else "lockstep",
        own_weights=overlap,
        turn_s=prepared.recipe.limits.turn_timeout_s,
        context_length=context,
    )
    return Parts(prepared, settings, model, chat, context, engine, learner, rows, progress, world)


def _imitable(demonstrations: Sequence[Trajectory]) -> list[TokenBuffer]:
    """Return rows in which something was said; a demonstration whose sandbox did not start has none."""
    rows = [row for one in demonstrations for row in train_context(one).rows() if row.sampled_count]
    if demonstrations and not rows:
        reason = next((one.error for one in demonstrations if one.error), "their scripts are empty")
        raise RecipeError(
            f"wanted demonstrations for the warm start, found {len(demonstrations)} in which nothing is said: "
            f"{reason}; mend what stopped them, or set trainer.sft.steps to 0"
        )
    return rows


def _check_sizes(settings: TrainerSettings, checkpoint: Checkpoint | None, world: World) -> None:
    """Refuse before anything is loaded or played."""
    path = checkpoint.model_path if checkpoint else settings.model.path
    config = new_config(settings.model, settings.model.vocab_size) if path is None else load_config(model_folder(path))
    refuse_longer(settings.model, longest_context(config, settings.model.context_length))
    refuse_too_large(settings, config, ranks=world.size)


async def _demonstrate(
    prepared: Prepared, settings: TrainerSettings, progress: Progress, world: World
) -> Sequence[Trajectory]:
    """Play each demonstration in one process only: what tools print may differ, and all must learn from the same."""
    sft = settings.sft
    tasks = prepared.train[: sft.demonstrations]
    own = world.share(tasks)
    played = await demonstrate(
        prepared.make_env,
        own,
        prepared.recipe.limits,
        hinted_share=sft.hinted_share,
        seed=derive_seed(prepared.recipe.seed, "demonstrations"),
        on_done=counter(progress, "demonstrations", len(own)),
    )
    place = {task.id: number for number, task in enumerate(tasks)}
    return sorted(world.gather(played), key=lambda one: (one.hint is not None, place[one.task_id]))
