"""One conversation's world: the tool classes of a row, and the table by which calls find them."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import Field

from agentgym.graders.sources import parse_expression
from agentgym.tools import Tool, tools_of
from agentgym.types import Record
from agentgym_envs.bfcl.apis.base import Api
from agentgym_envs.bfcl.apis.calculator import MathAPI
from agentgym_envs.bfcl.apis.files import GorillaFileSystem
from agentgym_envs.bfcl.apis.messages import MessageAPI
from agentgym_envs.bfcl.apis.posts import TwitterAPI
from agentgym_envs.bfcl.apis.tickets import TicketAPI
from agentgym_envs.bfcl.apis.trading import TradingBot
from agentgym_envs.bfcl.apis.travel import TravelAPI
from agentgym_envs.bfcl.apis.vehicle import VehicleControlAPI

APIS: Mapping[str, type[Api]] = {
    one.__name__: one
    for one in (GorillaFileSystem, MathAPI, MessageAPI, TicketAPI, TradingBot, TravelAPI, TwitterAPI, VehicleControlAPI)
}
_LONGEST = 20_000


class Call(Record):
    """One call, with its arguments by name."""

    name: str
    arguments: dict[str, Any] = {}


class Scenario(Record):
    """The public part of a row: what there is, and what the user says."""

    classes: tuple[str, ...]
    config: dict[str, Any] = {}
    """The state that each class begins with, by the class's name."""
    questions: tuple[str, ...] = Field(min_length=1)
    """What the user says, turn by turn."""
    excluded: frozenset[str] = frozenset()
    """Tools that this row does not offer."""
    appearing: dict[int, tuple[str, ...]] = {}
    """Tools that are offered only from a user turn on, counted from 0."""
    padding: int = 0
    """So many characters of noise follow every answer: a long context."""

    def tools_at(self, turn: int) -> dict[str, Tool]:
        """Return the tools that are offered in a user turn."""
        later = {name for at, names in self.appearing.items() if at > turn for name in names}
        known = {name: one for owner in self.classes for name, one in tools_of(APIS[owner]).items()}
        return {name: one for name, one in known.items() if name not in self.excluded and name not in later}


class ApiWorld:
    """The live classes of a scenario. Calls find their method in a table of marked tools and nowhere else."""

    def __init__(self, scenario: Scenario) -> None:
        self._padding = noise(scenario.padding)
        self._apis = {name: APIS[name](scenario.config.get(name, {})) for name in scenario.classes}
        self._table: dict[str, Callable[..., Any]] = {}
        for api in self._apis.values():
            self._table |= {name: getattr(api, name) for name in tools_of(type(api))}

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run one tool and return its answer as JSON.

        Raises:
            KeyError: there is no such tool.
            ValueError: the tool refuses, with a sentence for the agent.
        """
        return json.dumps(self._table[name](**arguments)) + self._padding

    def answer(self, call: Call, tools: Mapping[str, Tool]) -> str:
        """Check and run a call as an episode does, and return what an agent would read.

        Raises:
            ValueError: the call is no call of these tools, so that an episode would never have run it.
        """
        if call.name not in tools:
            raise ValueError(f"there is no tool {call.name!r} in this turn")
        checked = tools[call.name].check(call.arguments)
        try:
            return self.call(call.name, checked)
        except ValueError as error:
            return f"error: {error}"

    def states(self) -> dict[str, Any]:
        """Return what is compared, by class."""
        return {name: api.compared() for name, api in self._apis.items()}


def read_call(text: str, tools: Mapping[str, Tool]) -> Call:
    """Read a call that is written as Python, such as `cd(folder='x')`; nothing of it is ever executed.

    Raises:
        ValueError: it is no call of one of these tools with literal arguments.
    """
    try:
        if len(text) > _LONGEST:
            raise ValueError("it is too long")
        node = parse_expression(text)
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.func.id not in tools:
            raise ValueError(f"wanted a call of one of {len(tools)} tools")
        names = list(tools[node.func.id].schema["function"]["parameters"].get("properties", {}))
        given = dict(zip(names, map(ast.literal_eval, node.args), strict=False))
        if len(node.args) > len(names) or any(one.arg is None or one.arg in given for one in node.keywords):
            raise ValueError("its arguments do not fit")
        given |= {str(one.arg): ast.literal_eval(one.value) for one in node.keywords}
    except (SyntaxError, TypeError, RecursionError, MemoryError, ValueError) as error:
        raise ValueError(f"{text[:80]!r} cannot be read: {error}") from error
    return Call(name=node.func.id, arguments=given)


@cache
def noise(characters: int) -> str:
    """Return lines of a service log that say nothing, always the same, of about so many characters."""
    if not characters:
        return ""
    lines: list[str] = []
    while sum(map(len, lines)) < characters:
        number = len(lines) * 7919 % 10007
        lines.append(f"\n[log {number:05d}] request served in {number % 97 + 3} ms by node {number % 13}")
    return "".join(lines)[: max(characters, 1)]


def written(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Return calls as plain data."""
    return [one.model_dump(mode="json") for one in calls]
