"""What OpenRLHF is given is what the native trainer trains on, sample by sample; the rest is refused or masked."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from chat_templates import QWEN3, tokenizer_with
from openrlhf_players import (
    BrokenWorker,
    Player,
    PlayerEngine,
    PlayerWorker,
    ask,
    evaluation_row,
    exercises,
    make_tokenizer,
    params,
    settings,
    training_row,
)

from agentgym.errors import HeldOutError, InfrastructureError, RecipeError
from agentgym.evaluate import attempt_all
from agentgym.recipe import Recipe
from agentgym.rewards import Rewards
from agentgym.sampling import ShuffledSampler
from agentgym.types import Group
from agentgym_trainers.batch import TokenBatch
from agentgym_trainers.bridges.openrlhf.executor import RecipeExecutor
from agentgym_trainers.bridges.openrlhf.rows import Row
from agentgym_trainers.build import Parts
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.collect import LockStep
from agentgym_trainers.demonstrations import train_context
from agentgym_trainers.policy import TokenPolicy
from agentgym_trainers.world import World

Sample = dict[str, Any]
TOKENIZER = make_tokenizer()
CHAT = ChatFormat(TOKENIZER)
LADDER = {"no_submission": -0.5, "failed": 0.0, "passed": 1.0}
GATED = {"name": "g_ra", "options": {"ladder": LADDER, "threshold": 1.0, "step_weights": {"valid_calls": 0.125}}}
GUIDE = {"name": "guide", "options": {"ratio": "reset"}}
UNLUCKY = {"id": "tests/Exercises-v0", "options": {"max_turns": 3, "unlucky": 1}}


def native(recipe: Recipe, step: int = 0, context: int = 160) -> tuple[list[Group], list[Rewards]]:
    """Sample a step's groups and price them as the native trainer does."""
    prepared, trainer = recipe.prepare(), recipe.trainer_settings()
    parts = Parts(
        prepared, trainer, None, CHAT, context, PlayerEngine(Player(CHAT)), None, [], lambda *_: None, World()  # type: ignore[arg-type]
    )  # fmt: skip
    tasks = {task.id: task for task in prepared.train}
    groups, _ = asyncio.run(LockStep(parts, ShuffledSampler(list(tasks), 0), tasks).next(step))
    return groups, [prepared.scheme(group) for group in groups]


def bridged(recipe: Recipe, tasks: Sequence[str], step: int = 0, **changes: Any) -> list[list[Sample]]:
    """Sample the same groups the way OpenRLHF asks for them: all prompts of a batch at once."""

    async def run() -> list[list[Sample]]:
        executor, worker = RecipeExecutor(settings(recipe)), PlayerWorker(Player(CHAT))
        rows = [training_row(recipe, task, number, step) for number, task in enumerate(tasks)]
        return await asyncio.gather(*(ask(executor, row, worker, TOKENIZER, **changes) for row in rows))

    return asyncio.run(run())


def mask(sample: Sample) -> list[bool]:
    inside = [False] * len(sample["observation_tokens"])
    for start, end in sample["action_ranges"]:
        inside[start:end] = [True] * (end - start)
    return inside


def compare(groups: list[Group], rewards: list[Rewards], samples: list[list[Sample]]) -> list[str]:
    """Compare attempt by attempt what either way trains; return what kinds of attempts there were."""
    kinds = []
    for group, price, given in zip(groups, rewards, samples, strict=True):
        for one, keep, value, sample in zip(group.trajectories, price.keep, price.returns, given, strict=True):
            if not keep:
                assert any(price.keep)
                assert sample["reward"] == pytest.approx(torch.tensor(price.returns)[price.keep].mean().item())
                assert mask(sample) == [False, True]
                kinds.append("unscored")
                continue
            batch = TokenBatch.of([train_context(one)])
            assert sample["observation_tokens"] == batch.ids_BL[0].tolist()
            assert mask(sample) == batch.sampled_BL[0].tolist()
            assert sample["rollout_log_probs"] == pytest.approx(batch.logp_old_BL[0].tolist())
            assert sample["reward"] == value
            kinds.append("hinted" if one.hint else "truncated" if sample["truncated"] else one.end)
            kinds += ["passed"] * one.passed + ["stepwise"] * any(map(any, price.step))
    return kinds


