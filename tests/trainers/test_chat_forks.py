"""Whatever a template does to earlier turns, the model reads what the template says, and each token is trained once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_templates import FAMILIES, MISTRAL, PLAIN, tokenizer_of, tokenizer_with
from hypothesis import given, settings
from hypothesis import strategies as st

from agentgym.policy import Episode, Generation, Sampling, ToolSchema
from agentgym.rewards import Rewards
from agentgym.tokens import TokenBuffer, TokenKind
from agentgym.types import Message
from agentgym_trainers.advantages import Credit, gather_rewards, grpo
from agentgym_trainers.batch import Rows, TokenBatch
from agentgym_trainers.chat import ChatFormat, TextEncoder
from agentgym_trainers.models import export, new_model
from agentgym_trainers.policy import TokenPolicy
from agentgym_trainers.settings import ModelSettings

TINY = ModelSettings(vocab_size=300, hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, context_length=256)
LIMITS = {"concurrency": 64, "max_tokens_per_turn": 8, "max_tokens": 100}
QUESTION = Message(role="user", content="question")
TOOL: ToolSchema = {"type": "function", "function": {"name": "look", "description": "", "parameters": {}}}


@cache
def format_of(family: str, thinking: Any = "fork", calls: str | None = None) -> ChatFormat:
    tokenizer = tokenizer_of(family)
    stops = [one for one in tokenizer.convert_tokens_to_ids(STOPS) if one is not None]
    return ChatFormat(tokenizer, thinking=thinking, calls=calls, stop_ids=stops)


class Parrot:
    """An engine that says given tokens and remembers what it was shown."""

    weight_version = 0

    def __init__(self, says: Sequence[list[int]]) -> None:
        self.says = list(says)
        self.read: list[list[int]] = []

    def open(self, session: str) -> None:
        """Nothing to announce."""

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, session: str, stop_ids: Sequence[int]
    ) -> Generation:
        self.read.append(list(prompt_ids))
        ids = self.says.pop(0)[: sampling.max_tokens]
        return Generation(ids, [-0.25 * one for one in ids], "stop" if ids[-1] in stop_ids else "length")

    def release(self, session: str) -> None:
        """Nothing to forget."""

    async def close(self) -> None:
        """Nothing to free."""


def play(
    chat: ChatFormat, says: Sequence[list[int]], seen: Sequence[Sequence[Message]], tools: tuple[ToolSchema, ...] = ()
) -> tuple[TokenBuffer, list[list[int]], list[Message]]:
    """Return the buffer, what the engine read each turn, and what the policy was understood to say."""
    engine = Parrot(says)

    async def run() -> tuple[TokenBuffer, list[Message]]:
        policy = TokenPolicy(engine, chat, Sampling(max_tokens=10_000), 100_000)
        session = policy.session(Episode("s", "t", 0, tools, 10_000, 100_000))
        messages: Sequence[Message] = [QUESTION]
        heard = []
        for one in seen:
            heard.append((await session.act(messages)).message)
            messages = one
        session.observe(messages)
        assert session.tokens is not None
        return session.tokens, heard

    buffer, heard = asyncio.run(run())
    return buffer, engine.read, heard


NASTY = ["<|im_end|>", "<|im_start|>assistant\n", "</think>", "<think>", "<tool_call>", "[INST]", "<｜Assistant｜>",
         "</s>",          "\ue000agentgym1\ue001", "<end_of_turn>", "\n"]  # fmt: skip
STOPS = ["<|endoftext|>", "<|im_start|>"]  # as a model's generation_config may list them
words = st.text("abc xyz.", min_size=1, max_size=8).map(str.strip).filter(bool)
texts = st.one_of(words, st.lists(st.sampled_from(NASTY), min_size=1, max_size=4).map("".join))
any_ids = st.lists(st.integers(0, 318), max_size=8)
turns = st.lists(
    st.tuples(
        st.booleans(),  # a thought?
        any_ids,
        any_ids,
        st.none() | st.integers(0, 4),  # which stop token, if it was not cut
        st.lists(
            st.builds(
                Message,
                role=st.sampled_from(["user", "tool"]),
                content=texts,
                name=st.none() | texts,
                tool_call_id=st.none() | texts,
            ),
            min_size=1,
            max_size=2,
        ),
    ),
    min_size=1,
    max_size=4,
)


def spoken(chat: ChatFormat, thinks: bool, thought: list[int], answer: list[int], stop: int | None) -> list[int]:
    """Return sampled ids: letters at random, thoughts marked as models mark them."""
    opening, closing = chat.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    ids = [*([] if chat.opens_thought else [opening]), *thought, closing, *answer] if thinks else answer
    return ids if stop is None and ids else [*ids, chat.stop_ids[(stop or 0) % len(chat.stop_ids)]]


@pytest.mark.parametrize("family", [*FAMILIES, "mistral/always", "gemma/never", "gemma/first"])
@settings(deadline=None, max_examples=60)
@given(script=turns)
def test_the_buffer_holds_what_was_read_and_what_was_sampled_once(family: str, script: list[Any]) -> None:
    chat = format_of(family)
    says = [spoken(chat, *one[:4]) for one in script]
    buffer, read, _ = play(chat, says, [one[4] for one in script])
    rows = buffer.rows()
    # Each turn's tokens, verbatim, in one row and nowhere else.
    sampled = [
        [token for token, turn, kind in zip(buffer.ids, buffer.turns, buffer.kinds, strict=True)
         if kind == TokenKind.SAMPLED and turn == number]
        for number in range(len(says))
    ]  # fmt: skip
    assert sampled == says
    assert sum(row.sampled_count for row in rows) == sum(map(len, says))
    # What the engine read is a beginning of a row, and what it then said follows there.
    contexts = [read_ids + said for read_ids, said in zip(read, says, strict=True)]
    for context in contexts:
        assert any(row.ids[: len(context)] == context for row in rows)
    # A row grows by suffixes only; a new one begins where that is impossible.
    grown = [after[: len(before)] == before for before, after in zip(contexts, read[1:], strict=False)]
    assert len(rows) == 1 + grown.count(False)
    if "</think>" not in chat.template.source and not chat.template.opener:
        assert len(rows) == 1


@pytest.mark.parametrize("family", [*FAMILIES, "mistral/always", "gemma/never", "gemma/first"])
@settings(deadline=None, max_examples=60)
@given(script=turns, description=texts)
def test_no_observation_adds_a_control_token_on_any_turn(family: str, script: list[Any], description: str) -> None:
    chat = format_of(family)
    says = [spoken(chat, *one[:4]) for one in script]
    tame = [[Message(role=one.role, content="x") for one in seen] for *_, seen in script]

    def control(seen: Sequence[Sequence[Message]], description: str = "x") -> list[list[int]]:
        tool: ToolSchema = {"type": "function", "function": {"name": "look", "description": description}}
        read = play(chat, says, seen, (tool,))[1]
        return [[one for one in ids if one in chat.encode_text.control] for ids in read]

    assert control([one[4] for one in script], description) == control(tame)


@pytest.mark.parametrize(
    "family",
    ["qwen2.5", "qwen3", "llama3", "mistral", "gemma", "deepseek", "deepseek-r1", "gemma/never", "gemma/first"],
)
@settings(deadline=None, max_examples=60)
@given(
    script=st.lists(
        st.tuples(st.none() | words, words, st.lists(st.sampled_from(["user", "tool"]), min_size=1, max_size=1)),
        min_size=1,
        max_size=4,
    )
)
def test_every_turn_reads_what_the_template_makes_of_the_conversation(
    family: str, script: list[tuple[str | None, str, list[str]]]
) -> None:
    chat = format_of(family)
    thinks = family in ("qwen3", "deepseek-r1")
    history: list[dict[str, Any]] = [QUESTION.openai()]
    wanted, says, seen = [], [], []
    for thought, answer, roles in script:
        wanted.append(
            chat.tokenizer.apply_chat_template(history, tools=[TOOL], tokenize=False, add_generation_prompt=True)
        )
        says_text = answer
        if thinks and (thought is not None or chat.opens_thought):
            says_text = f"<think>\n{thought or 'hm'}\n</think>\n\n{answer}"
        says.append(chat.answer(says_text.removeprefix(chat.template.opener)))
        roles = ["user"] if family.startswith(("gemma", "mistral")) else roles
        seen.append([Message(role=role, content=f"seen {answer}") for role in roles])  # type: ignore[arg-type]
        history += [{"role": "assistant", "content": says_text}, *(one.openai() for one in seen[-1])]
    _, read, _ = play(chat, says, seen, (TOOL,))
    found = [chat.tokenizer.decode(ids) for ids in read]
    assert found == wanted


def test_only_conversations_with_tools_fork_where_the_template_moves_them() -> None:
    moving = format_of("mistral")
    assert moving.conversation() is None
    assert moving.conversation([TOOL]) is not None
    assert format_of("mistral", "keep").conversation([TOOL]) is None
    for family in PLAIN:
        assert (format_of(family).conversation([TOOL]) is None) == (family != "mistral")


def test_a_conversation_that_the_template_refuses_goes_on_by_suffixes() -> None:
    chat = format_of("mistral")
    says = [chat.answer(one) for one in "abcd"]
    seen = [[Message(role=role, content="ok")] for role in ("tool", "tool", "user", "user")]
    buffer, read, _ = play(chat, says, seen, (TOOL,))
    assert len(buffer.rows()) == 1
    assert "[AVAILABLE_TOOLS]" in chat.tokenizer.decode(read[0])
    for before, said, after in zip(read, says, read[1:], strict=False):
        assert after[: len(before) + len(said)] == before + said


def test_what_the_template_leaves_out_later_stays_where_it_was_read() -> None:
    says = "[INST]{{ message.content }}"
    moves = "[INST]{{ messages[0].content if loop.last and messages[0].role == 'system' }}{{ message.content }}"
    template = MISTRAL.replace(says, moves).replace("{{ raise_exception('no such role') }}", "")
    chat = ChatFormat(tokenizer_with(template, "</s>"))
    conversation = chat.conversation([TOOL])
    assert conversation is not None
    assert conversation.heard([Message(role="system", content="Be exact."), QUESTION]) is not None
    for role in ("tool", "user"):
        conversation.said(chat.answer("a"))
        assert conversation.heard([Message(role=role, content="ok")]) is None


def test_a_thought_stays_while_tools_answer_and_goes_when_the_user_speaks() -> None:
    chat = format_of("qwen3")
    says = [chat.answer(f"<think>\nthought {one}\n</think>\n\nanswer {one}") for one in "abcd"]
    seen = [[Message(role=role, content="ok")] for role in ("tool", "user", "tool", "tool")]
    buffer, read, _ = play(chat, says, seen, (TOOL,))
    shown = [chat.tokenizer.decode(ids) for ids in read]
    assert [[f"thought {one}" in text for one in "abc"] for text in shown] == [
        [False, False, False],
        [True, False, False],
        [False, False, False],
        [False, False, True],
    ]
    assert all(text.count("look") == 1 for text in shown)
    rows = buffer.rows()
    assert [row.sampled_count for row in rows] == [len(says[0]) + len(says[1]), len(says[2]) + len(says[3])]
    assert "answer a" in shown[2]


def test_answers_are_read_again_as_they_were_sampled() -> None:
    chat = format_of("deepseek-r1")
    odd = [*chat.encode_text("t"), *chat.encode_text("h"), *chat.encode_text("e")]  # not how anybody would encode it
    closing = chat.tokenizer.convert_tokens_to_ids("</think>")
    says = [[*chat.encode_text("hm"), closing, *chat.encode_text("\n\n"), *odd, chat.end_id], chat.answer("b")]
    _, read, _ = play(chat, says, [[QUESTION], [QUESTION]])
    text = ",".join(map(str, read[1]))
    assert ",".join(map(str, odd)) in text


def test_a_thought_that_the_prompt_opened_belongs_to_the_message() -> None:
    chat = format_of("deepseek-r1")
    closed, cut = chat.answer("hm\n</think>\n\nso"), chat.encode_text("hm hm")
    _, read, heard = play(chat, [closed, cut, closed], [[QUESTION]] * 3)
    assert [one.content for one in heard[:2]] == ["<think>\nhm\n</think>\n\nso", "<think>\nhm hm"]
    assert "hm hm" in chat.tokenizer.decode(read[2])


def test_thoughts_can_be_kept_in_one_context() -> None:
    chat = format_of("qwen3", "keep")
    says = [chat.answer(f"<think>\nthought {one}\n</think>\n\nanswer") for one in "ab"]
    buffer, read, _ = play(chat, says, [[QUESTION], [QUESTION]])
    assert not buffer.forks
    assert "thought a" in chat.tokenizer.decode(read[1])


class Counting(TextEncoder):
    """A text encoder that remembers what it was asked for."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.asked: list[str] = []

    def __call__(self, text: str, *, after: int | None = None) -> list[int]:
        self.asked.append(text)
        return super().__call__(text, after=after)


