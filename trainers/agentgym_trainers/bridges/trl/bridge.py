"""What TRL's GRPOTrainer is handed to train on one of our environments."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import count
from typing import Any, Self, TypeVar

from agentgym.errors import CapabilityError, MissingExtraError
from agentgym.guidance import NoGuidance, RolloutRequest
from agentgym.learnable import Learnable
from agentgym.policy import Sampling
from agentgym.recipe import Prepared, Recipe
from agentgym.rewards import RewardScheme
from agentgym.rollout import Rollouts
from agentgym.sampling import derive_seed
from agentgym.types import Group
from agentgym_trainers.bridges.trl.environment import TrlEnvironment, environment_class
from agentgym_trainers.bridges.trl.rows import prices, row_of
from agentgym_trainers.bridges.trl.tasks import Tasks

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
_OLDEST = (1, 16)
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "use_vllm": (False,),
    "use_transformers_continuous_batching": (False,),
    "generation_kwargs": (None, {}),
    "chat_template_kwargs": (None, {}),
    "top_k": (None, 0),
    "min_p": (None, 0.0),
    "repetition_penalty": (1.0,),
}


class TrlBridge:
    """Makes what TRL trains with of a recipe; its `trainer` section is not read, for TRL has settings of its own.

    Either `rollout_func=bridge.rollout` with `reward_funcs=bridge.reward`: our driver plays, and every token is exact.
    Or `environment_factory=bridge.environment`: TRL renders, samples and calls the tools, one turn of the whole batch
    after another. Both train on `bridge.dataset()`.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        calls: str | None = None,
        context_length: int | None = None,
        on_groups: Callable[[Sequence[Group]], None] | None = None,
    ) -> None:
        """Take a prepared recipe.

        Args:
            prepared: what to train on.
            calls: how the model writes tool calls in rollouts, see `ChatFormat`; None asks the template.
            context_length: tokens of an episode in rollouts, prompt and answers together; by default the model's limit.
            on_groups: told of each rollout's groups, once they are priced.

        Raises:
            MissingExtraError: TRL is not installed.
            CapabilityError: TRL is too old, or the recipe asks for what it cannot do.
        """
        _check_trl()
        if not isinstance(prepared.guidance, NoGuidance):
            raise CapabilityError("TRL has one context per attempt, so the bridge gives no hints; leave out `guidance`")
        if isinstance(prepared.scheme, Learnable) and getattr(prepared.scheme, "learn_after", 0) is not None:
            raise CapabilityError(
                f"{type(prepared.scheme).__name__} learns, and TRL would neither update it nor save it; choose another"
            )
        if set(prepared.recipe.trainer) - {"name"}:
            logger.warning("the recipe's trainer section is not read; GRPOConfig says how TRL trains")
        self.prepared = prepared
        self.on_groups = on_groups
        self._calls = calls
        self._context_length = context_length
        self._tasks = Tasks(prepared)
        self._chats: dict[int, Any] = {}
        self._numbers = count()

    @classmethod
    def of(cls, env_id: str, *, calls: str | None = None, **options: Any) -> Self:
        """Return the bridge of an environment by its name and options, with a recipe's defaults for the rest."""
        section = {"id": env_id, "options": options}
        return cls(Recipe.parse({"name": "trl", "environment": section}, env_id).prepare(), calls=calls)

    def dataset(self) -> Any:
        """Return a `datasets.Dataset` with a row per training task: `train_dataset`.

        Raises:
            MissingExtraError: datasets is not installed.
        """
        if find_spec("datasets") is None:
            raise MissingExtraError("datasets", "trl")
        from datasets import Dataset

        return Dataset.from_list(self._tasks.rows())

    @cached_property
    def environment(self) -> type[TrlEnvironment]:
        """A class with our tools as its methods: `environment_factory`.

        Raises:
            CapabilityError: TRL cannot play this environment in this way; `rollout` can.
        """
        return environment_class(self.prepared, self._tasks)

    def reward(self, reward: Sequence[float | None], **_: Any) -> list[float | None]:
        """Hand over what our scheme says of each rollout: `reward_funcs`. None leaves an unscored one out."""
        return list(reward)

    def rollout(self, prompts: Sequence[Any], trainer: Any) -> dict[str, list[Any]]:
        """Play one episode per prompt with the trainer's own model: `rollout_func`.

        Returns:
            For every prompt `prompt_ids`, `completion_ids` with their `logprobs` and `env_mask`, and the `reward`. An
            attempt without a reward has None, and is masked: it is in no statistics and in no loss.

        Raises:
            HeldOutError: a prompt's task is not for training.
            CapabilityError: GRPOConfig says what the engine cannot do.
        """
        _check_settings(trainer, self.prepared.scheme)
        size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
        number, state = next(self._numbers), trainer.state
        place = (state.global_step, number, trainer.accelerator.process_index)
        requests = [
            RolloutRequest(task, n, derive_seed(self.prepared.recipe.seed, "trl", *place, index))
            for index, (task, n) in enumerate(self._tasks.runs(prompts, size))
        ]
        self.prepared.clock.progress = state.global_step / max(1, state.max_steps)
        chat = self._chat(trainer.processing_class, trainer.model)
        with _model_of(trainer) as model:
            groups = _finish(self._play(requests, model, chat, trainer.args))
        made: dict[str, list[Any]] = {}
        for group in groups:
            for one, price in zip(group.trajectories, prices(self.prepared.scheme, group), strict=True):
                row = row_of(one.training_tokens(), end_id=chat.end_id, learn=price is not None)
                cells = {"prompt_ids": row.prompt_ids, "completion_ids": row.completion_ids, "logprobs": row.logprobs,
                         "env_mask": row.env_mask, "reward": price}  # fmt: skip
                for name, cell in cells.items():
                    made.setdefault(name, []).append(cell)
        if self.on_groups is not None:
            self.on_groups(groups)
        return made

    async def _play(self, requests: Sequence[RolloutRequest], model: Any, chat: Any, settings: Any) -> list[Group]:
        from agentgym_trainers.engines.hf import HFEngine
        from agentgym_trainers.policy import TokenPolicy

        limit = int(model.config.max_position_embeddings)
        context = min(self._context_length or limit, limit)
        sampling = Sampling(temperature=settings.temperature, top_p=settings.top_p)
        limits = self.prepared.recipe.limits
        most = min(limits.max_tokens, settings.max_completion_length)
        engine = HFEngine(model, batching="lockstep")
        try:
            rollouts = Rollouts(
                self.prepared.make_training_env,
                TokenPolicy(engine, chat, sampling, context),
                limits.model_copy(update={"waves": True, "max_tokens": most}),
            )
            return await rollouts.run(requests)
        finally:
            await engine.close()

    def _chat(self, processing: Any, model: Any) -> Any:
        from agentgym_trainers.chat import ChatFormat
        from agentgym_trainers.models import stop_ids_of

        if id(processing) not in self._chats:
            tokenizer = getattr(processing, "tokenizer", processing)
            # TRL takes one row per completion, so what was thought earlier stays.
            chat = ChatFormat(tokenizer, thinking="keep", calls=self._calls, stop_ids=stop_ids_of(model))
            self._chats = {id(processing): chat}
        return self._chats[id(processing)]