@pytest.mark.parametrize(
    ("sections", "wanted"),
    [
        pytest.param({}, {"passed", "submitted", "truncated", "turns"}, id="outcome"),
        pytest.param({"reward": GATED}, {"passed", "stepwise"}, id="gated"),
        pytest.param({"guidance": GUIDE, "reward": GATED}, {"hinted", "passed", "stepwise"}, id="guided"),
        pytest.param({"environment": UNLUCKY, "reward": GATED}, {"unscored", "passed"}, id="unscored"),
        pytest.param({"environment": UNLUCKY, "guidance": GUIDE}, {"unscored", "hinted", "truncated"}, id="everything"),
    ],
)  # fmt: skip
def test_openrlhf_gets_the_tokens_masks_logprobs_and_rewards_that_the_native_trainer_trains_on(
    sections: dict[str, Any], wanted: set[str]
) -> None:
    recipe = exercises(**sections)
    kinds: list[str] = []
    for step in range(2):
        groups, rewards = native(recipe, step)
        kinds += compare(groups, rewards, bridged(recipe, [one.task_id for one in groups], step))
    assert wanted <= set(kinds), kinds


def test_an_attempt_that_fills_the_context_is_cut_where_the_native_trainer_cuts_it() -> None:
    recipe = exercises(trainer={"model": {"vocab_size": 320, "context_length": 60}})
    groups, rewards = native(recipe, context=60)
    samples = bridged(recipe, [one.task_id for one in groups], max_length=60)
    compare(groups, rewards, samples)
    ends = {one.end: sample["truncated"] for group, given in zip(groups, samples, strict=True)
            for one, sample in zip(group.trajectories, given, strict=True)}  # fmt: skip
    assert ends["context"]
    assert max(len(sample["observation_tokens"]) for given in samples for sample in given) <= 60


def test_a_prompt_that_leaves_no_room_counts_as_lost_by_the_agent_and_is_a_valid_sample_that_trains_nothing() -> None:
    recipe = exercises(reward=GATED, trainer={"model": {"vocab_size": 320, "context_length": 5}})
    [samples] = bridged(recipe, [recipe.prepare().train[0].id], max_length=5)
    for sample in samples:
        assert (sample["reward"], sample["truncated"], sample["action_ranges"]) == (0.0, True, [(1, 2)])
        assert (sample["extra_logs"]["outcome"], sample["scores"]) == (-0.5, 0.0)
        assert sample["extra_logs"]["kept"] == sample["extra_logs"]["scored"] == 1.0


def test_an_attempt_without_room_has_the_mean_of_its_siblings_so_that_no_estimator_trains_its_filler() -> None:
    wordy = {"id": "tests/Exercises-v0", "options": {"max_turns": 3, "wordy": 1}}
    recipe = exercises(environment=wordy, reward=GATED)
    mixed = 0
    for samples in bridged(recipe, [task.id for task in recipe.prepare().train[:6]]):
        roomless = [one for one in samples if not one["extra_logs"]["sampled_tokens"]]
        rewards = [one["reward"] for one in samples if one not in roomless]
        for sample in roomless:
            assert mask(sample) == [False, True]
            assert (sample["extra_logs"]["outcome"], sample["extra_logs"]["passed"]) == (-0.5, 0.0)
            assert sample["reward"] == pytest.approx(math.fsum(rewards) / len(rewards))
            mixed += len(set(rewards)) > 1
    assert mixed


def test_a_hinted_attempt_is_trained_without_its_hint_and_its_logprobs_are_those_it_was_sampled_with() -> None:
    recipe = exercises(guidance=GUIDE)
    groups, _ = native(recipe)
    place = next(index for index, group in enumerate(groups) if group.guided)
    one, sample = groups[place].trajectories[-1], bridged(recipe, [group.task_id for group in groups])[place][-1]
    assert one.tokens is not None
    assert one.tokens.guided
    heard, read = (TOKENIZER.decode(ids) for ids in (one.tokens.ids, sample["observation_tokens"]))
    assert "!merge" in heard
    assert "!merge" not in read
    assert sample["extra_logs"]["hinted"] == 1.0


