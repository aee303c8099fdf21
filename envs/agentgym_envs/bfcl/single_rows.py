"""BFCL's single questions, from files that the user points at or from seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import JsonValue

from agentgym.errors import TaskError
from agentgym.sampling import derive_seed
from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym.tools import SchemaTool
from agentgym_envs.bfcl.matching import Acceptable, example, matches
from agentgym_envs.code.splits import digest, split_of
from agentgym_envs.rows import Placed, Refused, RowTasks, json_lines

DECLINE = "no_tool_fits"
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "hashtable": "object", "char": "string"}


class SingleTurnTasks(RowTasks):
    """The rows of `BFCL_*.json` in a folder, with the acceptable calls in its folder `possible_answer`.

    In files of irrelevance the right answer is to call `no_tool_fits`. Rows whose acceptable calls are not told, or do
    not fit their functions, are refused with the reason.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        super().__init__("bfcl_single", self._placed, self._task, lambda row: str(row["id"]))

    def _placed(self) -> Iterator[Placed]:
        files = sorted(self.folder.glob("BFCL_*.json"))
        if not files:
            raise TaskError(f"no file BFCL_*.json in {self.folder}; wanted BFCL's single-turn files")
        for file in files:
            for place, text in json_lines(file):
                yield place, json.loads(text)

    @cached_property
    def _answers(self) -> dict[str, Any]:
        files = sorted((self.folder / "possible_answer").glob("BFCL_*.json"))
        rows = (json.loads(text) for file in files for _, text in json_lines(file))
        return {row["id"]: row["ground_truth"] for row in rows}

    def _task(self, row: Mapping[str, Any]) -> Task:
        declined = "irrelevance" in row["id"]
        wanted = [{DECLINE: {}}] if declined else self._answers.get(row["id"])
        if not wanted:
            raise Refused("its acceptable calls are not told, so any call would do")
        task = to_task(row, wanted)
        _require_fitting(task)
        return task


def to_task(row: Mapping[str, Any], wanted: Sequence[Acceptable]) -> Task:
    """Return a row, and the calls that will do, as a task."""
    prompt = "\n".join(one["content"] for turn in row["question"] for one in turn)
    return Task(
        id=row["id"],
        split=split_of(digest(prompt)),  # several rows may ask the same
        public=Public(
            prompt=prompt,
            data={"functions": cast(JsonValue, [_function(one) for one in row["function"]])},
        ),
        hidden=Hidden(data={"wanted": json.dumps(wanted)}),
        difficulty=float(len(wanted)),
    )


def wanted_of(task: Task) -> list[Any]:
    """Return a task's acceptable calls."""
    found: list[Any] = json.loads(cast(str, task.hidden.data["wanted"]))
    return found


def functions_of(task: Task) -> dict[str, SchemaTool]:
    """Return a task's functions as tools."""
    functions: Any = task.public.data["functions"]
    return {one["name"]: SchemaTool(one["name"], one["description"], one["parameters"]) for one in functions}


def _require_fitting(task: Task) -> None:
    """Refuse a row whose own example could not be sent, or would not be accepted."""
    wanted = wanted_of(task)
    calls = [example(one) for one in wanted]
    try:
        tools = functions_of(task)
        for one in calls:
            if one.name != DECLINE:
                tools[one.name].check(one.arguments)
    except (ValueError, KeyError) as error:
        raise Refused(f"its acceptable calls do not fit its functions: {str(error)[:200]}") from error
    if problem := matches(calls, wanted):
        raise Refused(f"its acceptable calls are not accepted: {problem}")


def _function(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**{key: row[key] for key in ("name", "description")}, "parameters": _schema(row["parameters"])}


