"""Recipes for OpenRLHF, and what they become on its command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentgym.recipe import Recipe
from agentgym_trainers.bridges.openrlhf.argv import Files, arguments
from agentgym_trainers.bridges.openrlhf.refusals import refuse

FILES = Files(Path("/run/openrlhf"), "/models/start")
VALUED = {"policy": {"advantage": "gae", "advantage_options": {"lam": 1.0}}, "critic": {}}
"""With a critic."""


def recipe(trainer: Mapping[str, Any] | None = None, **sections: Any) -> Recipe:
    """Return a recipe that OpenRLHF can train; sections replace the defaults."""
    base: dict[str, Any] = {
        "name": "calculator",
        "environment": {"id": "agentgym/Calculator-v0"},
        "tasks": {"train": 7, "test": 3},
        "trainer": {"name": "openrlhf", "sft": {"steps": 0}, **(trainer or {})},
    }
    return Recipe.parse({**base, **sections})


def words(one: Recipe, *, resume: bool = False) -> list[str]:
    """Return its command line, after what OpenRLHF cannot do was refused."""
    settings = one.trainer_settings()
    refuse(one, settings)
    return arguments(one, settings, FILES, settings.model.context_length, resume=resume)


def options(one: Recipe) -> dict[str, list[str]]:
    """Return the options of a recipe, by name."""
    found: dict[str, list[str]] = {}
    for word in words(one):
        if word.startswith("--"):
            name = word.removeprefix("--")
            found[name] = []
        else:
            found[name].append(word)
    return found