def test_the_shared_parameters_are_only_read_and_no_turn_forbids_the_stop_tokens() -> None:
    recipe, given = exercises(), params()
    before = vars(given).copy()

    async def run() -> PlayerWorker:
        executor, worker = RecipeExecutor(settings(recipe)), PlayerWorker(Player(CHAT))
        await ask(executor, training_row(recipe, recipe.prepare().train[0].id), worker, TOKENIZER, given=given)
        return worker

    asked = asyncio.run(run()).asked
    assert vars(given) == before
    assert len({id(one) for one in asked}) == len(asked) > 4
    assert {one.min_tokens for one in asked} == {0}
    assert {tuple(one.stop_token_ids) for one in asked} == {CHAT.stop_ids}
    assert len({one.seed for one in asked}) == len(asked)
    assert all(0 < one.max_tokens <= 24 for one in asked)


def test_logprobs_are_a_list_exactly_where_openrlhf_asked_for_them() -> None:
    recipe = exercises(environment=UNLUCKY)
    tasks = [task.id for task in recipe.prepare().train[:6]]
    for wanted in (1, None):
        for sample in [one for group in bridged(recipe, tasks, logprobs=wanted) for one in group]:
            found = sample["rollout_log_probs"]
            assert (found is None) == (wanted is None)
            assert found is None or len(found) == len(sample["observation_tokens"])


def test_every_sample_has_the_same_log_names_and_finite_numbers() -> None:
    recipe = exercises(environment=UNLUCKY, reward=GATED)
    samples = [one for group in bridged(recipe, [task.id for task in recipe.prepare().train[:6]]) for one in group]
    assert len({tuple(one["extra_logs"]) for one in samples}) == 1
    assert all(math.isfinite(value) for one in samples for value in (one["reward"], *one["extra_logs"].values()))
    assert {one["extra_logs"]["scored"] for one in samples} == {0.0, 1.0}
    assert all(0.0 <= one["scores"] <= 1.0 for one in samples)


def test_a_held_out_task_in_a_training_dataset_is_refused() -> None:
    recipe = exercises()
    held_out = recipe.prepare().held_out[0].id
    honest = training_row(recipe, held_out, split="test")
    lying = training_row(recipe, held_out)
    with pytest.raises(HeldOutError, match="belongs to the 'test' split"):
        asyncio.run(ask(RecipeExecutor(settings(recipe)), honest, PlayerWorker(Player(CHAT)), TOKENIZER))
    with pytest.raises(RecipeError, match=r"has no task .* to train on"):
        asyncio.run(ask(RecipeExecutor(settings(recipe)), lying, PlayerWorker(Player(CHAT)), TOKENIZER))


def test_an_evaluation_gives_the_native_pass_rates_and_no_token_to_train_on() -> None:
    recipe = exercises(evaluation={"attempts": 4, "sampling": {"max_tokens": 24}})
    prepared = recipe.prepare()
    speaker = TokenPolicy(PlayerEngine(Player(CHAT)), CHAT, recipe.evaluation.sampling, 160)
    groups = asyncio.run(
        attempt_all(prepared.make_env, prepared.held_out, speaker, attempts=4, limits=recipe.limits, seed=recipe.seed)
    )

    async def run() -> list[list[Sample]]:
        executor, worker = RecipeExecutor(settings(recipe)), PlayerWorker(Player(CHAT))
        rows = [evaluation_row(recipe, task.id) for task in prepared.held_out]
        return await asyncio.gather(*(ask(executor, row, worker, TOKENIZER, samples=4) for row in rows))

    samples = asyncio.run(run())
    assert [[one["reward"] for one in row] for row in samples] == [
        [float(one.passed) for one in group.trajectories] for group in groups
    ]
    assert 0.0 < sum(one["reward"] for row in samples for one in row) < 4 * len(groups)
    assert all(one["action_ranges"] == [] for row in samples for one in row)


