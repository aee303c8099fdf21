"""What TRL is handed, without TRL: rows, tasks, methods made of tools, and environments played by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import get_json_schema

from agentgym import registry
from agentgym.env import AgentEnv, Submit, tool
from agentgym.errors import CapabilityError, HeldOutError, MissingExtraError, SandboxError, TaskError, UnknownNameError
from agentgym.recipe import Prepared, Recipe
from agentgym.task import Task
from agentgym.tokens import TokenBuffer, TokenKind
from agentgym.types import Submission
from agentgym_envs.calculator import CalculatorEnv, calculator_tasks
from agentgym_trainers.bridges.trl import TrlBridge
from agentgym_trainers.bridges.trl.environment import TrlEnvironment, environment_class
from agentgym_trainers.bridges.trl.rows import row_of
from agentgym_trainers.bridges.trl.signatures import method_of
from agentgym_trainers.bridges.trl.tasks import Tasks

NOISE = {"by": "grader", "rates": {"grade": {"rho0": 0.3, "rho1": 0.2}}, "passed": "passed", "failed": "failed"}
TASKS = calculator_tasks(train=3, validation=2, test=2, difficulty=0)


class Broken(CalculatorEnv):
    """A calculator whose sandbox fails, or hangs, on demand."""

    tasks = TASKS
    resets = 0
    hang = threading.Event()

    @tool
    def fail(self) -> str:
        """Fail."""
        raise SandboxError("the sandbox is gone")

    @tool
    def wait(self) -> str:
        """Wait."""
        self.hang.wait(20)
        return "done"


class Shy(CalculatorEnv):
    """One that cannot begin."""

    tasks = TASKS
    tries: list[str] = []

    def prompt(self) -> Any:
        self.tries.append(self.task.prompt)
        raise SandboxError("no sandbox starts")


def prepared_of(env: type[AgentEnv] | str, **sections: Any) -> Prepared:
    name = env if isinstance(env, str) else f"tests/Trl{env.__name__}-v0"
    if not isinstance(env, str) and name not in registry.names("envs"):
        registry.register(name, env)
    options = {"tasks": TASKS} if name.startswith("tests/") else {}
    return Recipe.parse({"name": "trl", "environment": {"id": name, "options": options}, **sections}).prepare()


def corrected(name: str, learn_after: int | None) -> dict[str, Any]:
    rates = {"grade": {"rho0": 0.25, "rho1": 0.25}}
    return {"name": name, "options": {"by": "grader", "rates": rates, "learn_after": learn_after}}


def environment_of(env: type[AgentEnv] | str, **sections: Any) -> Any:
    prepared = prepared_of(env, **sections)
    return environment_class(prepared, Tasks(prepared))()


# ------------------------------------------------------------------ rows


def test_a_row_ends_with_the_last_sampled_token_and_masks_what_was_observed() -> None:
    buffer = TokenBuffer()
    buffer.append_text([1, 2], turn=0)
    buffer.append_sampled([3, 4], [-0.1, -0.2], turn=0)
    buffer.append_text([5], turn=0)
    buffer.append_sampled([6], [-0.3], turn=1)
    buffer.append_text([7, 8], turn=1)
    row = row_of(buffer, end_id=9, learn=True)
    assert (row.prompt_ids, row.completion_ids) == ([1, 2], [3, 4, 5, 6])
    assert (row.logprobs, row.env_mask) == ([-0.1, -0.2, 0.0, -0.3], [1, 1, 0, 1])
    assert row_of(buffer, end_id=9, learn=False).env_mask == [0, 0, 0, 0]


@pytest.mark.parametrize("ids", [[], [1, 2]], ids=["no-prompt", "prompt-alone"])
def test_where_nothing_was_sampled_nothing_is_trained(ids: list[int]) -> None:
    buffer = TokenBuffer()
    buffer.append_text(ids, turn=0)
    row = row_of(buffer, end_id=9, learn=True)
    assert row.prompt_ids == (ids or [9])
    assert (row.completion_ids, row.logprobs, row.env_mask) == ([9], [0.0], [0])


def test_a_forked_buffer_is_no_row() -> None:
    buffer = TokenBuffer([1, 2], [int(TokenKind.OBSERVATION), int(TokenKind.SAMPLED)], [0.0, -1.0], [0, 0], [2])
    with pytest.raises(ValueError, match="found a forked one"):
        row_of(buffer, end_id=9, learn=True)


# ------------------------------------------------------------------ tasks


def test_rows_name_training_tasks_only_and_prompts_are_told_apart_by_group() -> None:
    tasks = Tasks(prepared_of(CalculatorEnv))
    rows = tasks.rows()
    assert [row["task"] for row in rows] == [task.id for task in TASKS.split("train")]
    prompts = [row["prompt"] for row in rows for _ in range(2)]
    assert [(task.id, n) for task, n in tasks.runs(prompts, 2)] == [(row["task"], 2) for row in rows]
    assert [n for _, n in tasks.runs(prompts[:2] * 2, 2)] == [2, 2]  # one task, two groups
    with pytest.raises(TaskError, match="be a multiple of num_generations"):
        tasks.runs(prompts[1:], 2)
    with pytest.raises(TaskError, match="found 1 of 1"):
        tasks.runs(prompts[:3], 2)
    with pytest.raises(TaskError, match=r"train on TrlBridge\.dataset"):
        tasks.runs([[{"role": "user", "content": "38+47"}]], 1)


def test_only_training_tasks_of_the_recipe_are_given() -> None:
    tasks = Tasks(prepared_of(CalculatorEnv, tasks={"train": 2}))
    train, (held_out, *_) = list(TASKS.split("train")), TASKS.split("test")
    with pytest.raises(HeldOutError, match="belongs to the 'test' split"):
        tasks[held_out.id]
    with pytest.raises(TaskError, match="not among the recipe's 2 training tasks"):
        tasks[train[2].id]
    with pytest.raises(UnknownNameError):
        tasks["calculator/none"]


# ------------------------------------------------------------------ methods


@pytest.mark.parametrize("name", ["Calculator", "Code", "Sql", "Swe", "Puzzle", "Search", "Tools"])
def test_transformers_reads_our_schemas_back(name: str) -> None:
    env: Any = registry.make(f"agentgym/{name}-v0")
    for one in env.tools_for(next(iter(env.tasks))).values():
        read = get_json_schema(method_of(one.schema, lambda *_: ""))["function"]
        ours = one.schema["function"]
        assert read["name"] == ours["name"]
        assert read["description"] == ours["description"].partition("\nArgs:")[0].strip()
        assert list(read["parameters"]["properties"].keys() ^ ours["parameters"]["properties"].keys()) == []
        assert sorted(read["parameters"].get("required", [])) == sorted(ours["parameters"].get("required", []))
        for argument, shape in ours["parameters"]["properties"].items():
            if "type" in shape:
                assert read["parameters"]["properties"][argument]["type"] == shape["type"]


def test_what_no_type_hint_says_is_told_as_a_schema() -> None:
    properties = {
        "size": {"type": "integer", "minimum": 1, "description": "How\nmany."},
        "kind": {"enum": ["a", "b"]},
        "names": {"type": "array", "items": {"type": "string"}},
        "either": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "place": {"type": "object", "properties": {"x": {"type": "number"}}},
    }
    schema = {"name": "draw", "description": "Draw.", "parameters": {"properties": properties, "required": ["size"]}}
    method = method_of({"type": "function", "function": schema}, lambda *_: "")
    read = get_json_schema(method)["function"]["parameters"]
    assert read["required"] == ["size"]
    shown = read["properties"]
    assert shown["size"] == {"type": "integer", "description": 'How many. As a JSON schema: {"minimum": 1}.'}
    assert shown["kind"]["enum"] == ["a", "b"]
    assert shown["names"]["items"] == {"type": "string"}
    assert (shown["either"]["type"], shown["either"]["nullable"]) == ("string", True)
    assert '"x": {"type": "number"}' in shown["place"]["description"]


@pytest.mark.parametrize("name", ["reset", "get_reward", "_hidden", "two words"])
def test_a_tool_that_cannot_be_a_method_is_refused(name: str) -> None:
    schema = {"function": {"name": name, "description": "x", "parameters": {"properties": {}}}}
    with pytest.raises(CapabilityError, match="cannot be the name of one; use rollout_func"):
        method_of(schema, lambda *_: "")


# ------------------------------------------------------------------ environments


def test_an_environment_pays_what_its_verdict_is_worth_and_can_be_used_again() -> None:
    env = environment_of(CalculatorEnv)
    task = next(iter(TASKS.split("train")))
    for _ in range(2):
        assert env.reset(task=task.id, prompt=[]) == task.public.prompt
        assert env.calc(expression=task.public.prompt) == task.hidden.data["answer"]
        assert env.calc(expression="1") == "error: wanted a+b or a-b"
        assert "Field required" in env.calc()
        assert env.answer(value=task.hidden.data["answer"]) == "the episode is over"
        assert env.answer(value="1") == "the episode is over"
        assert env.get_reward() == env.get_reward() == 1.0
    env.reset(task=task.id)
    assert env.answer(value="-1") == "the episode is over"
    assert env.get_reward() == 0.0
    env.reset(task=task.id)
    assert env.get_reward() == 0.0  # nothing was handed in


def test_step_rewards_are_part_of_the_return() -> None:
    ladder = {"no_submission": -1.0, "failed": 0.0, "passed": 1.0}
    reward = {"name": "g_ra", "options": {"ladder": ladder, "threshold": 1.0, "step_weights": {"valid_calls": 0.25}}}
    env = environment_of(CalculatorEnv, reward=reward)
    task = next(iter(TASKS.split("train")))
    env.reset(task=task.id)
    env.calc(expression="1+1")
    env.answer(value=task.hidden.data["answer"])
    assert env.get_reward() == 1.5
    env.reset(task=task.id)
    env.calc(expression="1+1")
    assert env.get_reward() == -1.0  # no step reward without the outcome


def test_a_failing_machine_leaves_an_episode_unscored() -> None:
    env = environment_of(Broken)
    env.reset(task=next(iter(TASKS.split("train"))).id)
    assert env.fail() == "the episode is over"
    assert env.get_reward() is None


def test_an_episode_that_cannot_begin_is_tried_again_and_then_unscored() -> None:
    env = environment_of(Shy, limits={"retries": 1, "retry_wait_s": 0})
    task = next(iter(TASKS.split("train")))
    assert env.reset(task=task.id) == task.public.prompt
    assert len(Shy.tries) == 2
    assert env.calc(expression="1+1") == "the episode is over"
    assert env.get_reward() is None


def test_a_turn_that_takes_too_long_is_the_agents_loss() -> None:
    env = environment_of(Broken, limits={"turn_timeout_s": 0.2})
    env.reset(task=next(iter(TASKS.split("train"))).id)
    try:
        assert env.wait() == "the episode is over"
        assert env.get_reward() == 0.0
    finally:
        Broken.hang.set()


def test_a_held_out_task_is_refused() -> None:
    env = environment_of(CalculatorEnv)
    with pytest.raises(HeldOutError):
        env.reset(task=next(iter(TASKS.split("validation"))).id)


class Changing(CalculatorEnv):
    """One whose tools depend on the task."""

    def tools_for(self, task: Task) -> Any:
        return dict(list(self.tools.items())[: 2 if task.id == next(iter(TASKS)).id else 3])


class Pacing(CalculatorEnv):
    """One with a curriculum."""

    paced = True


class Chatty(CalculatorEnv):
    """One that talks."""

    conversational = True

    def on_text(self, text: str) -> Submit:
        return Submit(text)

    def grade(self, task: Task, submission: Submission) -> bool:
        return False


def test_environments_that_trl_cannot_play_are_refused() -> None:
    with pytest.raises(CapabilityError, match="talks with its agent"):
        environment_of(Chatty)
    with pytest.raises(CapabilityError, match="Pacing changes as training goes on"):
        environment_of(Pacing)
    options = {"ladder": {"no_submission": 0.0, "failed": 0.0, "passed": 1.0}, "score": "valid_calls", "size": 2,
               "drop": "both"}  # fmt: skip
    with pytest.raises(CapabilityError, match="ProcessFilter compares the attempts"):
        environment_of(CalculatorEnv, reward={"name": "prof", "options": options})
    with pytest.raises(CapabilityError, match="BackwardCorrection corrects rewards, which TRL's advantages may undo"):
        environment_of(CalculatorEnv, reward=corrected("backward", None))
    env = environment_of(Changing)
    first, second, *_ = TASKS
    env.reset(task=first.id)
    with pytest.raises(CapabilityError, match=r"those of 'calculator/.*' differ; use rollout_func"):
        env.reset(task=second.id)


def test_code_is_tested_and_judged_in_sandboxes() -> None:
    try:
        registry.create("sandboxes", "process").check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    prepared = prepared_of("agentgym/Code-v0", tasks={"train": 1, "validation": 1, "test": 1})
    env = environment_class(prepared, Tasks(prepared))()
    assert isinstance(env, TrlEnvironment)
    (task,) = prepared.train
    code = env.reset(task=task.id)
    wrong: Any = code.replace("?", "0")
    said = vars(type(env))["test"](env, code=wrong)
    right = code.replace("?", said.split()[-1])
    vars(type(env))["submit"](env, code=right)
    assert env.get_reward() == 1.0


# ------------------------------------------------------------------ without TRL


@pytest.mark.skipif(find_spec("trl") is not None, reason="TRL is installed here")
def test_without_trl_one_sentence_says_how_to_get_it() -> None:
    with pytest.raises(
        MissingExtraError, match=r'TRL is not installed; add it with: pip install "agentgym-rlvr\[trl\]"'
    ):
        TrlBridge.of("agentgym/Calculator-v0")


@pytest.fixture
def trl_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Return what makes a release of TRL look installed, as far as its metadata go."""

    def said(release: str) -> None:
        folder = tmp_path / f"trl-{release}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: trl\nVersion: {release}\n")
        monkeypatch.syspath_prepend(tmp_path)

    return said


def test_a_release_of_trl_that_counts_unscored_attempts_as_zeros_is_refused(trl_said: Callable[[str], None]) -> None:
    trl_said("1.9.2")
    with pytest.raises(CapabilityError, match=r"wanted TRL 1\.16 or newer, found 1\.9\.2"):
        TrlBridge(prepared_of(CalculatorEnv))


def test_what_trl_would_ignore_of_a_recipe_is_refused_or_told(
    trl_said: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    trl_said("1.16.0")
    with pytest.raises(CapabilityError, match="gives no hints; leave out `guidance`"):
        TrlBridge(prepared_of(CalculatorEnv, guidance={"name": "guide"}))
    appeals = {"grader": None, "accepted": 1.0, "rejected": 1.0}
    with pytest.raises(CapabilityError, match="BackwardCorrection learns"):
        TrlBridge(prepared_of(CalculatorEnv, reward=corrected("backward", 5), appeals=appeals, noise=NOISE))
    TrlBridge(prepared_of(CalculatorEnv, trainer={"name": "native", "policy": {"steps": 5}}))
    assert "trainer section is not read" in caplog.text
    rows = TrlBridge(prepared_of(CalculatorEnv)).dataset()
    assert rows["task"][:] == [task.id for task in TASKS.split("train")]
