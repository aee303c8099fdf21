"""What every tool world shares: its records, its tools as typed methods, and the table by which calls find them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from agentgym.tools import Tool, tools_of
from agentgym_envs.tools.tables import Tables


class World:
    """One episode's world. Subclasses write tools as methods marked `@tool`; a ValueError is told to the agent."""

    policy: ClassVar[str] = ""
    """The rules that the agent is told to keep."""
    changing: frozenset[str] = frozenset()
    """The tools that may change a record."""
    ends: ClassVar[frozenset[str]] = frozenset()
    """The tools that end the conversation."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables

    def tools(self) -> dict[str, Tool]:
        """Return the tools, by name."""
        return dict(tools_of(type(self)))

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run one tool, found by its name in the table of tools and nowhere else.

        Raises:
            KeyError: this world has no such tool.
            ValueError: the tool refuses, with a sentence for the agent; nothing has changed then.
        """
        return str(getattr(self, self.tools()[name].name)(**arguments))


def shown(record: Any) -> str:
    """Return a record as the agent reads it."""
    return json.dumps(record)