def test_an_unscored_held_out_attempt_never_counts_as_a_failure() -> None:
    unlucky = {"id": "tests/Exercises-v0", "options": {"max_turns": 3, "unlucky": 4}}
    recipe = exercises(environment=unlucky, evaluation={"attempts": 4, "sampling": {"max_tokens": 24}})
    rows = [evaluation_row(recipe, task.id) for task in recipe.prepare().held_out]

    async def run() -> list[list[Sample]]:
        executor, worker = RecipeExecutor(settings(recipe)), PlayerWorker(Player(CHAT))
        return await asyncio.gather(*(ask(executor, row, worker, TOKENIZER, samples=4) for row in rows))

    for group in asyncio.run(run()):
        scored = [one["extra_logs"]["scored"] for one in group]
        assert 0.0 in scored
        assert all((one["reward"] == 0.0) if 1.0 in scored else math.isnan(one["reward"]) for one in group)


def test_a_failing_worker_makes_valid_samples_that_count_for_nothing_until_a_whole_step_is_lost() -> None:
    recipe = exercises(trainer={"policy": {"tasks_per_step": 2, "attempts": 4}})
    first, second = (training_row(recipe, task.id) for task in recipe.prepare().train[:2])

    async def run() -> list[Sample]:
        executor = RecipeExecutor(settings(recipe))
        samples = await ask(executor, first, BrokenWorker(), TOKENIZER)
        with pytest.raises(InfrastructureError, match=r"2 groups in a row .*EngineDeadError"):
            await ask(executor, second, BrokenWorker(), TOKENIZER)
        return samples

    for sample in asyncio.run(run()):
        assert (sample["reward"], sample["action_ranges"], sample["truncated"]) == (0.0, [(1, 2)], False)
        assert sample["extra_logs"]["kept"] == sample["extra_logs"]["scored"] == 0.0


def test_a_dataset_that_is_gone_through_again_is_rolled_out_with_other_seeds() -> None:
    recipe = exercises()
    row = training_row(recipe, recipe.prepare().train[0].id)

    async def run() -> list[int]:
        executor, worker = RecipeExecutor(settings(recipe)), PlayerWorker(Player(CHAT))
        for _ in range(2):
            await ask(executor, row, worker, TOKENIZER)
        return [one.seed for one in worker.asked]

    seeds = asyncio.run(run())
    assert len(set(seeds)) == len(seeds)


def test_one_cancelled_call_leaves_its_siblings_their_samples() -> None:
    recipe = exercises()
    row = training_row(recipe, recipe.prepare().train[0].id)

    async def run() -> list[Any]:
        executor, worker, given = RecipeExecutor(settings(recipe)), PlayerWorker(Player(CHAT)), params()
        calls = [
            asyncio.create_task(executor.execute(row.input, row.label, given, 160, TOKENIZER, worker)) for _ in range(4)
        ]
        await asyncio.sleep(0)
        calls[1].cancel()
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(run())
    assert isinstance(found[1], asyncio.CancelledError)
    assert all(one["observation_tokens"] for one in found[:1] + found[2:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 3}, r"policy.attempts is 4, found 3 samples .*--rollout.n_samples_per_prompt 4"),
        ({"samples": 5}, r"found 1 samples"),
        ({"temperature": 0.7}, r"temperature 1 to train, found 0.7"),
        ({"top_p": 0.9}, r"top_p 1 to train, found 0.9"),
    ],
)
def test_numbers_that_are_not_the_recipes_are_refused(changes: dict[str, Any], message: str) -> None:
    recipe = exercises()
    row = training_row(recipe, recipe.prepare().train[0].id)
    with pytest.raises(RecipeError, match=message):
        asyncio.run(ask(RecipeExecutor(settings(recipe)), row, PlayerWorker(Player(CHAT)), TOKENIZER, **changes))