@contextmanager
def _model_of(trainer: Any) -> Iterator[Any]:
    """Give the model without what distributes it, ready to sample; afterwards it learns on as before."""
    from trl.models.utils import unwrap_model_for_generation

    arguments = trainer.args
    with unwrap_model_for_generation(
        trainer.model_wrapped,
        trainer.accelerator,
        gather_deepspeed3_params=arguments.ds3_gather_for_generation,
        gradient_checkpointing_kwargs=arguments.gradient_checkpointing_kwargs,
    ) as model:
        training = model.training
        model.eval()
        try:
            yield model
        finally:
            model.train(training)


def _finish(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end, in a notebook too, whose own loop runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1, thread_name_prefix="trl-rollout") as pool:
        return pool.submit(asyncio.run, work).result()


def _check_trl() -> None:
    try:
        found = version("trl")
    except PackageNotFoundError:
        raise MissingExtraError("TRL", "trl") from None
    if tuple(int(one) for one in found.split(".")[:2]) < _OLDEST:
        raise CapabilityError(
            f"wanted TRL {'.'.join(map(str, _OLDEST))} or newer, found {found}: older ones turn unscored attempts into "
            'zeros; pip install --upgrade "agentgym-rlvr[trl]"'
        )


def _check_settings(trainer: Any, scheme: RewardScheme) -> None:
    """Refuse what the engine would ignore, and an advantage that would undo the scheme's correction.

    Raises:
        CapabilityError: naming the setting, or the model is split over processes.
    """
    for name, neutral in _NEUTRAL.items():
        found = getattr(trainer.args, name, neutral[0])
        if found not in neutral:
            raise CapabilityError(
                "rollouts sample with the trainer's own model, by temperature and top_p; leave out GRPOConfig's "
                f"{name}, found {found!r}"
            )
    if trainer.is_fsdp_enabled:
        raise CapabilityError("rollouts need the whole model in each process, which FSDP splits; use DDP or DeepSpeed")
    cancelled = getattr(scheme, "cancelled_by", None)
    if cancelled == "shift" or (cancelled == "scale" and trainer.args.scale_rewards == "group"):
        change = "subtracts a group's mean" if cancelled == "shift" else "divides by a group's deviation"
        raise CapabilityError(
            f"{type(scheme).__name__} corrects rewards, and TRL's advantage, which {change}, would undo that; "
            + ("choose another scheme" if cancelled == "shift" else "say scale_rewards='none' in GRPOConfig")
        )
