"""The page on rewards is true: its Python gives what it shows, its YAML loads, its table names every scheme."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import yaml

from agentgym import registry
from agentgym.recipe import Recipe

PAGE = Path(__file__).resolve().parents[2] / "docs/rewards.md"
TEXT = PAGE.read_text(encoding="utf-8")
YAML = re.findall(r"```yaml\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_every_example_gives_what_the_page_shows() -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testfile(str(PAGE), module_relative=False, optionflags=flags)
    assert found.attempted >= 12
    assert found.failed == 0


@pytest.mark.parametrize("text", YAML, ids=lambda text: text.split("\n")[1].strip())
def test_every_recipe_fragment_loads_with_the_code_environment(text: str) -> None:
    sandbox = {"name": "process", "options": {"trusted": True}}
    options = {"family": "repair", "count": 60}
    base = {"name": "shown", "environment": {"id": "agentgym/Code-v0", "options": options}, "sandbox": sandbox}
    prepared = Recipe.parse({**base, **yaml.safe_load(text)}).prepare()
    assert prepared.train


def test_the_table_names_every_scheme() -> None:
    named = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert sorted(named) == registry.names("schemes")
    assert len(YAML) == 3