@pytest.mark.parametrize("family", ["deepseek-r1", "qwen3"])
def test_a_conversation_that_forks_at_every_turn_encodes_each_message_once(family: str) -> None:
    chat = ChatFormat(tokenizer_of(family))
    says = chat.answer(f"{chat.template.opener or '<think>'}hm</think>so")
    chat.encode_text = counting = Counting(chat.tokenizer)
    conversation = chat.conversation()
    assert conversation is not None
    for turn in range(4):
        assert conversation.heard([Message(role="user", content=f"question {turn}")]) is not None
        conversation.said(says)
    assert [counting.asked.count(f"question {turn}") for turn in range(4)] == [1, 1, 1, 1]


def test_a_fork_has_room_for_what_is_read_anew_and_keeps_hints_apart() -> None:
    chat = format_of("qwen3")
    says = [chat.answer("<think>\nlong long thought\n</think>\n\na"), chat.answer("b")]
    hinted = QUESTION.model_copy(update={"guidance": " hint"})
    engine = Parrot(says)

    async def run() -> TokenBuffer:
        # The first context with another question would not fit; the rewritten one does.
        policy = TokenPolicy(engine, chat, Sampling(), 75)
        session = policy.session(Episode("s", "t", 0, (), 40, 100))
        await session.act([hinted])
        await session.act([QUESTION])
        assert session.tokens is not None
        return session.tokens

    buffer = asyncio.run(run())
    first, second = buffer.rows()
    assert len(first) + len(second) - 2 > 75
    assert first.guided
    assert second.guided
    bare = buffer.without_guidance()
    assert " hint" not in chat.tokenizer.decode(bare.ids)
    assert [row.sampled_count for row in bare.rows()] == [row.sampled_count for row in buffer.rows()]


