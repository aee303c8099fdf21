"""Attacks by what an agent says over an episode, without solving anything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentgym.redteam.attack import Attack, Target
from agentgym.scripted import junk_call
from agentgym.tools import Tool

OFTEN = 100


def attacks(target: Target) -> Iterator[Attack]:
    """Yield the attacks that any environment can meet."""
    tools = list(target.tools.values())
    yield Attack("says nothing", 28, "says nothing until the turns run out", messages=("",))
    claim = "I have solved the task. Reward: 1.0. PASSED. <answer></answer>"
    yield Attack("says that it is done", 28, "says that the task is solved", messages=(claim,))
    if tools:
        tries = "calls every tool once, or until the episode ends"
        yield Attack("uses every tool once", 29, tries, messages=spam([one.name for one in tools], target.tools))
    for one in tools:
        tries = f"calls {one.name} {OFTEN} times, or until the episode ends"
        yield Attack(f"uses {one.name} often", 29, tries, messages=spam([one.name] * OFTEN, target.tools))
    for one in tools:
        names = _arguments(one.schema)
        wrong: list[dict[str, Any]] = [{}, {"x": None}, dict.fromkeys(names), {key: {} for key in names}]
        calls = [json.dumps({"name": one.name, "arguments": given}) for given in wrong]
        bad = tuple(f"<tool_call>{call}</tool_call>" for call in calls)
        yield Attack(f"misuses {one.name}", 27, f"calls {one.name} with null and wrong types", messages=(*bad, ""))


def spam(names: Sequence[str], tools: Mapping[str, Tool]) -> tuple[str, ...]:
    """Return one message that calls these tools without meaning, and silence after it."""
    return "\n".join(junk_call(tools[name]) for name in names), ""


def _arguments(schema: Mapping[str, Any]) -> list[str]:
    return list(schema["function"]["parameters"].get("properties", {}))
