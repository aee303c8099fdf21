"""Every kind of attack has its tests, every attack has its kind, and the README says what the tests are."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import catalogue
import pytest

from agentgym import redteam
from agentgym.graders.sources import parse


@pytest.fixture(scope="module")
def attacks() -> list[catalogue.Attack]:
    return catalogue.attacks()


def test_no_row_is_uncovered_and_there_are_fifty_five(attacks: list[catalogue.Attack]) -> None:
    assert list(catalogue.ROWS) == list(range(1, 56))
    assert {one.row for one in attacks} == set(catalogue.ROWS)


def test_families_are_those_of_the_command_line() -> None:
    assert dict(catalogue.FAMILIES) == dict(redteam.FAMILIES)


def test_every_kind_of_attack_succeeds_against_something_naive(attacks: list[catalogue.Attack]) -> None:
    assert {one.row for one in attacks if one.naive} == set(catalogue.ROWS)


@pytest.mark.parametrize("group", [one for one in catalogue.GROUPS if one.naive], ids=lambda one: one.test)
def test_a_test_that_is_said_to_fool_a_naive_grader_asserts_it(group: catalogue.Group) -> None:
    file, _, name = group.test.partition("::")
    source = inspect.getsource(getattr(catalogue.load(file), name))
    asserted = [one for one in ast.walk(parse(source)) if isinstance(one, (ast.Assert, ast.With))]
    words = r"naive|\bby_\w+\(|fooled|_in_one_place|validate\(|\bway\(|found\.passed"
    assert len(asserted) >= 2
    assert re.search(words, source.partition(") -> None:")[2], re.IGNORECASE)


def test_every_attack_of_the_red_teams_folder_is_in_the_catalogue() -> None:
    known = {one.test for one in catalogue.GROUPS}
    ignored = re.compile(r"test_(the_|naive_|a_twin_|a_test_without|most_|every_|with_ready|handing_in|what_is_)")
    for file in sorted(Path(__file__).parent.glob("test_*_attacks.py")):
        for one in parse(file.read_text()).body:
            if isinstance(one, ast.FunctionDef) and one.name.startswith("test_") and not ignored.match(one.name):
                if file.name == "test_generic_attacks.py":
                    continue
                assert f"redteam/{file.name}::{one.name}" in known, f"add {one.name} to the catalogue"


def test_the_readme_says_what_the_catalogue_yields() -> None:
    text = catalogue.README.read_text()
    assert catalogue.BEGIN in text
    assert catalogue.written(text) == text, "run python tests/support/catalogue.py"
    assert "0 of" in catalogue.table()
