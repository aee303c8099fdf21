"""`agentgym play`: a person acts in an environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentgym.cli.console import say
from agentgym.cli.places import Place
from agentgym.errors import AgentgymError
from agentgym.types import Message

_STYLES = {"system": "dim", "user": "cyan", "tool": "yellow", "assistant": "green"}


def play(place: Place, task: str | None, hint: bool, seed: int) -> None:
    """Run one episode with a person as the policy; the end of input ends it too."""
    try:
        env = place.maker()()
        options: dict[str, Any] = {} if task is None else {"task": task}
        if hint:
            options |= _hint(env, task, seed)
        observation, info = env.reset(seed=seed, options=options)
        say(f"task {info['task_id']} ({info['split']}); tools: {', '.join(env.tools)}", "bold")
        say("a message is one line, or a fenced block such as ```" + next(iter(env.tools), "") + "; Ctrl-D ends", "dim")
        show(observation)
        while (message := read_message()) is not None:
            observation, reward, terminated, truncated, info = env.step(message)
            show(observation)
            if terminated or truncated:
                _settled(info, reward)
                return
        say("\nleft before the end; nothing was scored")
    finally:
        place.close()


def show(messages: Sequence[Message]) -> None:
    """Print messages, each in its role's colour."""
    for one in messages:
        say(f"{one.role}: {one.content}{one.guidance}", _STYLES[one.role])


def read_message() -> str | None:
    """Read a line, or a fenced block to its end; None at the end of input."""
    lines: list[str] = []
    try:
        lines.append(input("> "))
        while lines[0].startswith("```") and (len(lines) == 1 or lines[-1].rstrip() != "```"):
            lines.append(input("… "))
    except EOFError:
        return "\n".join(lines) if lines else None
    return "\n".join(lines)


def _settled(info: dict[str, Any], reward: float) -> None:
    verdict = info["verdict"]
    value = "unscored" if verdict.value is None else f"{verdict.value:g}"
    say(f"the episode ended: {info['end']}; verdict {value} ({verdict.level}); reward {reward:g}", "bold")
    if verdict.feedback:
        say(verdict.feedback)


def _hint(env: Any, task: str | None, seed: int) -> dict[str, Any]:
    name = task or env.reset(seed=seed)[1]["task_id"]
    chosen = env.tasks[name]
    if not chosen.hints:
        raise AgentgymError(f"task {name!r} has no hints; play without --hint")
    return {"task": chosen, "hint": chosen.hints[-1]}
