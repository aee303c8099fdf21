"""Worlds that are built automatically: a scenario, its tools, its people and their wishes, all from one seed.

After FTRL (Ye et al. 2025, "Feedback-Driven Tool-Use Improvements"): a scenario is turned into tools and sub-goals that
depend on one another, with a dial for their complexity, and what was reached is read off the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, JsonValue, create_model

from agentgym.errors import TaskError
from agentgym.sampling import derive_seed
from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym.tools import MethodTool, Tool
from agentgym.types import Record, Split
from agentgym_envs.tools.tables import Tables
from agentgym_envs.tools.users import UserScript
from agentgym_envs.tools.world import World, shown

FIRST_NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gita", "Hugo", "Ines", "Jon", "Kaya", "Leo", "Mara", "Nils")
LAST_NAMES = (
    "Abel",
    "Berg",
    "Cruz",
    "Dahl",
    "Egan",
    "Falk",
    "Gray",
    "Holm",
    "Ito",
    "Jung",
    "Kaur",
    "Lund",
    "Moss",
    "Nair",
)
_TALK = 20_000
"""Characters that an agent may say in all."""


class Scenario(Record):
    """One kind of world."""

    name: str
    person: str
    record: str
    plural: str
    add: str
    cancel: str
    attributes: dict[str, tuple[str, ...]]


@cache
def scenarios() -> Mapping[str, Scenario]:
    """Return the bundled scenarios, by name."""
    text = Path(__file__).with_name("scenarios.yaml").read_text(encoding="utf-8")
    return {one.name: one for one in map(Scenario.model_validate, yaml.safe_load(text))}


class BuiltWorld(World):
    """People, and records that they own. New records count on, so the same calls leave the same world."""

    policy: ClassVar[str] = """Find out whom you talk with before you tell or change anything, and change only what they
asked for. Every record has an id and a secret code; tell a code only to the one who owns the record."""

    def __init__(self, scenario: Scenario, tables: Tables) -> None:
        super().__init__(tables)
        self.scenario = scenario
        kind, person = scenario.record, scenario.person
        attributes: dict[str, Any] = {name: Literal[choices] for name, choices in scenario.attributes.items()}
        named: Any = Literal[tuple(scenario.attributes)]
        self._table: dict[str, tuple[MethodTool, Callable[..., str]]] = {}
        self._add(f"find_{person}", f"Find a {person}'s id by name.", {"name": str}, self._find)
        self._add(f"list_{scenario.plural}", f"List the ids of a {person}'s {scenario.plural}.",
                  {f"{person}_id": str}, lambda **given: self._list(given[f"{person}_id"]))  # fmt: skip
        self._add(f"show_{kind}", f"Show a {kind}.", {f"{kind}_id": str},
                  lambda **given: shown(self._record(given[f"{kind}_id"])))  # fmt: skip
        self._add(f"change_{kind}", f"Change one attribute of a {kind}.",
                  {f"{kind}_id": str, "attribute": named, "value": str},
                  lambda attribute, value, **given: self._change(given[f"{kind}_id"], attribute, value))  # fmt: skip
        self._add(scenario.cancel, f"End a {kind}.", {f"{kind}_id": str},
                  lambda **given: self._cancel(given[f"{kind}_id"]))  # fmt: skip
        self._add(scenario.add, f"Make a new {kind} for a {person}.", {f"{person}_id": str, **attributes},
                  lambda **given: self._new(given.pop(f"{person}_id"), given))  # fmt: skip
        self.changing = frozenset({f"change_{kind}", scenario.cancel, scenario.add})

    def tools(self) -> dict[str, Tool]:
        """Return the tools, by name."""
        return {name: one for name, (one, _) in self._table.items()}

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run one tool."""
        return self._table[name][1](**arguments)

    def _add(self, name: str, description: str, arguments: Mapping[str, Any], run: Callable[..., str]) -> None:
        fields: Any = {one: (kind, ...) for one, kind in arguments.items()}
        model: type[BaseModel] = create_model(
            f"{name}_arguments", __config__=ConfigDict(extra="forbid", strict=True), **fields
        )
        self._table[name] = (MethodTool(name, description, model), run)

    def _find(self, name: str) -> str:
        wanted = name.strip().casefold()
        found = next((key for key, one in self.tables.items("people") if one["name"].casefold() == wanted), None)
        if found is None:
            raise ValueError(f"there is no {self.scenario.person} of that name")
        return found

    def _list(self, person_id: str) -> str:
        self._person(person_id)
        return shown([key for key, one in self.tables.items("records") if one["owner"] == person_id])

    def _person(self, person_id: str) -> Any:
        found = self.tables.get("people", person_id)
        if found is None:
            raise ValueError(f"there is no {self.scenario.person} with that id")
        return found

    def _record(self, record_id: str) -> Any:
        found = self.tables.get("records", record_id)
        if found is None:
            raise ValueError(f"there is no {self.scenario.record} with that id")
        return found

    def _change(self, record_id: str, attribute: str, value: str) -> str:
        choices = self.scenario.attributes[attribute]
        if value not in choices:
            raise ValueError(f"wanted {attribute} to be one of {', '.join(choices)}")
        if self._active(record_id)[attribute] == value:
            raise ValueError(f"the {attribute} is {value} already")
        record = self.tables.edit("records", record_id)
        record[attribute] = value
        return shown(record)

    def _cancel(self, record_id: str) -> str:
        self._active(record_id)
        record = self.tables.edit("records", record_id)
        record["status"] = "ended"
        return shown(record)

    def _active(self, record_id: str) -> Any:
        record = self._record(record_id)
        if record["status"] != "active":
            raise ValueError(f"the {self.scenario.record} has ended")
        return record

    def _new(self, person_id: str, attributes: Mapping[str, str]) -> str:
        self._person(person_id)
        key = f"{self.scenario.record[0].upper()}{sum(1 for _ in self.tables.items('records')) + 100}"
        self.tables.put("records", key, {"owner": person_id, **attributes, "status": "active"})
        return shown({"id": key, **self._record(key)})


