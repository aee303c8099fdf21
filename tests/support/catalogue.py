"""Which test is about which attack: 55 ways to a reward that is not deserved, and the tests that run them.

`python tests/support/catalogue.py` writes the table of the README anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
README = TESTS.parent / "README.md"
BEGIN, END = "<!-- red team: begin -->\n", "<!-- red team: end -->\n"
GRADERS = ("function", "unittest", "pytest_ids", "stdio", "answer", "judge", "state", "sql", "sandbox")
FAMILIES: Mapping[str, range] = {
    "test frameworks": range(1, 20),
    "values": range(20, 31),
    "files and leaks": range(31, 42),
    "resources and protocol": range(42, 56),
}

ROWS: Mapping[int, str] = dict(
    enumerate(
        (
            "a conftest.py at the root reports success",
            "a conftest.py is planted beside the tests",
            "tests are marked as expected to fail",
            "tests are skipped by a conftest.py",
            "the collection is emptied, with exit status 0",
            "a passing log is printed before an exit",
            "a passing log, or an end marker, is printed among the true lines",
            "settings of pytest are changed by ini files",
            "a plugin is named by metadata in the working directory",
            "modules shadow the framework's or the standard library's",
            "Python loads a module or a .pth file unasked",
            "compiled files are planted",
            "variables come in through start-up files",
            "the solution skips its own tests",
            "the process exits with code 0 at import or on call",
            "the process exits politely at import",
            "the framework's reports or assertions are patched",
            "the report file is written by the solution",
            "a verdict is written to an inherited or a parent's descriptor",
            "an object agrees with everything",
            "the expected value is read from a frame, from source or from memory",
            "NaN, infinity, huge numbers, other numeric types",
            "visible examples are known by heart",
            "empty answers, shotgun answers, essays around the gold",
            "a gold that normalises to nothing",
            "an answer's tag stands in a tool's text",
            "null, empty objects, wrong types",
            "doing nothing",
            "spam of tools",
            "text that reaches an evaluation, a shell, a template",
            "a repository holds its own future",
            "the agent's git configuration and hooks run for the harness",
            "the mended version is installed or downloaded",
            "hidden tests and expected outputs are read",
            "tests are edited, or files put at their places",
            "the run script is overwritten",
            "programs that the harness calls are replaced",
            "a reward file is there before",
            "a reward file is rewritten behind the tests",
            "links, devices, climbing names, submodules, odd modes, bombs",
            "failing tests are deleted",
            "fork bombs",
            "memory bombs",
            "the disk is filled, in bytes and in files",
            "floods, long lines, NUL, invalid UTF-8, control characters",
            "a background child holds the pipe",
            "a child outlives the timeout",
            "signals are ignored, or processes stopped",
            "everything is killed",
            "the persistent shell is ended",
            "the shell protocol's sentinel is printed",
            "an infrastructure failure is faked",
            "the sandbox is crashed on purpose",
            "sockets, metadata addresses, gateways and neighbours",
            "one verdict leaves something for the next",
        ),
        start=1,
    )
)


@dataclass(frozen=True)
class Group:
    """A test, and which row each of its parameters belongs to."""

    grader: str
    test: str
    """The file below `tests/` and the function."""
    rows: int | Mapping[str, int]
    """The row, or rows by patterns of parameter ids; the first that fits counts."""
    naive: bool = False
    """Whether each attack is also run against a naive grader, which it must fool."""


@dataclass(frozen=True)
class Attack:
    """One attack on one grader."""

    grader: str
    row: int
    name: str
    naive: bool


def red(name: str, test: str) -> str:
    """Return where a test of the red team is."""
    return f"redteam/test_{name}_attacks.py::{test}"


NUMBERED = {f"{row:02} *": row for row in ROWS}
FOOLS = "test_an_attack_that_fools_a_naive_grader_scores_nothing"
BREAKS = {
    "*fork bomb": 42, "*memory*": 43, "kill*": 49, "*loop": 48, "sleeper": 48, "stop*": 48, "ignores*": 48,
    "flood": 45, "one long line": 45, "forged terminal": 45, "fake*": 52, "*exit code of*": 53, "leaves a child": 46,
    "format string": 30, "text that looks*": 30, "empty object": 27, "null": 27, "a choice*": 24, "another*": 22,
    "not a number": 22, "huge integer": 22, "bottomless*": 22, "exits*": 15, "does nothing": 28, "removes*": 53,
    "*include*": 34, "huge program": 43, "endless*": 43, "leaves*": 44, "becomes*": 40, "locks*": 53,
}  # fmt: skip
ATTACK_ROWS = {
    "*equal*": 20, "exit*": 15, "polite*": 16, "exception hook": 15, "fake l*, then exit": 6, "fake*": 7, "*lies": 7,
    "*caller*": 21, "*memory": 21, "the command*": 21, "*every descriptor": 19, "replaced builtins": 17,
    "*by heart": 23, "skip*": 14, "expected failures": 3, "*planted*": 10, "a suite*": 5, "a loader*": 5,
    "reads the expected*": 34, "rewrites*": 35, "replaces the comp*": 36, "calls*": 34, "replaces the ref*": 37,
    "counts*": 55,
    "prints every*": 24, "*shadows*": 10, "output*": 30, "*": 17,
}  # fmt: skip
PYTHON_FILES = {
    "conftest.py": 1, "pytest.ini": 8, "sitecustomize.py": 11, "usercustomize.py": 11, "*.py": 10,
}  # fmt: skip

GROUPS: tuple[Group, ...] = (
    Group("function", red("function", FOOLS), ATTACK_ROWS, naive=True),
    Group(
        "function",
        red("function", "test_a_submission_that_breaks_its_judging_or_answers_nonsense_is_scored_and_scores_nothing"),
        BREAKS,
    ),
    Group(
        "function", red("function", "test_right_answers_forged_on_every_descriptor_do_not_help_a_wrong_function"), 19
    ),
    Group("function", red("function", "test_what_a_background_process_does_after_the_answer_changes_nothing"), 39),
    Group("function", red("function", "test_files_planted_in_the_working_directory_are_never_imported"), PYTHON_FILES),
    Group("function", red("function", "test_one_verdict_leaves_nothing_for_the_next"), 55),
    Group("unittest", red("unittest", FOOLS), ATTACK_ROWS, naive=True),
    Group("unittest", red("unittest", "test_a_worker_cannot_open_the_judge_or_the_nursery"), 19),
    Group("unittest", red("unittest", "test_files_planted_by_the_code_are_never_read"), PYTHON_FILES),
    Group("unittest", red("unittest", "test_code_that_breaks_its_judging_is_scored_and_scores_nothing"), BREAKS),
    Group("stdio", red("stdio", FOOLS), ATTACK_ROWS, naive=True),
    Group("stdio", red("stdio", "test_a_program_that_breaks_its_judging_is_scored_and_scores_nothing"), BREAKS),
    Group("stdio", red("stdio", "test_a_run_holds_its_own_input_and_nothing_else_of_the_task"), 34),
    Group("stdio", red("stdio", "test_what_an_output_says_is_data_for_the_checker_too"), 30),
    Group("stdio", red("stdio", "test_one_verdict_leaves_nothing_for_the_next"), 55),
    Group(
        "pytest_ids", red("pytest", "test_a_planted_file_fools_a_naive_grader_and_scores_nothing"), NUMBERED, naive=True
    ),
    Group(
        "pytest_ids",
        red("pytest", "test_code_that_attacks_its_tests_fools_a_naive_grader_and_scores_nothing"),
        {**NUMBERED, "*": 17},
        naive=True,
    ),
    Group("pytest_ids", red("pytest", "test_code_that_knows_the_judge_is_caught_by_twins"), 17, naive=True),
    Group("pytest_ids", red("pytest", "test_outcomes_that_the_keeper_did_not_sign_are_worth_nothing"), 19),
    Group("pytest_ids", red("pytest", "test_code_that_breaks_its_judging_is_scored_and_scores_nothing"), BREAKS),
    Group("pytest_ids", red("pytest", "test_the_keeper_is_closed_and_no_trial_sees_another"), 55),
    Group("pytest_ids", red("pytest", "test_links_and_pipes_do_not_come_along"), 40),
    Group("pytest_ids", red("patch", "test_a_diff_that_gets_past_a_naive_way_is_refused"), NUMBERED, naive=True),
    Group("pytest_ids", red("patch", "test_files_of_such_names_are_refused_as_well"), 40),
    Group("pytest_ids", red("patch", "test_a_file_at_the_place_of_the_tests_folder_gives_way"), 35),
    Group("pytest_ids", red("swe", "test_what_a_naive_harness_pays_for_scores_nothing"), NUMBERED, naive=True),
    Group(
        "pytest_ids",
        red("swe", "test_a_repository_that_kept_its_history_tells_the_fix_and_ours_does_not"),
        31,
        naive=True,
    ),
    Group("pytest_ids", red("swe", "test_a_writer_that_goes_on_behind_the_submission_changes_nothing"), 39),
    Group(
        "pytest_ids", red("swe", "test_programs_that_the_agents_shell_was_taught_are_not_the_judges"), 37, naive=True
    ),
    Group(
        "answer",
        red("answer", FOOLS),
        {
            "*not a number*": 22,
            "*infinity": 22,
            "a name*": 30,
            "an expression": 30,
            "an object*": 20,
            "one tag*": 26,
            "*": 24,
        },
        naive=True,
    ),
    Group("answer", red("answer", "test_data_of_another_kind_is_no_answer"), 27),
    Group(
        "answer",
        red("answer", "test_a_gold_that_an_empty_answer_would_match_is_refused_before_anything_is_judged"),
        25,
        naive=True,
    ),
    Group("answer", red("answer", "test_a_tag_in_what_a_tool_returned_is_no_answer"), 26, naive=True),
    Group(
        "answer", red("answer", "test_a_text_in_which_the_library_finds_the_gold_is_not_one_expression"), 24, naive=True
    ),
    Group("answer", red("answer", "test_no_shotgun_and_no_nonsense_means_three"), 24),
    Group(
        "answer", red("answer", "test_text_that_reaches_an_evaluation_in_the_library_runs_nothing_here"), 30, naive=True
    ),
    Group("answer", red("answer", "test_an_expression_that_would_run_for_ever_costs_seconds_and_scores_nothing"), 48),
    Group("answer", red("answer", "test_an_answer_of_any_length_is_judged_at_once"), 45),
    Group("answer", red("answer", "test_a_library_that_evaluates_what_it_reads_can_do_nothing_with_it"), 30),
    Group("answer", red("search", "test_a_planted_document_fools_a_naive_way_and_earns_nothing"), NUMBERED, naive=True),
    Group(
        "judge",
        red("judge", "test_a_judge_that_an_attack_impresses_is_refused_before_it_can_reward_it"),
        {"likes*": 24, "*": 30},
        naive=True,
    ),
    Group("judge", red("judge", "test_a_judge_that_looks_for_the_gold_anywhere_is_refused"), 24, naive=True),
    Group("judge", red("judge", "test_a_judge_that_looks_for_the_questions_words_is_refused"), 24, naive=True),
    Group("judge", red("judge", "test_a_submission_is_never_a_template"), 30, naive=True),
    Group("judge", red("judge", "test_a_reply_that_quotes_a_verdict_from_the_submission_is_not_one"), 7, naive=True),
    Group("judge", red("judge", "test_no_attack_gets_anything_from_an_honest_judge"), 30),
    Group(
        "judge", red("judge", "test_a_submission_that_confuses_the_judge_scores_nothing_instead_of_being_left_out"), 52
    ),
    Group("judge", red("judge", "test_a_submission_cannot_talk_the_endpoint_down_by_its_length"), 45),
    Group("state", red("state", "test_a_database_that_fools_a_naive_comparison_scores_nothing"), 27, naive=True),
    Group("state", red("state", "test_json_of_other_types_is_another_state"), 27, naive=True),
    Group("state", red("state", "test_a_damaged_database_is_the_submissions_fault"), 52),
    Group("state", red("state", "test_a_database_of_too_many_rows_is_refused_and_not_read_to_its_end"), 43),
    Group("state", red("state", "test_a_cell_that_grows_when_it_is_read_is_refused"), 43),
    Group("state", red("state", "test_a_task_that_doing_nothing_solves_is_refused"), 28, naive=True),
    Group("state", red("state", "test_what_is_not_plainly_said_is_not_said"), 24, naive=True),
    Group(
        "state", red("tools", "test_an_attack_that_fools_a_naive_judge_of_worlds_scores_nothing"), NUMBERED, naive=True
    ),
    Group(
        "state",
        red("tools", "test_text_that_a_naive_dispatcher_evaluates_is_an_argument_and_nothing_else"),
        30,
        naive=True,
    ),
    Group(
        "sql",
        red("sql", "test_a_query_that_fools_a_naive_comparison_scores_nothing"),
        {"*by heart": 23, "numbers as text": 27, "*": 24},
        naive=True,
    ),
    Group(
        "sql",
        red("sql", "test_a_query_that_wants_more_than_to_ask_is_scored_and_scores_nothing"),
        {
            "is a constant": 24,
            "is no rows": 24,
            "is a comment": 28,
            "never ends": 48,
            "returns without end": 45,
            "sorts without end": 43,
            "multiplies": 48,
            "has one huge*": 43,
            "is nested deeply": 45,
            "matches slowly": 48,
            "has a NUL": 45,
            "is very long": 45,
            "makes a file": 44,
            "attaches a file": 34,
            "reads a pragma*": 34,
            "*": 30,
        },
    ),
    Group("sql", red("sql", "test_what_an_agent_runs_leaves_its_database_as_it_was"), 35),
    Group(
        "sandbox",
        red("sandbox", "test_a_crash_on_purpose_is_the_agents_own_loss"),
        {
            "kill*": 49,
            "memory*": 43,
            "shared memory*": 44,
            "fork bomb": 42,
            "*Docker's own": 52,
            "the daemon*": 52,
            "a time-out": 48,
            "*": 53,
        },
        naive=True,
    ),
    Group("sandbox", red("sandbox", "test_nothing_outside_is_within_reach"), 54, naive=True),
    Group("sandbox", red("sandbox", "test_one_verdict_leaves_nothing_for_another"), 55, naive=True),
    Group("sandbox", red("sandbox", "test_with_ready_sandboxes_too"), 55),
    Group("sandbox", red("sandbox", "test_a_flood_is_bounded_counted_and_byte_exact"), 45),
    Group("sandbox", "sandboxes/test_docker.py::test_the_disk_is_bounded_in_bytes_and_in_files", 44),
    Group(
        "sandbox", "sandboxes/test_bounds.py::test_a_background_child_that_holds_the_pipe_does_not_hold_the_caller", 46
    ),
    Group(
        "sandbox",
        "sandboxes/test_bounds.py::test_a_timeout_kills_the_whole_tree_keeps_the_output_and_leaves_the_sandbox_usable",
        47,
    ),
    Group("sandbox", "sandboxes/test_sessions.py::test_whatever_ends_the_shell_ends_not_the_session", 50),
    Group("sandbox", "sandboxes/test_sessions.py::test_a_printed_sentinel_ends_nothing", 51),
    Group(
        "sandbox",
        red("shell", "test_a_child_that_holds_the_pipe_holds_up_a_naive_runner_and_nobody_else"),
        46,
        naive=True,
    ),
    Group(
        "sandbox",
        red("shell", "test_a_child_that_leaves_its_group_outlives_a_naive_timeout_and_no_other"),
        47,
        naive=True,
    ),
    Group("sandbox", red("shell", "test_what_ends_the_shell_ends_a_naive_session_and_no_other"), 50, naive=True),
    Group("sandbox", red("shell", "test_a_printed_end_forges_a_naive_sessions_output_and_no_others"), 51, naive=True),
    Group("sandbox", red("shell", "test_a_naively_prepared_repository_tells_its_future"), 31, naive=True),
    Group("sandbox", "core/test_validate_sandbox.py::test_a_repository_with_a_future_is_found", 31),
    Group("sandbox", "core/test_validate_sandbox.py::test_a_hidden_text_in_a_file_is_found", 34),
    Group("sandbox", "core/test_validate_sandbox.py::test_spam_is_as_much_as_it_says", 29, naive=True),
)

GENERIC = "redteam/test_generic_attacks.py"


def attacks() -> list[Attack]:
    """Return every attack of the catalogue, those of the generic red team included.

    Raises:
        LookupError: a test is not there, or one of its parameters fits no row.
    """
    found = [one for group in GROUPS for one in _of(group)]
    generic = load(GENERIC)
    fooled = {(one.grader, one.attack) for one in generic.FOOLED}
    for grader in generic.TARGETS:
        made = [(one, (grader, one.name) in fooled) for one in generic.made_for(grader)]
        found += [Attack(grader, one.row, f"generic: {one.name}", naive) for one, naive in made]
    return found


def _of(group: Group) -> Iterator[Attack]:
    file, _, name = group.test.partition("::")
    function = getattr(load(file), name, None)
    if function is None:
        raise LookupError(f"tests/{file} has no test {name!r}; mend the catalogue")
    for one in ids_of(function):
        row = group.rows if isinstance(group.rows, int) else _row(group, one)
        yield Attack(group.grader, row, one, group.naive)


def _row(group: Group, name: str) -> int:
    assert not isinstance(group.rows, int)
    for pattern, row in group.rows.items():
        if fnmatchcase(name, pattern):
            return row
    raise LookupError(f"the attack {name!r} of {group.test} belongs to no row; add it to the catalogue")


def ids_of(function: Any) -> list[str]:
    """Return the ids of a test's parameters; of a test without, its name."""
    for mark in getattr(function, "pytestmark", []):
        if mark.name == "parametrize" and mark.args[0] != "backend":
            given = mark.kwargs.get("ids") or [getattr(one, "id", one) for one in mark.args[1]]
            return [one if isinstance(one, str) else f"{function.__name__} {index}" for index, one in enumerate(given)]
    return [function.__name__]


