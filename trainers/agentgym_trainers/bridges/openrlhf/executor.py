"""Rolls out a recipe where OpenRLHF asks for samples: whole groups, with guidance, rewards and budgets of ours."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentgym.errors import AgentgymError, HeldOutError, InfrastructureError, RecipeError, VerifierError
from agentgym.evaluate import attempt_all
from agentgym.policy import Sampling
from agentgym.recipe import Recipe
from agentgym.rollout import Rollouts
from agentgym.sampling import derive_seed
from agentgym.task import Task
from agentgym.types import Group, Trajectory
from agentgym_trainers.bridges.openrlhf.engine import RolloutEngine
from agentgym_trainers.bridges.openrlhf.expressible import chat_format, refuse, refuse_off_policy
from agentgym_trainers.bridges.openrlhf.rows import AgentSettings, Row, digest
from agentgym_trainers.bridges.openrlhf.samples import Price, evaluation_sample, lost, passes, prices, training_sample
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.policy import TokenPolicy
from agentgym_trainers.settings import TrainerSettings

logger = logging.getLogger(__name__)
Sample = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """What OpenRLHF passes with each sample of a group, the same for all of them."""

    prompt: str
    label: str
    params: Any
    max_length: int
    tokenizer: Any
    worker: Any
    images: Any


@dataclass(slots=True)
class _Gathering:
    """The calls for one group. They come together, in one turn of the event loop."""

    samples: asyncio.Task[list[Sample]] = field(init=False)
    calls: int = 0


class RecipeExecutor:
    """One per rollout process; it serves all samples there, at the same time.

    OpenRLHF asks for the samples of a group one by one. The calls with one label are one group, which is rolled out
    once, whole; each call is given its own attempt.
    """

    def __init__(self, settings: AgentSettings) -> None:
        """Build what the recipe names, and refuse what OpenRLHF cannot express, before anything is sampled.

        Raises:
            AgentgymError: each one sentence.
        """
        recipe = Recipe.parse(settings.recipe)
        self._settings = settings
        self._trainer: TrainerSettings = recipe.trainer_settings()
        self._prepared = recipe.prepare()
        refuse(self._prepared, self._trainer)
        self._recipe = recipe
        self._digest = digest(recipe)
        self._tasks = {
            "train": {task.id: task for task in self._prepared.train},
            "evaluate": {task.id: task for task in self._prepared.held_out},
        }
        self._gate = asyncio.Semaphore(recipe.limits.concurrency)
        self._chat: ChatFormat | None = None
        self._gatherings: dict[str, _Gathering] = {}
        self._seen: Counter[str] = Counter()
        self._lost_in_a_row = 0

    async def execute(
        self,
        prompt: str,
        label: str,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> Sample:
        """Return one sample of the group that the label names; OpenRLHF passes everything by these names.

        Raises:
            RecipeError: the row or the numbers do not belong to this recipe.
            HeldOutError: a held-out row came in a training dataset.
            InfrastructureError: so many groups in a row have no scored attempt that a step would train on nothing.
        """
        row = Row.read(label)
        gathering = self._gatherings.get(label)
        if gathering is None:
            gathering = self._gatherings[label] = _Gathering()
            call = Call(prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images)
            gathering.samples = asyncio.create_task(self._gathered(gathering, row, call))
        index, size = gathering.calls, self._size(row)
        gathering.calls += 1
        if gathering.calls == size:
            del self._gatherings[label]  # the next call with this label begins another group
        # One cancelled call must not cancel its siblings' group.
        samples = await asyncio.shield(gathering.samples)
        return {"prompt": prompt, "label": label, "images": images, **samples[index]}

    def _size(self, row: Row) -> int:
        return self._trainer.policy.attempts if row.purpose == "train" else self._recipe.evaluation.attempts

    async def _gathered(self, gathering: _Gathering, row: Row, call: Call) -> list[Sample]:
        await asyncio.sleep(0)  # the calls of a group are made before any of them goes on
        if gathering.calls != self._size(row):
            del self._gatherings[call.label]
            wanted = "trainer.policy.attempts" if row.purpose == "train" else "evaluation.attempts"
            flag = "--rollout" if row.purpose == "train" else "--eval"
            raise RecipeError(
                f"the recipe's {wanted} is {self._size(row)}, found {gathering.calls} samples asked for together; "
                f"say {flag}.n_samples_per_prompt {self._size(row)}"
            )
        task, policy = self._task(row), self._policy(row, call)
        return await (self._train(row, task, policy) if row.purpose == "train" else self._evaluate(task, policy))

    def _task(self, row: Row) -> Task:
        if row.recipe != self._digest:
            raise RecipeError(
                f"the dataset row was written for the recipe {row.recipe}, found the recipe {self._digest} in the "
                "agent file; launch with the files of one run"
            )
        if row.purpose == "train" and row.split != "train":
            raise HeldOutError(
                f"task {row.task!r} belongs to the {row.split!r} split and cannot be trained on; "
                "train on tasks whose split is 'train'"
            )
        found = self._tasks[row.purpose].get(row.task)
        if found is None:
            raise RecipeError(f"the recipe has no task {row.task!r} to {row.purpose} on; write the dataset anew")
        return found

    def _policy(self, row: Row, call: Call) -> TokenPolicy:
        if self._chat is None:
            self._chat = chat_format(call.tokenizer, self._trainer.chat)
        context = min(self._trainer.model.context_length, call.max_length)
        if row.purpose == "train":
            sampling = Sampling(temperature=self._trainer.policy.temperature)
        else:
            sampling = self._recipe.evaluation.sampling
        for name, wanted in (("temperature", sampling.temperature), ("top_p", sampling.top_p)):
            if not math.isclose(found := getattr(call.params, name), wanted, abs_tol=1e-6):
                raise RecipeError(
                    f"the recipe samples with {name} {wanted:g} to {row.purpose}, found {found:g} among OpenRLHF's "
                    "parameters; give both the same"
                )
        limit = min(sampling.max_tokens or context, call.params.max_tokens or context)
        engine = RolloutEngine(call.worker, call.params, seeded=self._settings.seeded)
        return TokenPolicy(engine, self._chat, sampling.model_copy(update={"max_tokens": limit}), context)

    async def _train(self, row: Row, task: Task, policy: TokenPolicy) -> list[Sample]:
        prepared, size = self._prepared, self._size(row)
        rollouts = Rollouts(prepared.make_training_env, policy, self._recipe.limits, gate=self._gate)
        running = rollouts.run_guided([task], prepared.guidance, size=size, seed=self._seed(row), numbers=[row.number])
        group, priced = await _or_lost(running, lambda one: prices(one, prepared.scheme(one)), lost(size))
        self._count_lost(group, any(one.keep for one in priced))
        for attempt in group:
            refuse_off_policy(attempt.off_policy if attempt else "none", self._trainer)
        filler, logprobs = _filler(policy), _records(policy)
        return [
            training_sample(one, price, filler, logprobs=logprobs) for one, price in zip(group, priced, strict=True)
        ]

    async def _evaluate(self, task: Task, policy: TokenPolicy) -> list[Sample]:
        recipe, attempts = self._recipe, self._recipe.evaluation.attempts
        running = attempt_all(
            self._prepared.make_env, [task], policy,
            attempts=attempts, limits=recipe.limits, seed=recipe.seed, gate=self._gate,
        )  # fmt: skip
        group, priced = await _or_lost(running, passes, lost(attempts, math.nan))
        filler, logprobs = _filler(policy), _records(policy)
        return [
            evaluation_sample(one, price, filler, logprobs=logprobs) for one, price in zip(group, priced, strict=True)
        ]

    def _seed(self, row: Row) -> int:
        """Return the row's seed; where the dataset is gone through again, another one each time."""
        again = self._seen[row.label]
        self._seen[row.label] += 1
        return derive_seed(row.seed, "again", again) if again else row.seed

    def _count_lost(self, group: Sequence[Trajectory | None], kept: bool) -> None:
        """End the run where it would train on nothing. Other processes may be better off, so each looks at its own."""
        self._lost_in_a_row = 0 if kept else self._lost_in_a_row + 1
        policy = self._trainer.policy
        enough = max(1, policy.tasks_per_step // policy.minibatches)
        if self._lost_in_a_row >= enough:
            reasons = [one.error for one in group if one is not None and one.error]
            raise InfrastructureError(
                f"{self._lost_in_a_row} groups in a row have no attempt that counts, as many as an optimizer step "
                f"trains on; the last reason: {reasons[-1] if reasons else 'see the log'}"
            )


async def _or_lost(
    running: Awaitable[list[Group]], price: Callable[[Group], list[Price]], nothing: list[Price]
) -> tuple[Sequence[Trajectory | None], list[Price]]:
    """Return a group's attempts and their prices; where it failed as a whole, attempts that do not count.

    Raises:
        AgentgymError: the recipe is wrong, so that every group would fail the same way.
    """
    try:
        [group] = await running
        return group.trajectories, price(group)
    except (InfrastructureError, VerifierError) as error:
        logger.warning("group unscored reason=%s", error)
    except AgentgymError:
        raise
    except Exception:
        logger.exception("a group could not be rolled out")
    return [None] * len(nothing), nothing


def _filler(policy: TokenPolicy) -> list[int]:
    end, pad = policy.chat.end_id, policy.chat.tokenizer.pad_token_id
    return [end, end if pad is None else pad]


def _records(policy: TokenPolicy) -> bool:
    return isinstance(policy.engine, RolloutEngine) and policy.engine.records_logprobs
