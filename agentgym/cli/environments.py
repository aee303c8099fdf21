"""`agentgym envs`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from agentgym import registry
from agentgym.cli.console import errors, out
from agentgym.cli.places import load_file


def run(load: Sequence[Path]) -> None:
    """Print a table of what is installed or registered by the loaded files."""
    for file in load:
        load_file(file)
    table = Table("environment", "what it is", "tools", "sandbox", box=None, header_style="bold", pad_edge=False)
    for name in registry.names("envs"):
        try:
            owner = registry.lookup("envs", name)
        except ImportError as error:
            errors.tell(f"{name} cannot be imported: {error}")
            continue
        first = (owner.__doc__ or "").strip().partition("\n")[0]
        tools = ", ".join(_tools(owner))
        table.add_row(name, first, tools, "yes" if getattr(owner, "sandboxed", False) else "no")
    out.print(table)


def _tools(owner: object) -> list[str]:
    from agentgym.tools import tools_of

    return list(tools_of(owner)) if isinstance(owner, type) else []