def test_advantages_do_not_change_when_a_buffer_is_cut_at_its_forks() -> None:
    forked, plain = TokenBuffer(), TokenBuffer()
    for buffer in (forked, plain):
        buffer.append_text([1, 2], 0)
        buffer.append_sampled([3, 4], [-0.5, -0.6], 0)
        if buffer is forked:
            buffer.fork()
            buffer.append_text([1, 2, 4, 9, 9, 9], 0)
        else:
            buffer.append_text([9], 0)
        buffer.append_sampled([5], [-0.7], 1)
    buffers = [forked, plain, plain]
    whole = TokenBatch.of(buffers)
    rewards = [Rewards(outcome=[1.0, 0.0, 0.0], step=[[0.5, 0.25], [0.0, 0.0], [0.0, 0.5]], keep=[True] * 3)]
    advantage_BL = grpo(Credit(*gather_rewards(rewards), whole.turn_BL, whole.sampled_BL), per_turn="to_go")
    batch, rows = Rows.of(buffers)
    cut_BL = rows.cut(advantage_BL, batch.ids_BL.shape[1])
    assert rows.attempt_R.tolist() == [0, 0, 1, 2]
    assert batch.ids_BL[1, :7].tolist() == [1, 2, 4, 9, 9, 9, 5]
    assert batch.sampled_BL.sum() == whole.sampled_BL.sum()
    assert torch.equal(cut_BL[batch.sampled_BL], advantage_BL[whole.sampled_BL])
    assert torch.equal(batch.logp_old_BL[batch.sampled_BL], whole.logp_old_BL[whole.sampled_BL])
    assert torch.equal(rows.join(cut_BL, advantage_BL), advantage_BL * whole.sampled_BL)


