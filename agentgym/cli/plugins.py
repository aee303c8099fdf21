"""Commands that installed packages bring (entry points of the group `agentgym.commands`), loaded when asked for."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from agentgym.errors import AgentgymError

GROUP = "agentgym.commands"


class PluginGroup(TyperGroup):
    """The program's own commands, and after them those of installed packages; an own name always wins.

    An entry point names a `typer.Typer`, which becomes a group of commands with the entry point's name.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Return every command's name, without loading any."""
        own = super().list_commands(ctx)
        return [*own, *sorted(_points().keys() - {*own})]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; one that cannot be loaded says why when it is run, and no help page breaks on it."""
        own = super().get_command(ctx, cmd_name)
        point = _points().get(cmd_name)
        if own is not None or point is None:
            return own
        try:
            return _group(point)
        except Exception as error:  # noqa: BLE001 -- whatever a stranger's module raises
            return _unusable(point, error)


def _points() -> dict[str, EntryPoint]:
    return {one.name: one for one in entry_points(group=GROUP)}


def _group(point: EntryPoint) -> Any:
    found = point.load()
    if not isinstance(found, typer.Typer):
        raise AgentgymError(f"wanted a typer.Typer, found {type(found).__name__}")
    host = typer.Typer(add_completion=False)
    host.add_typer(found, name=point.name)
    return get_group(host).commands[point.name]


def _unusable(point: EntryPoint, error: Exception) -> Any:
    app = typer.Typer(add_completion=False)
    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @app.command(point.name, help=f"Cannot be loaded: {error}", context_settings=settings)
    def tell() -> None:
        raise AgentgymError(f"the command {point.name!r} ({point.value}) cannot be loaded: {error}") from error

    return get_command(app)
