"""The token buffer is append-only, and the train context is the behaviour context without its hints."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym.errors import HeldOutError
from agentgym.tokens import TokenBuffer, TokenKind
from agentgym.types import Trajectory

pieces = st.lists(st.tuples(st.sampled_from(TokenKind), st.lists(st.integers(0, 99), max_size=3)), max_size=8)


def built(parts: list[tuple[TokenKind, list[int]]]) -> TokenBuffer:
    buffer = TokenBuffer()
    for turn, (kind, ids) in enumerate(parts):
        if kind is TokenKind.SAMPLED:
            buffer.append_sampled(ids, [-0.5 * one for one in ids], turn)
        else:
            buffer.append_text(ids, turn, kind)
    return buffer


@given(pieces)
def test_the_masks_of_the_three_kinds_partition_the_buffer(parts: list[tuple[TokenKind, list[int]]]) -> None:
    buffer = built(parts)
    masks = [buffer.mask(kind) for kind in TokenKind]
    assert all(sum(column) == 1 for column in zip(*masks, strict=True))
    assert buffer.sampled_count == sum(buffer.mask(TokenKind.SAMPLED))
    assert len(buffer) == len(buffer.ids) == len(buffer.turns) == len(buffer.logprobs)


@given(pieces)
def test_removing_guidance_removes_nothing_else(parts: list[tuple[TokenKind, list[int]]]) -> None:
    bare = built([(kind, ids) for kind, ids in parts if kind is not TokenKind.GUIDANCE])
    found = built(parts).without_guidance()
    assert (found.ids, found.kinds, found.logprobs) == (bare.ids, bare.kinds, bare.logprobs)
    assert not found.guided


@given(parts=pieces, forks=st.sets(st.integers(0, 7)))
def test_rows_cut_the_buffer_at_its_forks_and_lose_or_repeat_nothing(
    parts: list[tuple[TokenKind, list[int]]], forks: set[int]
) -> None:
    whole, rows, buffer = built(parts), [TokenBuffer()], TokenBuffer()
    for turn, (kind, ids) in enumerate(parts):
        if turn in forks:
            buffer.fork()
            rows.append(TokenBuffer())
        for one in (buffer, rows[-1]):
            if kind is TokenKind.SAMPLED:
                one.append_sampled(ids, [-0.5 * item for item in ids], turn)
            else:
                one.append_text(ids, turn, kind)
    assert buffer.rows() == rows
    assert buffer.context == rows[-1].ids
    assert (buffer.ids, sum(row.sampled_count for row in rows)) == (whole.ids, whole.sampled_count)
    assert buffer.without_guidance().rows() == [row.without_guidance() for row in rows]


def test_sampled_tokens_cannot_be_appended_without_logprobs() -> None:
    buffer = TokenBuffer()
    with pytest.raises(ValueError, match="use append_sampled"):
        buffer.append_text([1], 0, TokenKind.SAMPLED)
    with pytest.raises(ValueError, match="found 2 ids and 1 logprobs"):
        buffer.append_sampled([1, 2], [0.0], 0)
    assert len(buffer) == 0


def test_a_turn_that_is_over_cannot_be_appended_to() -> None:
    buffer = TokenBuffer()
    buffer.append_text([1], 2)
    with pytest.raises(ValueError, match="it is at turn 2, found turn 1"):
        buffer.append_text([1], 1)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_held_out_trajectory_cannot_become_a_training_sample_and_the_error_names_its_task(split: str) -> None:
    held_out = Trajectory("secret/17", split, (), [], tokens=TokenBuffer([1], [1], [0.0], [0]))  # type: ignore[arg-type]
    with pytest.raises(HeldOutError, match=f"task 'secret/17' belongs to the '{split}' split"):
        held_out.training_tokens()


def test_a_training_trajectory_gives_its_tokens_without_hints() -> None:
    buffer = built([(TokenKind.OBSERVATION, [1]), (TokenKind.GUIDANCE, [2]), (TokenKind.SAMPLED, [3])])
    assert Trajectory("t", "train", (), [], tokens=buffer).training_tokens().ids == [1, 3]


def test_a_trajectory_without_token_ids_cannot_be_trained_on() -> None:
    with pytest.raises(ValueError, match="its engine speaks text only"):
        Trajectory("t", "train", (), []).training_tokens()
