"""Every registered scheme can be named in a recipe with options, is checked when the recipe is loaded, and prices."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from agentgym import registry
from agentgym.env import AgentEnv
from agentgym.errors import AgentgymError, RecipeError, UnknownNameError
from agentgym.guidance import RolloutRequest
from agentgym.policy import ScriptedPolicy
from agentgym.recipe import Recipe
from agentgym.rewards import settlement
from agentgym.rollout import Rollouts
from agentgym.task import Task
from agentgym.testing import ToyEnv
from agentgym.types import Group, Submission, Trajectory, Trust, Verdict

ENV = "tests/Judged-v0"
LADDER = {"no_submission": -1.0, "failed": 0.0, "passed": 1.0}
UNIT = {"no_submission": 0.0, "failed": 0.0, "passed": 1.0}
RATES = {"by": "grader", "rates": {"grade": {"rho0": 0.1, "rho1": 0.2}}, "learn_after": None}
OPTIONS: dict[str, dict[str, Any]] = {
    "backward": RATES,
    "c_grpo": {"rubric": "style", "share": 0.3, "normalise": "group"},
    "clip_delta": {"ladder": LADDER, "score": "judged", "clip": 0.5, "delta": True, "weight": 0.1},
    "fapo": {"ladder": LADDER, "flaw": "style", "penalty": 0.5},
    "forward": {**RATES, "rescale": True},
    "ftrl": {"solved": "judged", "unsolved": "judged", "empty": -0.5, "malformed": -0.3},
    "g_ra": {"ladder": LADDER, "threshold": 1.0, "step_weights": {"valid_calls": 0.1}},
    "gcpo": {"ladder": LADDER, "signal": "judged", "bonus": 0.25, "margin": 0.0},
    "grpo_lambda": {"ladder": LADDER, "penalty": 0.5, "pass_rate": 0.25, "unit": "turns"},
    "outcome": {},
    "prof": {"ladder": LADDER, "score": "judged", "size": 2, "drop": "both"},
    "pure": {"ladder": LADDER, "score": "judged", "temperature": 0.1, "weight": 1.0},
    "renorm": {"ladder": UNIT, "score": "judged"},
    "ungated": {"ladder": LADDER, "step_weights": {"valid_calls": 0.1}},
    "weighted": {"correct": 1.0, "weights": {"style": 0.5}, "without_components": {"no_submission": -0.5}},
}


class JudgedEnv(ToyEnv):
    """Reverse a word under a process judge who likes short messages, and a grader that also looks at style."""

    signals = ("judged",)

    def step(self, action: Any) -> Any:
        found = super().step(action)
        text = action if isinstance(action, str) else action.content
        found[-1]["signals"]["judged"] = 1.0 / (1.0 + len(text) / 20)
        return found

    def grade(self, task: Task, submission: Submission) -> Verdict:
        right = submission.answer == task.hidden.data["answer"]
        level = "passed" if right else "failed"
        return Verdict(value=float(right), level=level, trust=Trust.RPC, components={"style": 0.5})


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    if ENV not in registry.names("envs"):
        registry.register(ENV, JudgedEnv)


def recipe(name: str, **options: Any) -> Recipe:
    """A recipe as its file would give it."""
    reward = {"name": name, "options": options}
    return Recipe.parse({"name": "priced", "environment": {"id": ENV}, "reward": reward})


def attempts(make_env: Any, task: Task) -> Group:
    """A group of real episodes: right at once, right after a call, wrong, and never submitted."""
    gold = task.hidden.data["answer"]
    scripts = [
        [f"```answer\n{gold}\n```"],
        [f"```reverse\n{gold}\n```", f"```answer\n{gold}\n```"],
        ["```answer\nno\n```"],
        ["nothing to say"] * 8,
    ]
    return Group(task.id, [play(make_env, task, lines) for lines in scripts])


def play(make_env: Any, task: Task, lines: list[str]) -> Trajectory:
    """One episode that says these lines."""
    request = RolloutRequest(task, 1, seed=0)
    (group,) = asyncio.run(Rollouts(make_env, ScriptedPolicy(lambda _: lines)).run([request]))
    return group.trajectories[0]


def test_every_scheme_has_options_here() -> None:
    assert set(OPTIONS) == set(registry.names("schemes"))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_recipe_selects_a_scheme_by_name_and_it_prices_a_group(name: str) -> None:
    prepared = recipe(name, **OPTIONS[name]).prepare()
    group = attempts(prepared.make_env, prepared.train[0])
    assert [one.verdict.level for one in group.trajectories if one.verdict] == [
        "passed", "passed", "failed", "no_submission"
    ]  # fmt: skip
    found = prepared.scheme(group)
    assert all(math.isfinite(value) for value in found.returns)
    assert found.keep == ([True, False, True, False] if name == "prof" else [True] * 4)
    kept = [value for value, keep in zip(found.returns, found.keep, strict=True) if keep]
    assert max(kept[:2]) > max(kept[2:] if name != "prof" else kept[1:]), "being right pays more than being wrong"
    assert all(math.isfinite(settlement(prepared.scheme, one)) for one in group.trajectories)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        pytest.param("g_ra", {"ladder": {"failed": 0, "passed": 1}}, "no rung for no_submission", id="missing-rung"),
        pytest.param("g_ra", {"ladder": {**LADDER, "pased": 2}}, "a rung for pased, which the env", id="needless-rung"),
        pytest.param("pure", {"score": "judgd"}, "reads the signal 'judgd'", id="unknown-signal"),
        pytest.param("ungated", {"step_weights": {"valid_cals": 1}}, "signal 'valid_cals'", id="unknown-weight"),
        pytest.param("pure", {"temprature": 1}, "'temprature'; it takes: ladder, score, temp", id="unknown-option"),
        pytest.param("weighted", {"weights": {"style": 1.0}}, "a wrong answer can be worth 1", id="weights-too-heavy"),
        pytest.param("fapo", {"penalty": 2}, "penalty 2 is not below the distance 1", id="penalty-too-heavy"),
        pytest.param("backward", {"rates": {"grade": {"rho0": 0.5, "rho1": 0.5}}}, "tells nothing", id="useless"),
    ],
)
def test_a_scheme_that_cannot_work_is_refused_when_the_recipe_is_prepared(
    name: str, change: dict[str, Any], problem: str
) -> None:
    with pytest.raises(AgentgymError, match=problem):
        recipe(name, **{**OPTIONS[name], **change}).prepare()


def test_a_component_that_the_grader_does_not_give_stops_the_run_in_one_sentence() -> None:
    prepared = recipe("fapo", **{**OPTIONS["fapo"], "flaw": "lucky"}).prepare()
    with pytest.raises(RecipeError, match="has no component 'lucky'; it has style; name one"):
        attempts(prepared.make_env, prepared.train[0])


def test_noise_and_appeals_reach_training_environments_only() -> None:
    plain = {"name": "noisy", "environment": {"id": ENV}}
    noise = {"by": "grader", "rates": {"grade": {"rho0": 0.2, "rho1": 0.3}}, "passed": "passed", "failed": "failed"}
    appeals = {"grader": None, "accepted": 0.5, "rejected": 0.5}
    prepared = Recipe.parse({**plain, "noise": noise, "appeals": appeals}).prepare()
    trained: AgentEnv = prepared.make_training_env()
    assert trained.review is not None
    assert prepared.make_env().review is None
    for one in attempts(prepared.make_training_env, prepared.train[0]).trajectories:
        assert one.verdict is not None
        assert (one.verdict.noise is None) == (one.end != "submitted")
    with pytest.raises(RecipeError, match="would give the level 'solved'"):
        Recipe.parse({**plain, "noise": {**noise, "passed": "solved"}}).prepare()
    with pytest.raises(RecipeError, match=r"name one in appeals\.grader"):
        Recipe.parse({**plain, "appeals": appeals}).prepare()
    with pytest.raises(UnknownNameError, match="no grader is registered as 'functon'; did you mean 'function'"):
        Recipe.parse({**plain, "appeals": {**appeals, "grader": {"name": "functon"}}}).prepare()


@pytest.mark.parametrize("appeals", [None, {"grader": {"name": "function"}, "accepted": 0.5, "rejected": 0.0}])
def test_rates_that_wait_for_appeals_which_never_come_are_refused(appeals: dict[str, Any] | None) -> None:
    plain = {"name": "noisy", "environment": {"id": ENV}, "appeals": appeals}
    reward = {"name": "backward", "options": {**RATES, "learn_after": 10}}
    with pytest.raises(RecipeError, match="the recipe does not send both"):
        Recipe.parse({**plain, "reward": reward}).prepare()
