"""An agentic environment gym for multi-turn reinforcement learning with verifiable rewards."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from agentgym.registry import register_gymnasium

if TYPE_CHECKING:
    from agentgym.env import AgentEnv
    from agentgym.registry import make, register
    from agentgym.sandbox import SandboxSpec
    from agentgym.task import Hidden, Public, Task, TaskSet
    from agentgym.tools import Submit, tool
    from agentgym.types import Group, Message, Signal, Submission, ToolCall, Trajectory, Trust, Turn, Verdict

__version__ = "0.1.0"

# Loaded on first use, so that a command which needs one of them does not wait for all.
_HOMES = {
    "AgentEnv": "env",
    "Group": "types",
    "Hidden": "task",
    "Message": "types",
    "Public": "task",
    "SandboxSpec": "sandbox",
    "Signal": "types",
    "Submission": "types",
    "Submit": "tools",
    "Task": "task",
    "TaskSet": "task",
    "ToolCall": "types",
    "Trajectory": "types",
    "Trust": "types",
    "Turn": "types",
    "Verdict": "types",
    "make": "registry",
    "register": "registry",
    "tool": "tools",
}

__all__ = [
    "AgentEnv",
    "Group",
    "Hidden",
    "Message",
    "Public",
    "SandboxSpec",
    "Signal",
    "Submission",
    "Submit",
    "Task",
    "TaskSet",
    "ToolCall",
    "Trajectory",
    "Trust",
    "Turn",
    "Verdict",
    "make",
    "register",
    "tool",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agentgym' has no attribute {name!r}")
    return getattr(import_module(f"agentgym.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


register_gymnasium()  # Gymnasium loads no plugins by itself: environments are known once their package is imported
