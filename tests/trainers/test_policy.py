"""A token policy keeps one exact buffer per episode, within its budgets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from chat_templates import tokenizer_of
from hypothesis import given
from hypothesis import strategies as st

from agentgym.errors import HeldOutError, RecipeError
from agentgym.guidance import RolloutRequest
from agentgym.policy import BudgetExceeded, Episode, Generation, Sampling
from agentgym.rollout import Limits, Rollouts
from agentgym.testing import ToyEnv
from agentgym.tokens import TokenBuffer, TokenKind
from agentgym.types import Message
from agentgym_envs.calculator import CalculatorEnv, calculator_tasks
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.demonstrations import demonstrate, texts_of, tokenise, train_context
from agentgym_trainers.engines.hf import HFEngine
from agentgym_trainers.engines.scripted import DemonstrationPolicy
from agentgym_trainers.models import export, new_model, saved_stop_ids
from agentgym_trainers.policies import checkpoint_policy
from agentgym_trainers.policy import TokenPolicy
from agentgym_trainers.settings import ModelSettings

Tiny = tuple[Any, ChatFormat]
QUESTION = [Message(role="user", content="12+34")]
SEEN = [Message(role="tool", content="46<|end|>")]
TASKS = calculator_tasks(train=12, validation=2, test=2, hard_share=0.5)
TRAIN = list(TASKS.split("train"))


class Parrot:
    """An engine that says given tokens."""

    weight_version = 3

    def __init__(self, *says: Sequence[int]) -> None:
        self.says = [list(one) for one in says]
        self.asked: list[tuple[list[int], Sampling]] = []
        self.sessions: set[str] = set()

    def open(self, session: str) -> None:
        self.sessions.add(session)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, session: str, stop_ids: Sequence[int]
    ) -> Generation:
        self.asked.append((list(prompt_ids), sampling))
        ids = self.says.pop(0)[: sampling.max_tokens]
        return Generation(ids, [-0.5] * len(ids), "stop" if ids[-1] in stop_ids else "length", self.weight_version)

    def release(self, session: str) -> None:
        self.sessions.discard(session)

    async def close(self) -> None:
        """Hold nothing."""


def episode(max_tokens: int = 100, per_turn: int = 50, seed: int = 0) -> Episode:
    return Episode("s", "t", seed, (), per_turn, max_tokens)


def policy(engine: Any, chat: ChatFormat, context: int = 200, **sampling: Any) -> TokenPolicy:
    return TokenPolicy(engine, chat, Sampling(max_tokens=100, **sampling), context)


answers = st.lists(st.lists(st.integers(6, 255), min_size=1, max_size=6), min_size=1, max_size=4)


@given(answers=answers, cuts=st.lists(st.booleans(), min_size=4, max_size=4), seen=st.text(min_size=1))
def test_the_buffer_holds_what_was_sampled_and_nothing_is_encoded_twice(
    tiny: Tiny, answers: list[list[int]], cuts: list[bool], seen: str
) -> None:
    chat = tiny[1]
    says = [ids if cut else [*ids, chat.end_id] for ids, cut in zip(answers, cuts, strict=False)]
    engine = Parrot(*says)

    async def play() -> TokenBuffer:
        session = policy(engine, chat, 10_000).session(episode(10_000))
        messages = QUESTION
        for _ in says:
            await session.act(messages)
            messages = [Message(role="tool", content=seen)]
        session.observe(messages)
        session.close()
        assert session.tokens is not None
        return session.tokens

    buffer = asyncio.run(play())
    spans = groupby(zip(buffer.kinds, buffer.turns, buffer.ids, strict=True), key=lambda token: token[:2])
    sampled = [[token[2] for token in span] for (kind, _), span in spans if kind == TokenKind.SAMPLED]
    assert sampled == says
    assert [prompt for prompt, _ in engine.asked] == [buffer.ids[: len(prompt)] for prompt, _ in engine.asked]
    ends = buffer.ids.count(chat.end_id)
    assert ends == 1 + 2 * len(says) - 0  # the question, and each answer and observation
    assert buffer.turns == sorted(buffer.turns)
    assert not engine.sessions


def test_a_cut_turn_gets_its_end_as_an_observation(tiny: Tiny) -> None:
    chat = tiny[1]

    async def play() -> TokenBuffer:
        session = policy(Parrot([70, 71], [72, chat.end_id]), chat).session(episode())
        assert (await session.act(QUESTION)).stop_reason == "length"
        await session.act(SEEN)
        assert session.tokens is not None
        return session.tokens

    buffer = asyncio.run(play())
    after = buffer.ids.index(71) + 1
    assert (buffer.ids[after], buffer.kinds[after]) == (chat.end_id, TokenKind.OBSERVATION)


def test_every_turn_has_its_own_seed_derived_from_the_episode(tiny: Tiny) -> None:
    end = tiny[1].end_id

    async def seeds(seed: int) -> list[int]:
        engine = Parrot([70, end], [70, end])
        session = policy(engine, tiny[1]).session(episode(seed=seed))
        await session.act(QUESTION)
        await session.act(SEEN)
        return [sampling.seed for _, sampling in engine.asked]

    first, again, other = (asyncio.run(seeds(seed)) for seed in (1, 1, 2))
    assert first == again
    assert len({*first, *other}) == 4


@pytest.mark.parametrize(
    ("limits", "context", "reason"),
    [pytest.param((3, 50), 200, "tokens", id="tokens"), pytest.param((100, 50), 16, "context", id="context")],
)
def test_a_spent_budget_ends_the_episode_before_anything_is_appended(
    tiny: Tiny, limits: tuple[int, int], context: int, reason: str
) -> None:
    async def play() -> None:
        session = policy(Parrot([70] * 3, [70] * 3), tiny[1], context).session(episode(*limits))
        await session.act(QUESTION)
        before = len(session.tokens or ())
        with pytest.raises(BudgetExceeded, match=reason):
            await session.act(SEEN)
        assert len(session.tokens or ()) == before

    asyncio.run(play())


def test_the_tightest_limit_bounds_a_turn(tiny: Tiny) -> None:
    async def limits(context: int, total: int, per_turn: int) -> int:
        engine = Parrot([70])
        await policy(engine, tiny[1], context).session(episode(total, per_turn)).act(QUESTION)
        return engine.asked[0][1].limit

    prompt = sum(len(ids) for ids, _ in tiny[1].prompt(QUESTION))
    assert asyncio.run(limits(prompt + 5, 9, 8)) == 5
    assert asyncio.run(limits(200, 9, 8)) == 8
    assert asyncio.run(limits(200, 7, 8)) == 7


def test_sampling_that_says_nothing_of_tokens_leaves_them_to_the_episode(tiny: Tiny) -> None:
    engine = Parrot([70])
    speaker = TokenPolicy(engine, tiny[1], Sampling(), 10_000)
    asyncio.run(speaker.session(episode(5_000, 1_000)).act(QUESTION))
    assert engine.asked[0][1].max_tokens == 1_000


def test_a_model_plays_whole_groups_alike_every_time(tiny: Tiny) -> None:
    async def play() -> list[list[int]]:
        engine = HFEngine(tiny[0], batching="lockstep")
        limits = Limits(max_tokens_per_turn=6, max_tokens=30, concurrency=5, waves=True)
        rollouts = Rollouts(lambda: CalculatorEnv(TASKS, max_turns=3), policy(engine, tiny[1]), limits)
        groups = await rollouts.run([RolloutRequest(task, 4, seed=0) for task in TRAIN[:2]])
        await engine.close()
        return [one.tokens.ids for group in groups for one in group.trajectories if one.tokens]

    first = asyncio.run(play())
    assert len(first) == 8
    assert first == asyncio.run(play())


class Interrupted(HFEngine):
    """Aborts each request while it waits for those of other sessions, as a server does that is restarted."""

    async def generate(self, *given: Any) -> Generation:
        asked = asyncio.create_task(super().generate(*given))
        await asyncio.sleep(0)
        await self.abort(given[2])
        return await asked


def test_a_turn_that_the_engine_aborted_is_nobodys_zero(tiny: Tiny) -> None:
    async def play() -> list[Any]:
        engine = Interrupted(tiny[0], batching="lockstep")
        limits = Limits(max_tokens_per_turn=60, max_tokens=60, concurrency=2, waves=True, retries=1, retry_wait_s=0)
        rollouts = Rollouts(lambda: CalculatorEnv(TASKS, max_turns=3), policy(engine, tiny[1]), limits)
        (group,) = await rollouts.run([RolloutRequest(TRAIN[0], 2, seed=0)])
        await engine.close()
        return group.trajectories

    attempts = asyncio.run(play())
    assert [(one.end, one.scored) for one in attempts] == [("infrastructure", False)] * 2
    assert all("the engine aborted turn 1" in one.error for one in attempts)


@pytest.mark.parametrize("found", ["ab", "[/INST]ab", "abcdefghi", "\ue000agentgym0\ue001", "\ue000textab"])
@pytest.mark.parametrize("name", ["reverse", "[/INST]", "\ue000agentgym0\ue001"])
def test_a_failure_with_a_made_up_name_or_id_counts(found: str, name: str) -> None:
    chat = ChatFormat(tokenizer_of("mistral"))
    call = json.dumps([{"name": name, "arguments": {"text": "a"}, "id": found}], ensure_ascii=False)
    engine = Parrot(chat.answer(f"[TOOL_CALLS]{call}"), chat.answer("[TOOL_CALLS]answer[ARGS]" + '{"text": "no"}'))
    task = next(iter(ToyEnv.tasks.split("train")))
    rollouts = Rollouts(ToyEnv, policy(engine, chat, 10_000), Limits(max_tokens=5_000, max_tokens_per_turn=2_000))
    (group,) = asyncio.run(rollouts.run([RolloutRequest(task, 1, seed=0)]))
    (attempt,) = group.trajectories
    assert (attempt.end, attempt.scored, attempt.error) == ("submitted", True, None)
    control = [one for one in engine.asked[1][0] if one == chat.tokenizer.convert_tokens_to_ids("[/INST]")]
    assert len(control) == 1


def test_a_models_own_stop_tokens_end_its_turns(tmp_path: Path) -> None:
    model, tokenizer = new_model(ModelSettings(), ["12+34"], seed=0, device="cpu")
    letters = [tokenizer.convert_tokens_to_ids(one) for one in "ab"]
    for listed, wanted in ((letters, letters), (letters[0], letters[:1]), (None, [])):
        model.generation_config.eos_token_id = listed
        export(model, tokenizer, tmp_path)
        stop_ids = checkpoint_policy(tmp_path).chat.stop_ids
        assert stop_ids == tuple(dict.fromkeys((tokenizer.eos_token_id, *wanted)))
        assert saved_stop_ids(tmp_path) == tuple(wanted)
    assert saved_stop_ids(tmp_path / "none") == ()


def test_the_oracle_scores_everything_as_tokens(tiny: Tiny) -> None:
    env = CalculatorEnv(TASKS)
    oracle = DemonstrationPolicy(tiny[1], lambda one: env.oracle(TASKS[one.task_id]), 256)
    groups = asyncio.run(
        Rollouts(lambda: CalculatorEnv(TASKS), oracle).run([RolloutRequest(task, 1, 0) for task in TASKS])
    )
    assert all(group.solved for group in groups)


def test_demonstrations_mark_the_assistants_tokens(tiny: Tiny) -> None:
    chat = tiny[1]

    async def make() -> list[Any]:
        shown = await demonstrate(lambda: CalculatorEnv(TASKS), TRAIN, Limits(), hinted_share=1.0, seed=0)
        return await tokenise(shown, chat, 256)

    made = asyncio.run(make())
    assert {one.task_id for one in made} == {task.id for task in TRAIN}
    for one in made:
        buffer = train_context(one)
        said = "".join(turn.action.content for turn in one.turns)
        ids = [token for token, own in zip(buffer.ids, buffer.mask(TokenKind.SAMPLED), strict=True) if own]
        assert chat.parse(ids).content == said
        assert buffer.guided == (one.hint is not None) == ("@" in one.task_id)
        assert one.passed or not one.hint
    assert "!merge" in "".join(texts_of(made))


def test_hinted_attempts_that_are_trained_off_policy_lose_their_hint(tiny: Tiny) -> None:
    hard = next(task for task in TRAIN if task.hints)

    async def play(off_policy: Any) -> TokenBuffer:
        scripted = DemonstrationPolicy(tiny[1], lambda _: ["```answer\n1"], 256)
        request = RolloutRequest(hard, 1, 0, hint="!merge", off_policy=off_policy)
        groups = await Rollouts(lambda: CalculatorEnv(TASKS), scripted).run([request])
        return train_context(groups[0].trajectories[0])

    hinted, bare = asyncio.run(play("none")), asyncio.run(play("true"))
    assert hinted.guided
    assert not bare.guided
    assert hinted.without_guidance() == bare


def test_held_out_tasks_have_no_train_context(tiny: Tiny) -> None:
    task = next(iter(TASKS.split("test")))

    async def play() -> Any:
        scripted = DemonstrationPolicy(tiny[1], lambda _: ["```answer\n1"], 256)
        return await Rollouts(lambda: CalculatorEnv(TASKS), scripted).run([RolloutRequest(task, 1, 0)])

    with pytest.raises(HeldOutError, match=task.id.replace("+", r"\+")):
        train_context(asyncio.run(play())[0].trajectories[0])


def test_a_demonstration_longer_than_the_context_is_refused(tiny: Tiny) -> None:
    async def make() -> None:
        shown = await demonstrate(lambda: CalculatorEnv(TASKS), TRAIN[:1], Limits(), hinted_share=0.0, seed=0)
        (one,) = await tokenise(shown, tiny[1], 256)
        assert one.tokens is not None
        exact = len(one.tokens)
        (again,) = await tokenise(shown, tiny[1], exact)
        assert again.tokens == one.tokens
        for short in (12, exact - 1):  # of the latter the last message alone would be cut
            with pytest.raises(
                RecipeError, match=rf"longer than the context of {short} tokens; raise trainer\.model\.context_length"
            ):
                await tokenise(shown, tiny[1], short)

    asyncio.run(make())