def built_world(task: Task) -> BuiltWorld:
    """Return a task's world as it is at the start.

    Raises:
        TaskError: the task is of no built world.
    """
    world: Any = task.public.data.get("world")
    if not isinstance(world, dict) or world.get("scenario") not in scenarios():
        raise TaskError(f"the task {task.id!r} tells no world; wanted public.data['world'] with one of its scenarios")
    return BuiltWorld(scenarios()[world["scenario"]], Tables(world["tables"]))


def built_tasks(*, count: int = 500, difficulty: float = 1.0, seed: int = 0) -> TaskSet:
    """Return generated tasks; see `generate`."""

    def source() -> Iterator[Task]:
        for index in range(count):
            yield generate(derive_seed(seed, "built", index) % 2**31, difficulty)

    return TaskSet("built", source)


def generate(seed: int, difficulty: float) -> Task:
    """Return the world and the wishes of a seed.

    Args:
        seed: the same seed and difficulty give the same task.
        difficulty: 0 to 4: one more wish at each step, and two more people whose records are in the way.
    """
    if not 0 <= difficulty <= 4:
        raise ValueError(f"wanted a difficulty from 0 to 4, found {difficulty}")
    rng = np.random.default_rng([seed, round(1000 * difficulty)])
    level = int(difficulty)
    scenario = list(scenarios().values())[int(rng.integers(len(scenarios())))]
    tables = _people(rng, scenario, people=3 + 2 * level, records=2 + level)
    me = list(tables["people"])[int(rng.integers(len(tables["people"])))]
    wishes = _wishes(rng, scenario, tables, me, count=1 + level)
    world = BuiltWorld(scenario, Tables(tables))
    mine = tables["people"][me]["name"]
    actions: list[dict[str, Any]] = [{"name": f"find_{scenario.person}", "kwargs": {"name": mine}},
               {"name": f"list_{scenario.plural}", "kwargs": {f"{scenario.person}_id": me}}]  # fmt: skip
    actions += [action for wish in wishes for action in wish.actions]
    for action in actions:
        world.call(action["name"], action["kwargs"])
    told = [one for wish in wishes for one in wish.told]
    prompt = f"Hello, I am {mine}. " + " ".join(wish.text for wish in wishes)
    script = UserScript(instruction=prompt, facts={"name|who": f"I am {mine}."}, wants=tuple(told))
    gold: Any = {"kind": "json", "gold": world.tables.changes(), "start": {}}
    data: Any = {"user": script.model_dump(mode="json"), "world": {"scenario": scenario.name, "tables": tables}}
    return Task(
        id=f"built/{scenario.name}-{level}-{seed}",
        split=split_by_seed(seed),
        public=Public(prompt=prompt, data=data),
        hidden=Hidden(
            data={"parts": {"records": gold}, "communicate": list(told), "answer_chars": _TALK},
            reference={"actions": cast(JsonValue, actions)},
        ),
        hints=(
            f"Find the {scenario.person}'s id by name first, then list their {scenario.plural} and look at each.",
            "Use in this order: " + ", ".join(dict.fromkeys(one["name"] for one in actions)),
        ),
        difficulty=difficulty,
    )


