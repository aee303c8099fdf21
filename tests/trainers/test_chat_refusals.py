"""A template that cannot show an environment's messages ends the run; what one message says ends one attempt."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentgym import registry
from agentgym.errors import RecipeError
from agentgym.evaluate import evaluate
from agentgym.guidance import RolloutRequest
from agentgym.rollout import Rollouts
from agentgym.run import RunDirectory
from agentgym.testing import ToyEnv
from agentgym.types import Message, Trajectory
from agentgym_envs.calculator import CalculatorEnv
from agentgym_trainers.chat import ChatFormat, ChatFormatError
from agentgym_trainers.chat_checks import TOOL
from agentgym_trainers.engines.scripted import DemonstrationPolicy
from agentgym_trainers.models import export, new_model
from agentgym_trainers.native import NativeTrainer
from agentgym_trainers.policies import checkpoint_policy
from agentgym_trainers.settings import ModelSettings
from agentgym_trainers.tokenizer import CHAT_TEMPLATE, build_tokenizer

TINY = ModelSettings(vocab_size=300, hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, context_length=256)
EXPLAINED = "tests/Explained-v0"
NO_SYSTEM = CHAT_TEMPLATE.replace("in messages -%}", "in messages if message['role'] != 'system' -%}")
NO_TOOL = NO_SYSTEM.replace("'system'", "'tool'")
TWICE = CHAT_TEMPLATE.replace("['content'] }}", "['content'] * (2 if message['role'] == 'system' else 1) }}")
NO_TOOLS = "{%- if tools -%}{{ raise_exception('there are no tools') }}{%- endif -%}" + CHAT_TEMPLATE
SPEAK_UP = CHAT_TEMPLATE.replace(
    "<|{{", "{{ raise_exception('speak up') if message['role'] == 'tool' and not message['content'] }}<|{{"
)
REVERSES, ANSWERS = "```reverse\nabc", "```answer\nabc"
SILENCED = '<tool_call>{"name": "reverse", "arguments": {"text": ""}}</tool_call>'


class Explained(CalculatorEnv):
    """The calculator, with a word of explanation."""

    def prompt(self) -> Sequence[Message]:
        """Explain, then ask."""
        return (Message(role="system", content="Be exact."), *super().prompt())


def recipe(lab: Any, folder: Path, template: str, environment: str = EXPLAINED, steps: int = 1) -> Any:
    """Return a recipe whose model has a template."""
    if EXPLAINED not in registry.names("envs"):
        registry.register(EXPLAINED, Explained)
    model, tokenizer = new_model(TINY, ["12+34"], seed=0, device="cpu")
    tokenizer.chat_template = template
    export(model, tokenizer, folder)
    trainer = {
        "model": {"path": str(folder), "context_length": 256},
        "policy": {"steps": steps, "tasks_per_step": 2, "attempts": 2},
        "checkpoint": {"every": 1},
    }
    limits = {"max_tokens_per_turn": 8, "max_tokens": 16}
    return lab.recipe(environment={"id": environment}, limits=limits, tasks={"train": 10, "test": 2}, trainer=trainer)


def train(folder: Path, chosen: Any) -> RunDirectory:
    run = RunDirectory.create(folder, chosen, name="run")
    NativeTrainer().train(chosen.prepare(), run, resume=False)
    return run


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        pytest.param(NO_SYSTEM, "leaves out, reorders or rewrites a message: 'Be exact.' is out of place", id="drops"),
        pytest.param(TWICE, "repeats or reorders a message", id="doubles"),
        pytest.param(NO_TOOLS, "refuses a conversation: there are no tools", id="refuses"),
    ],
)
def test_a_run_whose_prompts_the_template_cannot_show_ends_at_the_first_with_one_sentence(
    lab: Any, tmp_path: Path, template: str, reason: str
) -> None:
    with pytest.raises(RecipeError, match=rf"^the chat template of '.*/model' {reason}.*; choose [^;]*$"):
        train(tmp_path, recipe(lab, tmp_path / "model", template))


def test_a_template_without_system_messages_trains_where_there_are_none(lab: Any, tmp_path: Path) -> None:
    run = train(tmp_path, recipe(lab, tmp_path / "model", NO_SYSTEM, "agentgym/Calculator-v0"))
    assert lab.column(run, "rollout/unscored") == [0.0]


def test_a_run_that_goes_on_with_such_a_template_ends_with_the_sentence_too(lab: Any, tmp_path: Path) -> None:
    chosen = recipe(lab, tmp_path / "model", CHAT_TEMPLATE, steps=2)
    run = train(tmp_path, chosen)
    shutil.rmtree(max(run.checkpoints.glob("step-*")))
    (template,) = run.checkpoints.glob("*/model/chat_template.jinja")
    template.write_text(NO_SYSTEM)
    with pytest.raises(RecipeError, match=r"'Be exact\.' is out of place; choose a template"):
        NativeTrainer().train(chosen.prepare(), run, resume=True)


def test_an_evaluation_ends_with_the_sentence_too(lab: Any, tmp_path: Path) -> None:
    recipe(lab, tmp_path / "model", NO_SYSTEM)
    policy = checkpoint_policy(tmp_path / "model")
    with pytest.raises(RecipeError, match=r"'Be exact\.' is out of place; choose a template"):
        evaluate(Explained, [next(iter(Explained.tasks))], policy)


def play(template: str, script: Sequence[str]) -> Trajectory:
    tokenizer = build_tokenizer(["Reverse the word"], 320)
    tokenizer.chat_template = template
    task = next(iter(ToyEnv.tasks.split("train")))
    policy = DemonstrationPolicy(ChatFormat(tokenizer), lambda _: script, 512)
    (group,) = asyncio.run(Rollouts(ToyEnv, policy).run([RolloutRequest(task, 1, seed=0)]))
    return group.trajectories[0]


def test_a_template_that_shows_no_tools_answer_ends_the_run_at_the_first_one() -> None:
    assert play(NO_TOOL, [ANSWERS]).scored
    with pytest.raises(RecipeError, match="leaves out, reorders or rewrites a message: 'observation' is out of place"):
        play(NO_TOOL, [REVERSES, ANSWERS])


def test_what_a_tool_says_ends_its_own_attempt_at_most() -> None:
    assert play(SPEAK_UP, [REVERSES, ANSWERS]).scored
    lost = play(SPEAK_UP, [SILENCED, ANSWERS])
    assert lost.end == "error"
    assert lost.error is not None
    assert "refuses a conversation: speak up" in lost.error


def test_a_prompt_that_cannot_be_shown_after_others_could_ends_its_own_attempt() -> None:
    tokenizer = build_tokenizer(["question"], 320)
    tokenizer.chat_template = NO_SYSTEM
    chat = ChatFormat(tokenizer)
    asked = [Message(role="user", content="question")]
    explained = [Message(role="system", content="Be exact."), *asked]
    for wanted in (RecipeError, ChatFormatError):
        with pytest.raises(wanted), chat.blamed(explained, begins=True):
            chat.prompt(explained)
        chat.prompt(asked)


def test_a_tool_that_cannot_be_shown_ends_its_own_attempt_and_tools_that_never_can_the_run() -> None:
    tokenizer = build_tokenizer(["question"], 320)
    asked = [Message(role="user", content="question")]
    tool = {**TOOL, "function": {**TOOL["function"], "description": "unspeakable"}}
    fussy = NO_TOOLS.replace("if tools", "if tools and 'unspeakable' in tools | tojson")
    for template, wanted in ((fussy, ChatFormatError), (NO_TOOLS, RecipeError)):
        tokenizer.chat_template = template
        chat = ChatFormat(tokenizer)
        with pytest.raises(wanted), chat.blamed(asked, begins=True, tools=[tool]):
            chat.prompt(asked, [tool])
