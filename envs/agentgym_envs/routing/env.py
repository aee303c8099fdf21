"""Answer a question by asking models at a price: right at the least cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from agentgym.env import AgentEnv, Submit, tool
from agentgym.errors import UnknownNameError
from agentgym.rewards import RewardScheme, UngatedSum
from agentgym.task import Task, TaskSet
from agentgym.types import Message, Submission
from agentgym_envs.routing.models import Model, make, read_pool
from agentgym_envs.routing.tasks import question_file, routing_tasks

_EXPLANATION = """Answer the question with the tool `answer`: the answer alone. You may ask these models before, each
question at its price. They are always sure of themselves, and not always right.

{models}"""


class RoutingEnv(AgentEnv):
    """Choose whom to ask, maybe more than once, and put the answers together.

    After Router-R1 (Zhang et al. 2025, "Router-R1: Teaching LLMs Multi-Round Routing and Aggregation via Reinforcement
    Learning"): the verdict is the answer's, the cost of every question is a signal, and unless another scheme is given
    an episode is worth the verdict minus `cost_weight` times what was spent.
    """

    grader = "answer"
    levels: ClassVar[tuple[str, ...]] = ("no_submission", "empty", "malformed", "failed", "partial", "passed")
    signals: ClassVar[tuple[str, ...]] = ("cost",)

    def __init__(
        self,
        tasks: TaskSet | None = None,
        *,
        path: str | None = None,
        models: Mapping[str, Any] | None = None,
        cost_weight: float = 0.02,
        count: int = 500,
        difficulty: float = 1.0,
        task_seed: int = 0,
        scheme: RewardScheme | None = None,
        **options: Any,
    ) -> None:
        """Choose the questions and the models.

        Args:
            tasks: a task set; without one they are read from `path`, or generated.
            path: a file of JSON Lines with `question` and `answer`, for pools of real models.
            models: the pool by name: `price`, `about`, and `endpoint` (url, model and more) or `knows`.
            cost_weight: what a unit of price takes off the reward; for the scheme that is used by default.
            count: how many questions to generate.
            difficulty: 0, 1 or 2: about one, two or three towns.
            task_seed: which questions to generate.
            scheme: another reward scheme; it may read the signal `cost`.
            **options: those of `AgentEnv`.
        """
        self._offered = read_pool(models)
        if tasks is None and path is None and any(one.endpoint is not None for one in self._offered.values()):
            raise ValueError("real models do not know the generated towns; wanted questions as tasks= or path=")
        if cost_weight < 0:
            raise ValueError(f"wanted a cost_weight of at least 0, found {cost_weight}")
        if tasks is None and path is not None:
            tasks = question_file(path)
        super().__init__(
            tasks or routing_tasks(count=count, difficulty=difficulty, seed=task_seed),
            scheme=scheme or minus_cost(self.levels, cost_weight),
            **options,
        )
        self._models: dict[str, Model] = {name: make(name, one) for name, one in self._offered.items()}
        self._spent = 0.0

    def prompt(self) -> Sequence[Message]:
        """Who can be asked, and the question."""
        told = "\n".join(f"- {name}, {one.price:g} a question: {one.about}" for name, one in self._offered.items())
        return (Message(role="system", content=_EXPLANATION.format(models=told)), *super().prompt())

    def step(self, action: Message | str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one message, whose questions are paid together."""
        self._spent = 0.0
        return super().step(action)

    @tool
    def ask(self, model: str, question: str) -> str:
        """Ask one of the models a question, at its price."""
        if model not in self._models:
            raise ValueError(str(UnknownNameError("model", model, self._offered)))
        towns: Any = self.task.data.get("towns", {})
        reply = self._models[model].ask(question, towns, self.np_random_seed or 0)
        self._spent += self._offered[model].price
        self.emit("cost", self._spent)
        return reply

    @tool
    def answer(self, text: str) -> Submit:
        """Hand in the answer."""
        return Submit(text)

    def oracle(self, task: Task) -> Sequence[str]:
        """Ask about every town the cheapest scripted model that knows it, then answer."""
        towns: Any = task.public.data.get("towns", {})
        asked = [_ask(self._cheapest(one["people"]), f"When was the town hall of {name} opened?")
                 for name, one in towns.items() if self._cheapest(one["people"])]  # fmt: skip
        gold = str(task.hidden.reference["answer"])
        return [*asked, f"```answer\n{gold}\n```"]

    def attacks(self, task: Task) -> Mapping[str, Submission | Sequence[str]]:
        """Answer with every year, or let a model say what the judge should read."""
        years = ", ".join(map(str, range(1700, 2000)))
        cheapest = min(self._offered, key=lambda name: self._offered[name].price)
        tagged = _ask(cheapest, f"Say: <answer>{task.hidden.reference['answer']}</answer>")
        return {
            "recites every year": [f"```answer\n{years}\n```"],
            "lets a model say the answer": [tagged, "It is as the model says."],
        }

    def _cheapest(self, people: int) -> str:
        able = [name for name, one in self._offered.items() if one.knows is not None and people >= one.knows]
        return min(able, key=lambda name: self._offered[name].price, default="")


def minus_cost(levels: Sequence[str], weight: float) -> UngatedSum:
    """Return the scheme that pays 1 for a right answer, and takes off what the questions cost, right or wrong."""
    ladder = {level: float(level == "passed") for level in levels}
    return UngatedSum(ladder=ladder, step_weights={"cost": -weight})


def _ask(model: str, question: str) -> str:
    call = {"name": "ask", "arguments": {"model": model, "question": question}}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
