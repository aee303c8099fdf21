"""Environments keep Gymnasium's contract, answer every mistake, and show nothing that is hidden."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agentgym import registry
from agentgym.env import AgentEnv, Submit, tool
from agentgym.errors import AgentFault, AgentgymError, RecipeError, TaskError, UnknownNameError, VerifierError
from agentgym.rewards import GatedRewards, OutcomeOnly, RewardScheme, UngatedSum
from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym.testing import ToyEnv, check_environment, toy_task
from agentgym.types import Message, Submission, ToolCall, Trust, Verdict

LADDER = {"no_submission": -1.0, "failed": 0.0, "passed": 1.0}


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def only(env: AgentEnv, message: Message | str) -> Message:
    """Return the one observation of a step that ends nothing."""
    observation, reward, terminated, truncated, _ = env.step(message)
    assert (reward, terminated, truncated) == (0.0, False, False)
    return observation[0]


@pytest.fixture
def env() -> AgentEnv:
    made = ToyEnv()
    made.reset(options={"task": toy_task(0)})
    return made


def test_the_toy_environment_passes_the_conformance_checks() -> None:
    check_environment(ToyEnv)


def test_gymnasiums_wrappers_work() -> None:
    wrapped = RecordEpisodeStatistics(TimeLimit(ToyEnv(), max_episode_steps=5))
    wrapped.reset(seed=0, options={"task": toy_task(0)})
    for line in ToyEnv().oracle(toy_task(0)):
        _, _, _, _, info = wrapped.step(line)
    assert info["episode"]["r"] == 1.0


@pytest.mark.parametrize(
    "action",
    [
        pytest.param(call("answer", text="elbram"), id="tagged"),
        pytest.param("```answer\nelbram\n```", id="fenced"),
        pytest.param(
            Message(role="assistant", tool_calls=(ToolCall(name="answer", arguments={"text": "elbram"}),)), id="native"
        ),
    ],
)
def test_an_answer_may_be_given_in_every_way_of_calling_tools(env: AgentEnv, action: Message | str) -> None:
    _, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated, info["end"]) == (1.0, True, False, "submitted")
    assert info["verdict"].passed


@pytest.mark.parametrize(
    ("action", "feedback"),
    [
        pytest.param("hello", "error: no tool call found; call one of: reverse, answer", id="no-call"),
        pytest.param("", "error: no tool call found", id="empty"),
        pytest.param("<tool_call>{</tool_call>", "error: the tool call is not valid JSON", id="bad-json"),
        pytest.param(
            call("anser", text="x"), "error: no tool is registered as 'anser'; did you mean 'answer'?", id="typo"
        ),
        pytest.param(call("answer"), "error: answer: text: Field required", id="missing-argument"),
        pytest.param(call("answer", text=1), "error: answer: text: Input should be a valid string", id="wrong-type"),
        pytest.param(call("__init__"), "error: no tool is registered as '__init__'", id="not-a-tool"),
        pytest.param(call("grade", task=1, submission=2), "error: no tool is registered as 'grade'", id="the-grader"),
    ],
)
def test_a_mistake_is_answered_and_the_episode_goes_on(env: AgentEnv, action: str, feedback: str) -> None:
    assert only(env, action).content.startswith(feedback)


def test_calls_after_a_submission_are_not_made(env: AgentEnv) -> None:
    observation, _, terminated, _, _ = env.step(call("answer", text="x") + call("reverse", text="abc"))
    assert terminated
    assert observation == ()


def test_a_long_observation_is_cut_in_the_middle_and_says_so() -> None:
    made = ToyEnv(observation_limit=100)
    made.reset(options={"task": toy_task(0)})
    shown = only(made, call("reverse", text="b" * 5000 + "a" * 5000)).content
    assert shown.startswith("aaa")
    assert shown.endswith("bbb")
    assert "[… 9900 characters left out …]" in shown
    assert len(shown) < 200


def test_running_out_of_turns_truncates_and_scores_zero(env: AgentEnv) -> None:
    for _ in range(env.max_turns - 1):
        only(env, "hm")
    _, reward, terminated, truncated, info = env.step("hm")
    assert (reward, terminated, truncated, info["end"]) == (0.0, False, True, "turns")
    assert (info["verdict"].value, info["verdict"].level) == (0.0, "no_submission")


def test_an_answer_in_the_last_turn_terminates_and_does_not_truncate() -> None:
    made = ToyEnv(max_turns=1)
    made.reset(options={"task": toy_task(0)})
    assert made.step(call("answer", text="elbram"))[1:4] == (1.0, True, False)


def test_stepping_before_reset_or_after_the_end_asks_for_a_reset(env: AgentEnv) -> None:
    with pytest.raises(gymnasium.error.ResetNeeded):
        ToyEnv().step("x")
    env.step(call("answer", text="x"))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("x")
    env.reset(seed=1)
    env.close()
    env.close()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("x")


def test_the_seed_picks_the_task_and_nothing_else_does() -> None:
    def picked(**options: Any) -> list[str]:
        made = ToyEnv(**options)
        return [made.reset(seed=seed)[1]["task_id"] for seed in range(8)]

    np.random.seed(0)  # the global generator must have no influence
    first = picked()
    np.random.seed(1)
    assert picked() == first
    assert len(set(first)) > 3
    assert all(ToyEnv.tasks[name].split == "test" for name in picked(split="test"))


def test_options_that_reset_does_not_know_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="no reset option is registered as 'tusk'; did you mean 'task'"):
        ToyEnv().reset(options={"tusk": "toy-0"})
    with pytest.raises(UnknownNameError, match="did you mean 'toy-1"):
        ToyEnv().reset(options={"task": "toy_1"})
    with pytest.raises(TypeError, match="wanted the hint as text"):
        ToyEnv().reset(options={"hint": 3})


def test_a_hint_is_shown_with_the_prompt_and_kept_apart_from_it() -> None:
    observation, _ = ToyEnv().reset(options={"task": toy_task(0), "hint": "Think."})
    assert observation[-1].guidance == "\nThink."
    assert "Think." not in observation[-1].content
    assert observation[-1].openai()["content"].endswith("\nThink.")


gold_texts = st.text("abcdefghij0123456789", min_size=12, max_size=20)


@settings(max_examples=40, deadline=None)
@given(gold_texts, st.lists(st.one_of(st.text(max_size=20), st.sampled_from(["tool", "typo", "native"])), max_size=8))
def test_gold_appears_in_no_observation_and_no_info(gold: str, actions: list[str]) -> None:
    assume(gold not in "".join(actions))
    task = Task(
        id="t",
        split="test",
        public=Public(prompt="Say it."),
        hidden=Hidden(data={"answer": gold}, reference={"g": gold}),
    )
    made, known = ToyEnv(render_mode="ansi"), {"tool": call("reverse", text="abc"), "typo": call("revers", text="x")}
    shown = [repr(made.reset(options={"task": task}))]
    for action in actions:
        step = made.step(known.get(action, action))
        shown.append(repr(step))
        if step[2] or step[3]:
            break
    shown += [
        repr(made.task),
        made.render() or "",
        repr(made.step(call("answer", text="wrong")) if made._running else ""),
    ]
    assert gold not in "".join(shown)


schemes: list[RewardScheme] = [
    OutcomeOnly(),
    GatedRewards(ladder=LADDER, threshold=1.0, step_weights={"valid_calls": 0.25, "malformed": -0.1}),
    GatedRewards(ladder=LADDER, threshold=0.0, step_weights={"valid_calls": 0.25}),
    UngatedSum(ladder=LADDER, step_weights={"valid_calls": 0.1}),
]
lines = st.sampled_from(
    [call("reverse", text="ab"), "no call", call("answer", text="elbram"), call("answer", text="x")]
)


@settings(deadline=None)
@given(st.sampled_from(schemes), st.lists(lines, min_size=1, max_size=8))
def test_what_the_steps_pay_is_what_the_scheme_says_of_the_episode(scheme: RewardScheme, script: list[str]) -> None:
    made = ToyEnv(scheme=scheme, max_turns=len(script))
    made.reset(options={"task": toy_task(0)})
    paid = 0.0
    for line in script:
        _, reward, terminated, truncated, info = made.step(line)
        paid += reward
        if terminated or truncated:
            break
    assert paid == made.settle(info["verdict"])


def variant(**members: Any) -> Callable[..., AgentEnv]:
    made: Callable[..., AgentEnv] = type("Variant", (ToyEnv,), members)
    return made


def graded(verdict: Verdict | bool | float) -> AgentEnv:
    made = variant(grade=lambda *_: verdict)()
    made.reset(seed=0)
    return made


def test_a_grader_may_return_a_number_a_truth_value_or_a_verdict() -> None:
    for found, value, level in [(True, 1.0, "passed"), (False, 0.0, "failed"), (0.5, 0.5, "failed")]:
        verdict = graded(found).step(call("answer", text="x"))[4]["verdict"]
        assert (verdict.value, verdict.level) == (value, level)


@pytest.mark.parametrize("value", [2.0, -1.0, float("nan")])
def test_a_grader_that_breaks_its_contract_is_the_verifiers_failure(value: float) -> None:
    with pytest.raises(VerifierError, match="between 0 and 1"):
        graded(value).step(call("answer", text="x"))


def test_a_level_that_the_environment_does_not_declare_is_the_verifiers_failure() -> None:
    odd = Verdict(value=1.0, level="glorious", trust=Trust.RPC)
    with pytest.raises(VerifierError, match="reached the level 'glorious'"):
        graded(odd).step(call("answer", text="x"))


def test_an_unscored_verdict_pays_nothing_and_stays_unscored() -> None:
    unscored = Verdict(value=None, level="unscored", trust=Trust.RPC, error="the grader's sandbox vanished")
    _, reward, terminated, _, info = graded(unscored).step(call("answer", text="x"))
    assert (reward, terminated, info["verdict"].value) == (0.0, True, None)


def test_a_scheme_without_a_rung_is_refused_before_anything_runs() -> None:
    with pytest.raises(RecipeError, match="no rung for no_submission"):
        ToyEnv(scheme=GatedRewards(ladder={"passed": 1.0, "failed": 0.0}, threshold=1.0, step_weights={}))


class MishapEnv(ToyEnv):
    """A tool for every way to fail."""

    @tool
    def complain(self) -> str:
        """Say that the input cannot be used."""
        raise ValueError("no such file")

    @tool
    def blunder(self) -> str:
        """Kill the sandbox."""
        raise AgentFault("your process used up all memory")

    @tool
    def crash(self) -> str:
        """Hit a bug."""
        raise ZeroDivisionError

    @tool
    def hand_in(self) -> str:
        """Submit from deep inside."""
        raise Submit("elbram")

    @tool
    def surrogate(self) -> str:
        """Return what cannot be encoded."""
        return "\udcff"


@pytest.fixture
def mishaps() -> AgentEnv:
    made = MishapEnv()
    made.reset(options={"task": toy_task(0)})
    return made


def test_a_tools_value_error_is_told_to_the_agent(mishaps: AgentEnv) -> None:
    assert only(mishaps, call("complain")).content == "error: no such file"


def test_the_agents_own_fault_ends_the_episode_with_zero(mishaps: AgentEnv) -> None:
    observation, reward, terminated, _, info = mishaps.step(call("blunder"))
    assert observation[0].content == "error: your process used up all memory"
    assert (reward, terminated, info["end"], info["verdict"].value) == (0.0, True, "agent_fault", 0.0)


def test_a_bug_in_a_tool_is_raised_and_is_no_feedback(mishaps: AgentEnv) -> None:
    with pytest.raises(ZeroDivisionError):
        mishaps.step(call("crash"))


def test_submit_may_be_raised(mishaps: AgentEnv) -> None:
    assert mishaps.step(call("hand_in"))[4]["verdict"].passed


def test_an_observation_can_always_be_encoded(mishaps: AgentEnv) -> None:
    assert only(mishaps, call("surrogate")).content == "?"


@settings(deadline=None)
@given(st.text(st.characters(), max_size=80))
def test_no_message_whatever_makes_step_raise(text: str) -> None:
    made = ToyEnv()
    made.reset(seed=0)
    observation, *_ = made.step(text)
    assert made.observation_space.contains(observation)


def test_several_calls_in_one_message_are_all_answered_and_counted(env: AgentEnv) -> None:
    message = call("reverse", text="ab") + call("revers", text="x") + call("reverse", text="cd")
    observation, _, _, _, info = env.step(message)
    assert [one.content for one in observation][::2] == ["ba", "dc"]
    assert (info["signals"]["valid_calls"], info["signals"]["malformed"]) == (2.0, 0.0)


def test_an_environment_says_what_it_lacks() -> None:
    class Bare(AgentEnv):
        """Nothing but the base."""

    with pytest.raises(TaskError, match="Bare has no tasks"):
        Bare()
    bare = Bare(TaskSet("toy", lambda: [toy_task(0)]))
    bare.reset(seed=0)
    with pytest.raises(TaskError, match="declare it with `sandboxed = True`"):
        _ = bare.sandbox
    with pytest.raises(VerifierError, match="no grade method"):
        bare.grade(toy_task(0), Submission(answer="x"))
    with pytest.raises(TaskError, match="has no oracle"):
        bare.oracle(toy_task(0))
    with pytest.raises(TaskError, match="has no task in 'test'"):
        Bare(TaskSet("toy", lambda: [toy_task(0)]), split="test").reset(seed=0)


def test_tools_see_the_public_part_only() -> None:
    class Curious(ToyEnv):
        levels: ClassVar[tuple[str, ...]] = ("no_submission", "failed", "passed")

        @tool
        def look(self) -> str:
            """Show the task."""
            return repr(self.task)

    made = Curious()
    made.reset(options={"task": toy_task(0)})
    assert "elbram" not in only(made, call("look")).content


def test_rendering_shows_the_transcript() -> None:
    made = ToyEnv(render_mode="ansi")
    made.reset(options={"task": toy_task(0), "hint": "Think."})
    made.step(call("reverse", text="ab"))
    shown = made.render()
    assert shown is not None
    assert shown.splitlines()[0] == "[user] Reverse the word 'marble'."
    assert shown.endswith("[tool] ba")
    assert ToyEnv().render() is None


WANT_OPTIONS = {"agentgym/Mcp-v0", "agentgym/OpenEnv-v0", "agentgym/Terminal-v0"}
"""A server, or task files: checked in their own tests."""


@pytest.mark.parametrize(
    "env_id", [one for one in registry.names("envs") if one.startswith("agentgym/") and one not in WANT_OPTIONS]
)
def test_every_installed_environment_passes_the_conformance_checks(env_id: str) -> None:
    probe = registry.make(env_id)
    if probe.sandboxed:
        try:
            probe.sandboxes.check()
        except AgentgymError as missing:
            pytest.skip(f"the environment's sandbox cannot run here: {missing}")
    check_environment(env_id)


def test_a_conformance_check_finds_an_environment_that_never_ends() -> None:
    class Endless(ToyEnv):
        def step(self, action: Message | str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, reward, _, _, info = super().step(action)
            self._running = True
            return observation, reward, False, False, info

    with pytest.raises(AssertionError, match="did not end the episode"):
        check_environment(Endless)


def test_a_conformance_check_finds_an_environment_that_ignores_the_seed() -> None:
    class Restless(ToyEnv):
        count = 0

        def prompt(self) -> Sequence[Message]:
            type(self).count += 1
            return (Message(role="user", content=str(self.count)),)

    with pytest.raises(AssertionError, match=r"two different episodes|[Dd]eterministic"):
        check_environment(Restless)