class _Wish(Record):
    text: str
    actions: tuple[dict[str, Any], ...]
    told: tuple[str, ...] = ()


def _people(rng: np.random.Generator, scenario: Scenario, *, people: int, records: int) -> dict[str, dict[str, Any]]:
    """Return people with records; of one person's, no two share the value of their first attribute."""
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    tables: dict[str, dict[str, Any]] = {"people": {}, "records": {}}
    for name in rng.choice(names, size=people, replace=False).tolist():
        key = _unused(rng, scenario.person, tables["people"])
        tables["people"][key] = {"name": name}
        first, *rest = scenario.attributes.items()
        for value in rng.permutation(first[1]).tolist()[:records]:
            record = {"owner": key, first[0]: value}
            record |= {one: str(rng.choice(choices)) for one, choices in rest}
            record |= {"status": "active", "code": "".join(rng.choice(list("0123456789ABCDEF"), size=8))}
            tables["records"][_unused(rng, scenario.record, tables["records"])] = record
    return tables


def _unused(rng: np.random.Generator, kind: str, taken: Mapping[str, Any]) -> str:
    while (key := f"{kind[0].upper()}{int(rng.integers(10**4, 10**5))}") in taken:
        pass
    return key


def _wishes(
    rng: np.random.Generator, scenario: Scenario, tables: Mapping[str, Mapping[str, Any]], me: str, *, count: int
) -> list[_Wish]:
    """Return wishes about different records, so that the order in which they are met does not matter.

    The first changes something, for a world in which nothing changes could not tell who did nothing; the last may be
    for a new record.
    """
    mine = [(key, one) for key, one in tables["records"].items() if one["owner"] == me]
    wishes = []
    for place in range(count):
        kinds = ["change", "cancel"] + ["ask"] * (place > 0) + ["add"] * (0 < place == count - 1)
        kind = str(rng.choice(kinds))
        if kind == "add":
            wishes.append(_added(rng, scenario, me))
        else:
            wishes.append(_about(rng, scenario, *mine.pop(int(rng.integers(len(mine)))), kind))
    return wishes


def _about(rng: np.random.Generator, scenario: Scenario, key: str, record: Mapping[str, Any], kind: str) -> _Wish:
    known, *others = scenario.attributes
    kind_id = {f"{scenario.record}_id": key}
    look = {"name": f"show_{scenario.record}", "kwargs": kind_id}
    one = f"my {scenario.record} with {known} {record[known]}"
    if kind == "cancel":
        return _Wish(text=f"Please end {one}.", actions=(look, {"name": scenario.cancel, "kwargs": kind_id}))
    if kind == "ask":
        return _Wish(text=f"What is the code of {one}?", actions=(look,), told=(record["code"],))
    attribute = str(rng.choice(others))
    value = str(rng.choice([new for new in scenario.attributes[attribute] if new != record[attribute]]))
    change = {"name": f"change_{scenario.record}", "kwargs": {**kind_id, "attribute": attribute, "value": value}}
    return _Wish(text=f"Please set the {attribute} of {one} to {value}.", actions=(look, change))


def _added(rng: np.random.Generator, scenario: Scenario, me: str) -> _Wish:
    chosen = {name: str(rng.choice(choices)) for name, choices in scenario.attributes.items()}
    wanted = ", ".join(f"{name} {value}" for name, value in chosen.items())
    call = {"name": scenario.add, "kwargs": {f"{scenario.person}_id": me, **chosen}}
    return _Wish(text=f"I want a new {scenario.record}: {wanted}.", actions=(call,))


def split_by_seed(seed: int) -> Split:
    """Return 70% train, 10% validation, 20% test, by the seed alone."""
    share = derive_seed(seed, "split") % 100
    return "train" if share < 70 else "validation" if share < 80 else "test"