def test_rows_of_another_recipe_or_of_nobody_are_refused() -> None:
    recipe, other = exercises(), exercises(seed=1)
    executor, worker = RecipeExecutor(settings(recipe)), PlayerWorker(Player(CHAT))
    row = training_row(other, recipe.prepare().train[0].id)
    with pytest.raises(RecipeError, match="was written for the recipe"):
        asyncio.run(ask(executor, row, worker, TOKENIZER))
    with pytest.raises(RecipeError, match="wanted a dataset row of the bridge to OpenRLHF, found the label '42'"):
        asyncio.run(executor.execute("prompt", "42", params(), 160, TOKENIZER, worker))
    with pytest.raises(ValueError, match="evaluation runs on held-out tasks"):
        training_row(recipe, "a", purpose="evaluate")
    assert Row.read(row.label) == row


def test_a_template_that_rewrites_thoughts_is_refused_with_the_way_out() -> None:
    recipe = exercises()
    row = training_row(recipe, recipe.prepare().train[0].id)
    tokenizer = tokenizer_with(QWEN3, "<|im_end|>")
    with pytest.raises(RecipeError, match=r"rewrites earlier turns.*thinking: keep"):
        asyncio.run(ask(RecipeExecutor(settings(recipe)), row, PlayerWorker(Player(CHAT)), tokenizer))


@pytest.mark.parametrize(
    ("ratio", "loss", "fine"),
    [
        ("reset", "clip", True),
        ("true", "truncated", True),
        ("true", "clip", False),
        ("shaped", "clip", False),
        ("reset", "truncated", False),
    ],
)
def test_hinted_attempts_are_refused_where_openrlhf_has_no_equal_ratio(ratio: str, loss: str, fine: bool) -> None:
    trainer = {"policy": {"loss": loss, "attempts": 4}}
    recipe = exercises(guidance={"name": "guide", "options": {"ratio": ratio}}, trainer=trainer)
    if fine:
        assert RecipeExecutor(settings(recipe))
    else:
        with pytest.raises(RecipeError, match=f"ratio '{ratio}' and the loss '{loss}' have no equal"):
            RecipeExecutor(settings(recipe))


def test_rewards_that_learn_are_refused_and_the_same_with_fixed_rates_are_not() -> None:
    rates = {"by": "grader", "rates": {"grade": {"rho0": 0.1, "rho1": 0.1}}}
    noise = {**rates, "failed": "failed", "passed": "passed"}
    appeals = {"grader": None, "accepted": 0.5, "rejected": 0.5}
    trainer = {"policy": {"advantage": "rloo", "attempts": 4}}

    def recipe(learn_after: int | None) -> Recipe:
        options = {**rates, "learn_after": learn_after}
        scheme = {"name": "backward", "options": options}
        return exercises(reward=scheme, noise=noise, appeals=appeals, trainer=trainer)

    assert RecipeExecutor(settings(recipe(None)))
    with pytest.raises(RecipeError, match="reward: BackwardCorrection learns from every step's groups"):
        RecipeExecutor(settings(recipe(3)))


def test_settings_that_openrlhf_would_ignore_are_refused() -> None:
    schedule = {"schedule": {"max_staleness": 1, "spare_attempts": 1}}
    with pytest.raises(RecipeError, match="spare_attempts: OpenRLHF waits for every attempt, found 1"):
        RecipeExecutor(settings(exercises(trainer=schedule)))


def test_a_curriculum_over_training_is_refused() -> None:
    """OpenRLHF's rollout processes never learn how far training is."""
    search: dict[str, Any] = {"id": "agentgym/Search-v0", "options": {"size": 400, "count": 40}}
    few = {"train": 4, "validation": 1, "test": 1, "near_duplicate": 1.0}
    assert RecipeExecutor(settings(exercises(environment=search, tasks=few)))
    search["options"] |= {"noise": {"start": 0.0, "end": 0.5}}
    with pytest.raises(RecipeError, match="agentgym/Search-v0 changes as training goes on"):
        RecipeExecutor(settings(exercises(environment=search, tasks=few)))
