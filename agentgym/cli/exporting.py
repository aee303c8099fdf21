"""`agentgym export`."""

from __future__ import annotations

from pathlib import Path

from agentgym import registry
from agentgym.cli.console import say
from agentgym.errors import AgentgymError
from agentgym.run import RunDirectory


def run(source: Path, folder: Path, which: str, dtype: str | None) -> None:
    """Have the trainer of a run export a checkpoint, and say where it is."""
    owner = source if (source / "checkpoints").is_dir() else source.parent.parent  # a checkpoint lies in its run
    trainer = str(RunDirectory.open(owner).manifest.recipe.get("trainer", {}).get("name", "native"))
    made = registry.create("trainers", trainer)
    if not hasattr(made, "export"):
        raise AgentgymError(f"the trainer {trainer!r} of {owner} exports no models")
    say(f"{made.export(source, folder, which=which, dtype=dtype)} of {owner} is now in {folder}")
