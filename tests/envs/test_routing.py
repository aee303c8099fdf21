"""Routing: whom to ask is decided by what it costs and by who knows, and neither extreme is best."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import openai_server
import pytest

from agentgym import redteam
from agentgym.errors import AgentgymError, InfrastructureError
from agentgym.rewards import OutcomeOnly
from agentgym.task import Task
from agentgym.testing import check_environment
from agentgym_envs.routing.env import RoutingEnv
from agentgym_envs.routing.models import ScriptedModel
from agentgym_envs.routing.tasks import generate

Chooses = Callable[[int], str]
ENDPOINT = {"url": "http://localhost/v1", "model": "m"}


def ask(model: str, question: str) -> str:
    call = {"name": "ask", "arguments": {"model": model, "question": question}}
    return f"<tool_call>{json.dumps(call)}</tool_call>"


def play(env: RoutingEnv, task: Task, chooses: Chooses) -> float:
    """Ask about every town whom `chooses` names by its size, and combine what is heard; return what is paid."""
    env.reset(seed=0, options={"task": task})
    towns: Any = task.public.data["towns"]
    heard = []
    for name, one in towns.items():
        observation, *_ = env.step(ask(chooses(one["people"]), f"When was the town hall of {name} opened?"))
        heard.append(int(observation[0].content.rstrip(".").split()[-1]))
    found = abs(heard[0] - heard[1]) if len(heard) == 2 else max(heard)
    *_, reward, terminated, _, _ = env.step(f"```answer\n{found}\n```")
    assert terminated
    return reward


def by_size(people: int) -> str:
    return "small" if people >= 100_000 else "medium" if people >= 10_000 else "large"


def _people(task: Task) -> int:
    towns: Any = task.public.data["towns"]
    return min(int(one["people"]) for one in towns.values())


def test_the_environment_keeps_every_promise() -> None:
    check_environment("agentgym/Routing-v0", count=50)


@pytest.mark.parametrize("difficulty", [0, 1, 2])
def test_who_asks_only_the_cheapest_or_only_the_dearest_loses_to_a_router(difficulty: int) -> None:
    env = RoutingEnv(difficulty=difficulty, count=1)
    tasks = [generate(seed, difficulty) for seed in range(120)]
    agents: dict[str, Chooses] = {
        "router": by_size, "cheapest": lambda _: "small", "middle": lambda _: "medium", "dearest": lambda _: "large",
    }  # fmt: skip
    paid = {name: fmean(play(env, task, chooses) for task in tasks) for name, chooses in agents.items()}
    assert max(paid, key=lambda name: paid[name]) == "router"
    assert paid["router"] > paid["dearest"] + 0.05
    assert paid["router"] > paid["cheapest"] + 0.3


def test_what_is_paid_is_the_verdict_minus_what_was_spent() -> None:
    task = generate(3, 1)
    env = RoutingEnv(cost_weight=0.01)
    env.reset(seed=0, options={"task": task})
    towns: Any = task.public.data["towns"]
    first, second = towns
    *_, info = env.step(f"{ask('large', f'About {first}?')}\n{ask('small', f'About {second}?')}")
    assert info["signals"]["cost"] == 11.0
    _, reward, *_, info = env.step("```answer\n-1\n```")
    assert reward == pytest.approx(-0.11)
    assert info["verdict"].value == 0.0
    env.reset(seed=0, options={"task": task})
    env.step(ask("large", f"About {first}?"))
    *_, info = env.step(f"```answer\n{task.hidden.reference['answer']}\n```")
    assert info["verdict"].value == 1.0
    assert env.settle(info["verdict"]) == pytest.approx(0.9)


def test_a_model_that_does_not_know_is_sure_of_itself_and_says_the_same_again() -> None:
    tasks = [generate(seed, 0) for seed in range(50)]
    task = next(one for one in tasks if by_size(_people(one)) == "large")
    env = RoutingEnv()
    env.reset(seed=0, options={"task": task})
    said = [env.step(ask("small", task.public.prompt))[0][0].content for _ in range(2)]
    assert said[0] == said[1]
    assert str(task.hidden.reference["answer"]) not in said[0]
    assert str(task.hidden.reference["answer"]) in env.step(ask("large", task.public.prompt))[0][0].content
    assert "did you mean 'large'" in env.step(ask("larg", "?"))[0][0].content


@pytest.mark.parametrize("difficulty", [0, 1, 2])
def test_no_attack_scores(difficulty: int) -> None:
    def make() -> RoutingEnv:
        return RoutingEnv(difficulty=difficulty)

    task = generate(11, difficulty)
    target = redteam.target_of(make, task)
    attacks = redteam.attacks_on(target, make())
    assert {"recites every year", "lets a model say the answer", "uses ask often"} <= {one.name for one in attacks}
    for attack in attacks:
        assert redteam.run(make, target, attack).held, attack.name


def test_real_models_are_asked_over_http_about_questions_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"question": "What is the capital of Norway?", "answer": ["Oslo"]}), encoding="utf-8")
    with openai_server.endpoint(lambda _: openai_server.say("It is Oslo.")) as endpoint:
        spec = {"price": 2, "about": "geography", "endpoint": {"url": endpoint.url, "model": "m"}}
        env = RoutingEnv(path=str(file), models={"a": spec, "b": spec}, scheme=OutcomeOnly())
        observation, _ = env.reset(seed=0)
        assert "- a, 2 a question: geography" in observation[0].content
        observation, *_, info = env.step(ask("a", "Capital of Norway?"))
        assert (observation[0].content, info["signals"]["cost"]) == ("It is Oslo.", 2.0)
        _, reward, *_ = env.step("```answer\nOslo\n```")
    assert reward == 1.0
    assert endpoint.bodies[-1]["messages"] == [{"role": "user", "content": "Capital of Norway?"}]


def test_an_endpoint_that_is_broken_is_an_infrastructure_failure_and_one_that_refuses_is_told(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"question": "?", "answer": "yes"}), encoding="utf-8")
    for status, broken in ((400, False), (403, True)):
        with openai_server.endpoint(lambda _, code=status: openai_server.refuse(code)) as endpoint:  # type: ignore[misc]
            spec = {"price": 2, "about": "", "endpoint": {"url": endpoint.url, "model": "m"}}
            env = RoutingEnv(path=str(file), models={"a": spec, "b": spec})
            env.reset(seed=0)
            if broken:
                with pytest.raises(InfrastructureError, match="status 403"):
                    env.step(ask("a", "?"))
            else:
                observation, *_, info = env.step(ask("a", "?"))
                assert "the model refuses this question" in observation[0].content
                assert "cost" not in info["signals"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"models": {"a": {"price": 1, "about": "", "knows": 1}}}, "at least two models"),
        ({"models": {"a": {"price": 0, "about": "", "knows": 1}, "b": {}}}, "malformed: price"),
        ({"models": {name: {"price": 1, "about": ""} for name in "ab"}}, "either `knows`"),
        ({"models": {name: {"price": 1, "about": "", "endpoint": ENDPOINT} for name in "ab"}}, "wanted questions as"),
        ({"cost_weight": -1.0}, "cost_weight of at least 0"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_in_one_sentence(options: dict[str, Any], told: str) -> None:
    with pytest.raises((AgentgymError, ValueError), match=told):
        RoutingEnv(**options)
    with pytest.raises(ValueError, match="difficulty of 0, 1 or 2"):
        generate(0, 3)


def test_how_far_off_a_model_is_cannot_be_learned_for_a_town() -> None:
    model = ScriptedModel("small", 5000)
    heard = [model.ask("Lundby?", {"Lundby": {"people": 900, "opened": year}}, 0) for year in range(1800, 1840)]
    assert len({int(one.rstrip(".").split()[-1]) - year for year, one in enumerate(heard, 1800)}) > 10