def _schema(given: Any) -> Any:
    """Turn a description of parameters in BFCL's words into a JSON Schema."""
    if isinstance(given, list):
        return [_schema(one) for one in given]
    if not isinstance(given, dict):
        return given
    schema = {key: _schema(one) if key != "default" else one for key, one in given.items() if key != "optional"}
    kind = schema.get("type")
    if isinstance(kind, str) and re.fullmatch("any", kind, re.IGNORECASE):
        del schema["type"]
    elif isinstance(kind, str):
        schema["type"] = _TYPES.get(kind.lower(), kind.lower())
    return schema


# ---------------------------------------------------------------------- from seeds

_KINDS = ("simple", "multiple", "parallel", "partly")
_CITIES = ("Lund", "Porto", "Graz", "Cork", "Turku", "Bari", "Nantes", "Split")
_DISHES = ("ramen", "paella", "borscht", "risotto", "falafel", "goulash")
_FUNCTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "get_weather": ("Tell the weather in a city, in so many days from now.", {
        "city": {"type": "string", "description": "The city."},
        "days": {"type": "integer", "description": "Days from now."}}),
    "book_table": ("Book a table in a restaurant.", {
        "city": {"type": "string", "description": "The city."},
        "people": {"type": "integer", "description": "How many people will come."},
        "outside": {"type": "boolean", "description": "Whether to sit outside; false by default."}}),
    "find_recipe": ("Find a recipe for a dish.", {
        "dish": {"type": "string", "description": "The dish."},
        "portions": {"type": "integer", "description": "For how many people."}}),
}  # fmt: skip


def generated_questions(*, count: int = 400, seed: int = 0) -> TaskSet:
    """Return questions from seeds: of one function, of several, for several calls, and such as only partly can be met.

    Of two requests the latter have a function for one, so that neither declining nor calling everything is right.
    """

    def source() -> Iterator[Task]:
        for index in range(count):
            kind = _KINDS[index % len(_KINDS)]
            yield to_task(*_question(kind, np.random.default_rng(derive_seed(seed, "questions", index)), index))

    return TaskSet("generated", source)


def _question(kind: str, rng: np.random.Generator, index: int) -> tuple[dict[str, Any], list[Acceptable]]:
    names = [str(one) for one in rng.permutation(list(_FUNCTIONS))]
    asked = names[: 2 if kind in ("parallel", "partly") else 1]
    made = [_ask(name, rng) for name in asked]
    wanted = [call for _, call in made]
    if kind == "partly":
        made = [made[at] for at in rng.permutation(2)]
        wanted = [wanted[0], {DECLINE: {}}]
    row = {
        "id": f"generated_{kind}_{index}",
        "question": [[{"role": "user", "content": " ".join(text for text, _ in made)}]],
        "function": [_offered(name) for name in _choice(kind, asked, names[len(asked) :], rng)],
    }
    return row, wanted


def _choice(kind: str, asked: list[str], others: list[str], rng: np.random.Generator) -> list[str]:
    """Return the functions to offer; neither their number nor their order tells which is right, or that one lacks."""
    least = 1 if kind == "multiple" else 0
    few = others[: int(rng.integers(least, len(others) + 1))]
    offered = {"simple": asked, "partly": asked[:1] + few}.get(kind, asked + few)
    return [str(one) for one in rng.permutation(offered)]


def _ask(name: str, rng: np.random.Generator) -> tuple[str, Acceptable]:
    city, dish, number = str(rng.choice(_CITIES)), str(rng.choice(_DISHES)), int(rng.integers(2, 9))
    match name:
        case "get_weather":
            return f"How will the weather be in {city} in {number} days?", {name: {"city": [city], "days": [number]}}
        case "book_table":
            call: Acceptable = {name: {"city": [city], "people": [number], "outside": ["", False]}}
            return f"Book a table in {city} for {number} people, inside.", call
    return f"How do I make {dish} for {number} people?", {name: {"dish": [dish], "portions": [number]}}


def _offered(name: str) -> dict[str, Any]:
    description, properties = _FUNCTIONS[name]
    required = [one for one in properties if one != "outside"]
    parameters = {"type": "dict", "properties": properties, "required": required}
    return {"name": name, "description": description, "parameters": parameters}
