"""OpenRLHF's own rollout worker, samples generator and experience code, driven by our executor."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import torch
from openrlhf_players import (
    Player,
    PlayerEngine,
    PlayerWorker,
    evaluation_row,
    exercises,
    make_tokenizer,
    params,
    settings,
    training_row,
)
from openrlhf_wheel import WheelWorker, maker

from agentgym.evaluate import attempt_all, summarise
from agentgym.recipe import Recipe
from agentgym.rollout import Rollouts
from agentgym.sampling import derive_seed
from agentgym.types import Group
from agentgym_trainers.batch import TokenBatch
from agentgym_trainers.bridges.openrlhf.executor import RecipeExecutor
from agentgym_trainers.bridges.openrlhf.rows import Row
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.demonstrations import train_context
from agentgym_trainers.policy import TokenPolicy

pytestmark = [
    pytest.mark.skipif(find_spec("openrlhf") is None, reason="needs OpenRLHF; `make test-openrlhf` installs it"),
    pytest.mark.filterwarnings("default"),  # of OpenRLHF and what it imports
    pytest.mark.timeout(600),
]

Result = TypeVar("Result")
TOKENIZER = make_tokenizer()
CHAT = ChatFormat(TOKENIZER)
CONTEXT = 160
LADDER = {"no_submission": -0.5, "failed": 0.0, "passed": 1.0}
GATED = {"name": "g_ra", "options": {"ladder": LADDER, "threshold": 1.0, "step_weights": {"valid_calls": 0.125}}}
GUIDE = {"name": "guide", "options": {"ratio": "reset"}}
UNLUCKY = {"id": "tests/Exercises-v0", "options": {"max_turns": 3, "unlucky": 1}}


class Remote:
    """What a call to a Ray worker looks like from outside: `method.remote(...)` gives a reference."""

    def __init__(self, worker: WheelWorker) -> None:
        self.generate_responses = SimpleNamespace(remote=worker.generate_responses)
        self.get_num_unfinished_requests = SimpleNamespace(remote=lambda: 0)


class Loop:
    """Stands in for Ray's `get` and `wait` in one process; the trainer's end-to-end test has Ray itself."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def get(self, refs: Any) -> Any:
        return [self.get(one) for one in refs] if isinstance(refs, list) else self._value(refs)

    def wait(self, refs: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*refs)

        return [_Done(one) for one in self.run(all_of_them())], []

    def run(self, job: Coroutine[Any, Any, Result]) -> Result:
        return self._runner.run(job)

    @staticmethod
    def _value(ref: Any) -> Any:
        return ref.value if isinstance(ref, _Done) else ref


class _Done:
    def __init__(self, value: Any) -> None:
        self.value = value


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    """Ray's `get` and `wait`, within this process, for the samples generator."""
    from openrlhf.trainer.ppo_utils import samples_generator

    made = Loop()
    monkeypatch.setattr(samples_generator, "ray", made)
    yield made
    made._runner.close()


def generator(worker: WheelWorker, rows: Sequence[Row], *, samples: int, filtering: bool = False) -> Any:
    """Return OpenRLHF's samples generator over a dataset of rows, a batch of them at a time."""
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    advantage = SimpleNamespace(is_correction_level="token")
    args = SimpleNamespace(
        algo=SimpleNamespace(
            advantage=advantage, dynamic_filtering_enable=filtering, dynamic_filtering_range=[0.0, 1.0]
        ),
        rollout=SimpleNamespace(batch_size=len(rows), n_samples_per_prompt=samples, vllm_generate_batch_size=None),
        vllm=SimpleNamespace(enable_sleep=False),
    )
    loader = [([row.split], [row.input], [row.label], [None]) for row in rows]
    return SamplesGenerator(SimpleNamespace(args=args), loader, loader, TOKENIZER, [Remote(worker)])


def generate(made: Any, *, samples: int, purpose: str = "train") -> list[Any]:
    """Return the experiences of a batch."""
    given = {"max_len": CONTEXT, "max_new_tokens": 24, "temperature": 1.0, "top_p": 1.0}
    if purpose == "evaluate":
        found: list[Any] = made.generate_eval_samples(**given, n_samples_per_prompt=samples)
        return found
    return list(made.generate_samples(**given)[0])


def rows_of(recipe: Recipe) -> list[Row]:
    """Return the rows of a first step that takes the first six tasks in order."""
    return [training_row(recipe, task.id, number) for number, task in enumerate(recipe.prepare().train[:6])]


def native(recipe: Recipe) -> list[Group]:
    """Return the groups that the native trainer would sample in that step."""
    prepared = recipe.prepare()
    speaker = TokenPolicy(PlayerEngine(Player(CHAT)), CHAT, recipe.evaluation.sampling, CONTEXT)
    rollouts = Rollouts(prepared.make_training_env, speaker, recipe.limits)
    seed = derive_seed(recipe.seed, "rollout", 0)
    return asyncio.run(rollouts.run_guided(prepared.train[:6], prepared.guidance, size=4, seed=seed))


