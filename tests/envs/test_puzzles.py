"""Generated puzzles: every solution counts, nothing else does, the dial makes them harder, splits share nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, permutations, product
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from puzzle_solvers import SOLVERS, puzzle, squares, text
from typer.testing import CliRunner

from agentgym.cli import app
from agentgym.contamination import refuse_twins
from agentgym.errors import RecipeError, TaskError, UnknownNameError
from agentgym.recipe import Recipe
from agentgym.redteam import attacks_on, run, target_of
from agentgym.rewards import GatedRewards
from agentgym.rollout import Limits
from agentgym.task import Public, Task
from agentgym.types import Submission
from agentgym.validate import Plan, validate
from agentgym_envs.puzzles import FAMILIES, PuzzleEnv, countdown, generate, puzzle_tasks
from agentgym_envs.puzzles.env import judged
from agentgym_envs.puzzles.family import Made
from agentgym_envs.puzzles.path import MOVES

SEEDS = st.integers(0, 10**9)
FAMILY = st.sampled_from(sorted(FAMILIES))
FEW = settings(max_examples=60, deadline=None)
LADDER = {"no_submission": -1.0, "malformed": -0.5, "failed": 0.0, "passed": 1.0}


def right(task: Task, answer: str) -> bool:
    return judged(task.public, task.hidden.data, answer).right


def planted(task: Task) -> str:
    return str(task.hidden.reference["answer"])


@FEW
@given(family=FAMILY, seed=SEEDS, difficulty=st.floats(1, 10))
def test_the_verifier_accepts_the_planted_solution_and_equal_arguments_give_equal_tasks(
    family: str, seed: int, difficulty: float
) -> None:
    task = generate(family, seed, difficulty)
    assert right(task, planted(task))
    assert right(task, f"  {planted(task)}\n")
    assert generate(family, seed, difficulty) == task


def mutations(rng: np.random.Generator, answer: str) -> Iterator[str]:
    """Texts near an answer: a character replaced, dropped, doubled, two exchanged; a part left out."""
    alphabet = sorted({*answer, *"0123456789-+*/URDLab= "})
    for _ in range(20):
        at, other = (int(one) for one in rng.integers(0, len(answer), 2))
        one = str(rng.choice(alphabet))
        swapped = [*answer]
        swapped[at], swapped[other] = swapped[other], swapped[at]
        yield from (answer[:at] + one + answer[at + 1 :], answer[:at] + answer[at + 1 :], "".join(swapped))
        yield answer[:at] + answer[at] + answer[at:]


def truth(task: Task, answer: str) -> bool:
    """Whether an answer is a solution, found out in another way than the verifier does."""
    return TRUTHS[str(task.public.data["family"])](task, answer.strip())


def sat_holds(task: Task, answer: str) -> bool:
    try:
        chosen = {abs(int(word)): int(word) > 0 for word in answer.split()}
    except ValueError:
        return False
    count = puzzle(task)["variables"]
    if len(answer.split()) != count or set(chosen) != set(range(1, count + 1)):
        return False
    return all(any(chosen[abs(one)] == (one > 0) for one in clause) for clause in puzzle(task)["clauses"])


def square_holds(task: Task, answer: str) -> bool:
    found = puzzle(task)
    size, (high, wide) = len(found["rows"]), found["box"]
    try:
        rows = np.array([[int(word) for word in line.split()] for line in answer.splitlines()])
    except ValueError:
        return False
    given_rows = np.array(found["rows"])
    if rows.shape != (size, size) or not ((given_rows == 0) | (given_rows == rows)).all():
        return False
    blocks = [*rows, *rows.T]
    if high:
        blocks += [rows[y : y + high, x : x + wide].ravel() for y in range(0, size, high) for x in range(0, size, wide)]
    return all(sorted(block.tolist()) == list(range(1, size + 1)) for block in blocks)


def path_holds(task: Task, answer: str) -> bool:
    rows = puzzle(task)["rows"]
    places = {rows[y][x]: (y, x) for y in range(len(rows)) for x in range(len(rows[0]))}
    y, x = places["S"]
    for one in answer:
        if one not in MOVES:
            return False
        y, x = y + MOVES[one][0], x + MOVES[one][1]
        if min(y, x) < 0 or max(y, x) >= len(rows) or rows[y][x] == "#":
            return False
    return (y, x) == places["G"] and len(answer) <= puzzle(task)["moves"]


def countdown_holds(task: Task, answer: str) -> bool:
    import re
    from fractions import Fraction

    if not re.fullmatch(r"[0-9+\-*/() ]+", answer) or re.search(r"\*\*|//|[-+*/(]\s*[-+]|^\s*[-+]", answer):
        return False
    used = sorted(int(one) for one in re.findall(r"\d+", answer))
    if used != sorted(puzzle(task)["numbers"]):
        return False
    try:
        value = eval(re.sub(r"\d+", lambda one: f"Fraction({int(one[0])})", answer), {"Fraction": Fraction})
    except (SyntaxError, ZeroDivisionError, TypeError):
        return False
    return bool(value == puzzle(task)["target"]) and not re.search(r"\b0\d", answer)


def equations_hold(task: Task, answer: str) -> bool:
    try:
        pairs = [word.split("=") for word in answer.replace(" =", "=").replace("= ", "=").replace(",", " ").split()]
        values = {name: int(value) for name, value in pairs}
    except ValueError:
        return False
    rows = puzzle(task)["rows"]
    names = "abcdefgh"[: len(rows)]
    if sorted(name for name, _ in pairs) != [*names] or "+" in answer:
        return False
    return all(sum(one * values[name] for one, name in zip(row, names, strict=False)) == row[-1] for row in rows)


def text_holds(task: Task, answer: str) -> bool:
    quoted = len(answer) > 1 and answer[0] == answer[-1] and answer[0] in "'\""
    return (answer[1:-1] if quoted else answer) == planted(task)


TRUTHS: dict[str, Callable[[Task, str], bool]] = {
    "sat": sat_holds,
    "latin": square_holds,
    "sudoku": square_holds,
    "path": path_holds,
    "countdown": countdown_holds,
    "equations": equations_hold,
    "transforms": text_holds,
}


@FEW
@given(family=FAMILY, seed=SEEDS, difficulty=st.floats(1, 10))
def test_a_changed_solution_is_accepted_only_if_it_is_a_solution_too(family: str, seed: int, difficulty: float) -> None:
    task = generate(family, seed, difficulty)
    changed = list(mutations(np.random.default_rng(seed), planted(task)))
    rejected = [one for one in changed if not right(task, one)]
    assert [one for one in changed if right(task, one) != truth(task, one)] == []
    assert len(rejected) >= len(changed) // 3


def every_assignment(task: Task) -> Iterator[str]:
    count = puzzle(task)["variables"]
    for signs in product((1, -1), repeat=count):
        yield " ".join(str(sign * number) for number, sign in enumerate(signs, start=1))


def every_way(task: Task) -> Iterator[str]:
    moves = puzzle(task)["moves"]
    yield from ("".join(one) for one in product(MOVES, repeat=moves)) if moves <= 7 else ()


def every_expression(task: Task) -> Iterator[str]:
    for one, other, third in permutations(puzzle(task)["numbers"]):
        for first, second in product("+-*/", repeat=2):
            yield f"({one}{first}{other}){second}{third}"
            yield f"{one}{first}({other}{second}{third})"


def every_square(task: Task) -> Iterator[str]:
    yield from (text(rows) for rows in squares(task) if rows)


EVERY: dict[str, Callable[[Task], Iterator[str]]] = {
    "sat": every_assignment,
    "latin": every_square,
    "sudoku": every_square,
    "path": every_way,
    "countdown": every_expression,
}


@pytest.mark.parametrize("family", EVERY)
def test_every_solution_there_is_is_accepted_and_nothing_else(family: str) -> None:
    several = 0
    for seed in range(12):
        task = generate(family, seed, {"latin": 6, "sudoku": 3}.get(family, 1))
        candidates = list(islice(EVERY[family](task), 20_000))
        accepted = [one for one in candidates if right(task, one)]
        assert accepted == [one for one in candidates if truth(task, one)]
        assert accepted or not candidates or family == "countdown"
        several += len(set(accepted)) > 1
    assert several >= 2


@pytest.mark.parametrize("family", SOLVERS)
def test_a_scripted_solver_solves_fewer_puzzles_as_difficulty_rises(family: str) -> None:
    solved = []
    for difficulty in (1, 3, 6, 9):
        tasks = [generate(family, seed, difficulty) for seed in range(20)]
        answers = [SOLVERS[family](task) for task in tasks]
        assert all(right(task, one) for task, one in zip(tasks, answers, strict=True) if one is not None)
        solved.append(sum(one is not None for one in answers))
    assert solved == sorted(solved, reverse=True)
    assert solved[0] == 20
    assert solved[-1] <= 6


@pytest.mark.parametrize("family", [*FAMILIES, "mixed"])
def test_a_thousand_puzzles_are_different_split_by_content_and_without_twins(family: str) -> None:
    tasks = list(puzzle_tasks(family, count=1000, difficulty=1))
    assert len({task.content for task in tasks}) == 1000
    assert {task.split for task in tasks} == {"train", "validation", "test"}
    refuse_twins((t for t in tasks if t.split == "train"), (t for t in tasks if t.split != "train"))
    again = {task.content: task.split for task in puzzle_tasks(family, count=1000, difficulty=1, seed=1)}
    assert all(again.get(task.content, task.split) == task.split for task in tasks)


def test_hints_tell_a_way_and_a_beginning_but_never_a_solution() -> None:
    for family in FAMILIES:
        for seed in range(20):
            task = generate(family, seed, 5)
            assert len(task.hints) == 2
            assert not any(planted(task) in hint for hint in task.hints)


JUNK = ["", " ", "ok", "0", "1 " * 900, "nan", "None", "{}", "9" * 1900, "(" * 110, "1+" * 50, "-" * 100, "\x00",
        "a=1e3", "1/0", "10**9", "\uff17", "true", "U" * 1500, "²", "a=" + "9" * 50]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_no_answer_is_malformed_or_wrong_and_raises_nothing(family: str) -> None:
    task = generate(family, 4, 3)
    for one in [*JUNK, planted(task) * 300, task.public.prompt]:
        assert not right(task, one), one


@settings(max_examples=100, deadline=None)
@given(family=FAMILY, answer=st.text(max_size=80) | st.text("0123456789-+*/()= abURDL\n", max_size=80))
def test_no_text_at_all_breaks_a_verifier(family: str, answer: str) -> None:
    task = generate(family, 1, 2)
    found = judged(task.public, task.hidden.data, answer)
    assert 0 <= found.held <= found.total
    assert found.right == (found.problem == "") == truth(task, answer)


def test_gymnasium_accepts_the_environment() -> None:
    env = gymnasium.make("agentgym/Puzzle-v0", family="path", count=20)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_puzzles_hold_every_check_of_validate_and_every_attack(family: str) -> None:
    tasks = list(puzzle_tasks(family, count=2, difficulty=2))

    def make() -> PuzzleEnv:
        return PuzzleEnv(family=family, difficulty=2, count=2)

    found = validate(make, tasks, plan=Plan(attacks=4, calls=9))
    assert found.passed, found.findings
    limits = Limits(concurrency=1)
    target = target_of(make, tasks[0], limits)
    outcomes = [run(make, target, one, limits) for one in attacks_on(target, make())]
    assert len(outcomes) > 25
    assert [one for one in outcomes if not one.held] == []


def test_checking_says_what_is_wrong_and_gains_are_paid_once_behind_the_gate() -> None:
    task = generate("equations", 7, 2)
    scheme = GatedRewards(ladder=LADDER, threshold=1.0, step_weights={"rules_gained": 0.5})
    first, *others = planted(task).split()
    paid = []
    for last in (planted(task), "a=0 b=0"):
        env = PuzzleEnv(family="equations", scheme=scheme)
        env.reset(options={"task": task})
        said = []
        for answer in ("nothing", " ".join([f"{first[:2]}9999", *others]), planted(task), planted(task)):
            observation, *_, info = env.step(f"```check\n{answer}\n```")
            said.append((observation[0].content, info["signals"]["well_formed"], info["signals"]["rules_gained"]))
        _, reward, *_, info = env.step(f"```submit\n{last}\n```")
        paid.append(reward)
    assert said[0] == ("wanted a whole value for each of a, b, such as a=3", 0, 0)
    assert said[1][0].startswith("equation 1 does not hold")
    assert [one[1:] for one in said[2:]] == [(1, 1), (1, 0)]
    assert paid == [1.5, 0.0]


def test_whether_a_hidden_answer_is_right_is_not_told_before_it_is_handed_in() -> None:
    task = generate("transforms", 3, 2)
    env = PuzzleEnv(family="transforms")
    env.reset(options={"task": task})
    said = [env.step(f"```check\n{answer}\n```")[0][0].content for answer in (planted(task), "wrong")]
    assert said[0] == said[1] == "the form is right; whether the answer is, is not told"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"family": "sudoko"}, UnknownNameError, "did you mean 'sudoku'"),
        ({"difficulty": 0}, TaskError, "wanted a difficulty from 1 to 10, found 0"),
        ({"difficulty": 11}, TaskError, "found 11"),
        (
            {"scheme": GatedRewards(ladder={"failed": 0, "passed": 1}, threshold=1, step_weights={})},
            RecipeError,
            "rung",
        ),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        PuzzleEnv(**options)


def test_a_family_with_too_few_puzzles_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    only = generate("path", 1, 1)

    def same(_: np.random.Generator, __: float) -> Made:
        return Made(only.public.prompt, {}, planted(only))

    monkeypatch.setitem(FAMILIES, "one", replace(FAMILIES["path"], name="one", make=same))
    with pytest.raises(TaskError, match="difficulty 2 has fewer than 2 different puzzles; ask for fewer"):
        list(puzzle_tasks("one", count=2))


def test_an_expression_is_arithmetic_and_nothing_else() -> None:
    for one in ("2**3", "7//2", "-5+8", "len('a')", "1,2", "1 if 1 else 2", "0x10", "1_0", "a", "1.5", "()"):
        with pytest.raises(countdown.Unreadable):
            countdown.evaluate(one)


def test_puzzles_are_evaluated_validated_and_trained_by_name_with_a_difficulty(tmp_path: Path) -> None:
    runner = CliRunner()
    options = ["agentgym/Puzzle-v0", "family=countdown", "difficulty=4", "count=40"]
    done = runner.invoke(app, ["eval", *options, "--policy", "oracle", "--run", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "pass@1  100.0%" in done.stdout
    done = runner.invoke(
        app, ["validate", *options, "--limit", "1", "--attacks", "1", "--json", str(tmp_path / "found")]
    )
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "found").read_text())
    environment = "environment={id: agentgym/Puzzle-v0, options: {family: mixed, difficulty: 3, count: 90}}"
    recipe = Recipe.load("demo", [environment, "reward={name: outcome}", "tasks={test: 5}"])
    prepared = recipe.prepare()
    assert {task.difficulty for task in prepared.train} == {3.0}
    assert {task.split for task in prepared.held_out} == {"test"}


def test_an_answer_is_never_part_of_what_is_shown() -> None:
    assert Public.model_validate(generate("transforms", 1, 3).public).data["puzzle"] == {}
    env = PuzzleEnv(family="sat")
    assert env.grade(generate("sat", 1, 2), Submission()).level == "malformed"