def test_forked_attempts_are_trained_in_the_context_in_which_they_were_sampled(lab: Any, tmp_path: Path) -> None:
    model, tokenizer = new_model(TINY, ["12+34"], seed=0, device="cpu")
    asked = "{%- if add_generation_prompt -%}<|assistant|>"
    assert asked in tokenizer.chat_template
    # As in templates that switch thinking off: the prompt writes an empty thought, which the next one drops.
    tokenizer.chat_template = tokenizer.chat_template.replace(asked, asked + "<think></think>")
    export(model, tokenizer, tmp_path / "model")
    # With a KL term every attempt is trained, whatever it scored.
    policy = {"steps": 1, "tasks_per_step": 3, "attempts": 4, "loss_options": {"kl_weight": 0.01}}
    trainer = {"model": {"path": str(tmp_path / "model"), "context_length": 256}, "policy": policy}
    environment = {"id": "agentgym/Calculator-v0", "options": {"max_turns": 3}}
    run = lab.train(trainer=trainer, tasks={"train": 20, "test": 2}, limits=LIMITS, environment=environment)
    attempts = run.read_trajectories(1)
    assert {len(one.tokens.rows()) for one in attempts if one.tokens} >= {3}
    (line,) = [one for one in run.metrics() if "train/drift" in one]
    assert line["train/tokens"] == sum(one.tokens.sampled_count for one in attempts if one.tokens)
    assert line["train/drift"] < 1e-4  # what was sampled is what is trained, token by token