_loaded: dict[str, ModuleType] = {}


def load(file: str) -> ModuleType:
    """Return a test module by its path below `tests/`."""
    if file not in _loaded:
        name = "catalogued_" + file.removesuffix(".py").replace("/", "_")
        spec = spec_from_file_location(name, TESTS / file)
        if spec is None or spec.loader is None or not (TESTS / file).is_file():
            raise LookupError(f"there is no tests/{file}; mend the catalogue")
        module = sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(module)
        _loaded[file] = module
    return _loaded[file]


def table() -> str:
    """Return the matrix of families and graders, as Markdown."""
    every = attacks()
    lines = [f"| | {' | '.join(f'`{one}`' if one != 'sandbox' else one for one in GRADERS)} |"]
    lines.append("|---" * (len(GRADERS) + 1) + "|")
    for family, rows in FAMILIES.items():
        cells = [_cell([one for one in every if one.grader == grader and one.row in rows]) for grader in GRADERS]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    cells = [_cell([one for one in every if one.grader == grader]) for grader in GRADERS]
    lines.append(f"| all | {' | '.join(cells)} |")
    naive = sum(one.naive for one in every)
    told = f"{len(every)} attacks of 55 kinds; {naive} of them are also run against a naive grader, and fool it.\n\n"
    return told + "\n".join(lines) + "\n"


def _cell(found: list[Attack]) -> str:
    if not found:
        return "-"
    naive = sum(one.naive for one in found)
    return f"0 of {len(found)}" + (f"; {naive} of {naive}" if naive else "")


def written(text: str) -> str:
    """Return the README with the table of now."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}{table()}{END}{tail}"


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