def test_the_player_is_asked_as_its_worker_is_and_with_parameters_that_it_builds() -> None:
    from openrlhf.trainer.ray.vllm_engine import RolloutRayActor
    from openrlhf.utils.agent import AgentExecutorBase
    from vllm import SamplingParams

    worker = RolloutRayActor.__ray_metadata__.modified_class
    asked = [name for name in signature(worker.generate).parameters if name != "_ray_trace_ctx"]
    assert list(signature(PlayerWorker.generate).parameters) == asked
    ours, theirs = signature(RecipeExecutor.execute).parameters, signature(AgentExecutorBase.execute).parameters
    assert list(ours) == list(theirs)
    assert all(hasattr(SamplingParams(**vars(params())), name) for name in vars(params()))


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({"reward": GATED, "guidance": GUIDE}, id="gated-and-guided"),
        pytest.param({"environment": UNLUCKY}, id="with-unscored-attempts"),
    ],
)
def test_its_experiences_hold_what_the_native_trainer_trains_on(
    sections: dict[str, Any], tmp_path: Path, loop: Loop
) -> None:
    recipe = exercises(**sections)
    worker = WheelWorker(settings(recipe), tmp_path, PlayerWorker(Player(CHAT)))
    found = generate(generator(worker, rows_of(recipe), samples=4), samples=4)
    groups = native(recipe)
    scheme = recipe.prepare().scheme
    expected = [
        (one, keep, value)
        for group in groups
        for price in [scheme(group)]
        for one, keep, value in zip(group.trajectories, price.keep, price.returns, strict=True)
    ]
    assert len(found) == len(expected) == 24
    for experience, (one, keep, value) in zip(found, expected, strict=True):
        assert experience.info["kept"].item() == float(keep)
        if not keep:
            assert experience.action_mask.tolist() == [[1]]
            continue
        batch = TokenBatch.of([train_context(one)])
        assert torch.equal(experience.sequences, batch.ids_BL)
        assert torch.equal(experience.action_mask.bool(), batch.sampled_BL[:, 1:])
        torch.testing.assert_close(experience.rollout_log_probs, batch.logp_old_BL[:, 1:])
        assert experience.rewards.item() == pytest.approx(value)


def test_unscored_attempts_survive_its_batching_and_get_no_advantage(tmp_path: Path, loop: Loop) -> None:
    recipe = exercises(environment=UNLUCKY)
    worker = WheelWorker(settings(recipe), tmp_path, PlayerWorker(Player(CHAT)))
    samples = generate(generator(worker, rows_of(recipe), samples=4), samples=4)
    made = maker("group_norm", 4)
    batches = made.split_rollout_samples(samples)
    for one in batches:
        one.kl = torch.zeros_like(one.action_mask, dtype=torch.float32)
    seen = 0
    for one in made.compute_advantages_and_returns(batches):
        lost = torch.tensor([float(keep) == 0.0 for keep in one.info["kept"]])
        advantage_BA = one.advantages * one.action_mask
        assert advantage_BA.isfinite().all()
        assert not lost.any() or advantage_BA[lost].abs().max() < 1e-6
        assert (one.action_mask[lost].sum(1) == 1).all()
        seen += int(lost.sum())
    assert seen


def test_a_sample_without_any_trained_token_would_divide_by_zero() -> None:
    """Why a masked attempt keeps one token: a micro-batch of none has no number of tokens to divide by."""
    from openrlhf.models.loss import PolicyLoss
    from openrlhf.utils.loss_utils import _optimizer_step_loss_norm

    logp_BA, empty_BA = torch.zeros(1, 3), torch.zeros(1, 3)
    norm = _optimizer_step_loss_norm([empty_BA], None, 1, 1)
    loss, *_ = PolicyLoss()(logp_BA, logp_BA, logp_BA, action_mask=empty_BA, **norm)
    assert norm["batch_num_tokens"].item() == 0.0
    assert loss.isnan()


def test_dynamic_filtering_drops_groups_of_equals_and_those_that_were_lost(tmp_path: Path, loop: Loop) -> None:
    recipe = exercises(environment=UNLUCKY)
    rows = rows_of(recipe)
    worker = WheelWorker(settings(recipe), tmp_path, PlayerWorker(Player(CHAT)))
    kept = {one.labels[0] for one in generate(generator(worker, rows, samples=4, filtering=True), samples=4)}
    mixed = {
        row.label
        for row, group in zip(rows, native(recipe), strict=True)
        if 0 < sum(one.passed for one in group.scored) < len(group.scored)
    }
    assert kept == mixed
    assert 0 < len(mixed) < len(rows)


def test_its_evaluation_reports_our_pass_rates(tmp_path: Path, loop: Loop) -> None:
    from openrlhf.trainer.ppo_trainer import compute_eval_metrics

    recipe = exercises(evaluation={"attempts": 4, "sampling": {"max_tokens": 24}})
    prepared = recipe.prepare()
    rows = [evaluation_row(recipe, task.id) for task in prepared.held_out]
    made = generator(WheelWorker(settings(recipe), tmp_path, PlayerWorker(Player(CHAT))), rows, samples=4)
    samples = generate(made, samples=4, purpose="evaluate")
    told = compute_eval_metrics(made.eval_dataloader, samples, 4)
    speaker = TokenPolicy(PlayerEngine(Player(CHAT)), CHAT, recipe.evaluation.sampling, CONTEXT)
    groups = asyncio.run(
        attempt_all(prepared.make_env, prepared.held_out, speaker, attempts=4, limits=recipe.limits, seed=recipe.seed)
    )
    ours = {one.k: one.value for one in summarise(prepared.held_out, groups, attempts=4).pass_at}
    assert told["eval_test_pass1"] == pytest.approx(ours[1])
    assert told["eval_test_pass4"] == pytest.approx(ours[4])
    assert not any(one.action_mask.any() for one in samples)
