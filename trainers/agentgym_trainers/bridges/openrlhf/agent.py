"""What a generated agent file is made of. Only OpenRLHF's rollout processes, and its tests, call this."""

from __future__ import annotations

from typing import Any

from agentgym_trainers.bridges.openrlhf.executor import RecipeExecutor
from agentgym_trainers.bridges.openrlhf.rows import AgentSettings

AGENT_FILE = '''\
"""Rolls out a recipe for OpenRLHF. Written by the launcher; --train.agent_func_path names it."""

from agentgym_trainers.bridges.openrlhf.agent import agent_executor

AgentExecutor = agent_executor({settings!r})
'''


def agent_file(settings: AgentSettings) -> str:
    """Return the text of the Python file that OpenRLHF imports in each rollout process."""
    return AGENT_FILE.format(settings=settings.model_dump_json())


def agent_executor(settings: str) -> type:
    """Return the class that OpenRLHF builds, without arguments, once per rollout process.

    Args:
        settings: `AgentSettings` as JSON.
    """
    from openrlhf.utils.agent import AgentExecutorBase

    parsed = AgentSettings.model_validate_json(settings)

    class AgentExecutor(AgentExecutorBase):  # type: ignore[misc,unused-ignore]
        """Plays the recipe's episodes."""

        def __init__(self) -> None:
            self._executor = RecipeExecutor(parsed)

        async def execute(self, **given: Any) -> dict[str, Any]:
            """Return one sample; the names are OpenRLHF's."""
            return await self._executor.execute(**given)

    return AgentExecutor
