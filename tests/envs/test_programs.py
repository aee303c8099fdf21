"""Problems solved by programs, in any language and from any rows: read, judged, and refused with a reason."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentgym.errors import TaskError, UnknownNameError
from agentgym.sandbox import SandboxBackend
from agentgym.task import Task
from agentgym.validate import Plan, validate
from agentgym_envs.code import canonical, programs
from agentgym_envs.code.env import CodeEnv
from agentgym_envs.code.programs import Toolchain

SUMS = {
    "python": "print(sum(map(int, input().split())))",
    "bash": "read a b; echo $((a + b))",
    "c": '#include <stdio.h>\nint main(void) { int a, b; scanf("%d %d", &a, &b); printf("%d\\n", a + b); }',
    "cpp": "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b; }",
    "perl": "my ($a, $b) = split ' ', <STDIN>; print $a + $b;",
    "javascript": "console.log(require('fs').readFileSync(0, 'utf8').trim().split(' ').reduce((a, b) => +a + +b))",
    "lua": "print(io.read('n') + io.read('n'))",
}
PROGRAMS = {"python": "python3", "c": "gcc", "cpp": "g++", "javascript": "node", "lua": "lua5.4"}
ROW: dict[str, Any] = {
    "id": "sum",
    "prompt": "Add two numbers.",
    "tests": [
        {"input": "1 2\n", "output": "3\n", "public": True},
        {"input": "20 -5\n", "output": "15\n"},
        {"input": "999 4\n", "output": "1003\n"},
    ],
    "solutions": SUMS,
    "split": "train",
}


def write(folder: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def played(env: CodeEnv, task: Task, *messages: str) -> tuple[list[str], dict[str, Any]]:
    env.reset(options={"task": task})
    shown: list[str] = []
    info: dict[str, Any] = {}
    for one in messages:
        observation, _, _, _, info = env.step(one)
        shown += [message.content for message in observation]
    return shown, info


@pytest.mark.parametrize("language", SUMS)
def test_one_problem_is_tested_and_judged_in_every_language(
    backend: SandboxBackend, tmp_path: Path, language: str
) -> None:
    program = PROGRAMS.get(language, language)
    if shutil.which(program, path="/usr/local/bin:/usr/bin:/bin") is None:
        pytest.skip(f"{program} is not installed")
    env = CodeEnv(sandbox=backend, family="stdio", path=write(tmp_path, [ROW]), language=language)
    (task,) = env.tasks
    assert f"program in {language}" in task.public.prompt
    assert "999" not in task.content
    wrong = SUMS[language].replace("+", "-") if language != "python" else "print(int(input().split()[0]))"
    shown, info = played(env, task, f"```test\n{wrong}\n```", *env.oracle(task))
    assert shown[0].startswith('visible example 1: for "1 2\\n" it printed')
    assert (info["verdict"].level, info["signals"]["submitted"]) == ("passed", 1.0)


def test_of_several_languages_the_id_chooses_unless_the_row_does() -> None:
    both = Toolchain(language=("c", "bash"), images={"c": "gcc:13"})
    chosen = [programs.convert({**ROW, "id": str(index)}, both) for index in range(20)]
    names = {str(task.public.data["languages"]) for task in chosen}
    assert names == {"['c']", "['bash']"}
    assert {task.sandbox.image for task in chosen if "c" in str(task.public.data["languages"])} == {"gcc:13"}
    assert programs.convert({**ROW, "language": "lua"}, both).public.data["languages"] == ["lua"]


def test_program_tasks_hold_every_check_of_validate(backend: SandboxBackend, tmp_path: Path) -> None:
    env = CodeEnv(sandbox=backend, family="stdio", path=write(tmp_path, [ROW]), language="bash")
    tasks = list(env.tasks)
    found = validate(
        lambda: CodeEnv(sandbox=backend, family="stdio", path=write(tmp_path, [ROW]), language="bash"),
        tasks,
        plan=Plan(attacks=3, calls=5),
    )
    assert found.passed, found.findings


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tests": ROW["tests"][:1]}, "wanted a hidden test with an input of its own"),
        ({"tests": [ROW["tests"][0], {**ROW["tests"][0], "public": False}]}, "wanted a hidden test"),
        ({"tests": [{"input": str(i), "output": "3\n"} for i in range(3)]}, "every test wants the same output"),
    ],
)
def test_a_row_whose_hidden_tests_decide_nothing_is_listed_with_its_reason(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    tasks = programs.tasks(Path(write(tmp_path, [{**ROW, **change}])), Toolchain())
    assert list(tasks) == []
    assert reason in tasks.refused()["sum"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tests": 3}, "wanted 'tests' as a list"),
        ({"tests": [{"input": "1"}]}, "the field 'output' is missing"),
        ({"tests": {"inputs": ["1"], "outputs": []}}, "as many inputs as outputs"),
        ({"language": "cobol"}, "no language is registered as 'cobol'"),
        ({"prompt": None, "language": {"name": "x"}}, "a language is described wrongly"),
        ({"output": {"mode": "close"}}, "output.mode"),
        ({"split": "dev"}, "wanted a split among"),
    ],
)
def test_a_malformed_row_is_told_in_one_sentence_with_its_line(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    tasks = programs.tasks(Path(write(tmp_path, [{**ROW, **change}])), Toolchain())
    with pytest.raises(TaskError, match=r"rows\.jsonl:1 is not a row of the stdio format") as told:
        list(tasks)
    assert words in str(told.value)
    assert "\n" not in str(told.value)


EXERCISES = {
    "leap": ("python", "y = int(input())\nprint('true' if y % 4 == 0 and (y % 100 or y % 400 == 0) else 'false')"),
    "raindrops": ("bash", 'read n; s=\n((n % 3)) || s+=Pling\n((n % 5)) || s+=Plang\n((n % 7)) || s+=Plong\n'
                          'echo "${s:-$n}"'),
    "space-age": ("python", "p = dict(Mercury=0.2408467, Venus=0.61519726, Earth=1.0, Mars=1.8808158, "
                            "Jupiter=11.862615, Saturn=29.447498, Uranus=84.016846, Neptune=164.79132)\n"
                            "n = input()\ns = int(input())\nprint(s / 31557600 / p[n] if n in p else 'error')"),
    "sublist": ("python", "import json\na, b = json.loads(input()), json.loads(input())\n"
                          "def within(x, y): return any(y[i:i + len(x)] == x for i in range(len(y) - len(x) + 1))\n"
                          "one, two = within(a, b), within(b, a)\n"
                          "print('equal' if one and two else 'sublist' if one else 'superlist' if two else 'unequal')"),
    "pascals-triangle": ("python", "import json\nn = int(input())\nr = []\nfor i in range(n):\n    r.append("
                                   "[1] + [r[-1][k] + r[-1][k + 1] for k in range(i - 1)] + [1] if i else [1])\n"
                                   "print(json.dumps(r, separators=(',', ':')))"),
}  # fmt: skip


@pytest.mark.parametrize("exercise", EXERCISES)
def test_a_specification_of_no_language_is_solved_in_one(data: Path, backend: SandboxBackend, exercise: str) -> None:
    language, program = EXERCISES[exercise]
    file = data / "exercism_canonical" / "canonical.jsonl"
    env = CodeEnv(sandbox=backend, family="exercism_canonical", path=str(file), language=language)
    task = env.tasks[f"exercism/{exercise}"]
    shown, info = played(env, task, f"```test\n{program}\n```", f"```submit\n{program}\n```")
    assert (shown[0], info["verdict"].level) == ("ok", "passed"), info["verdict"].feedback
    with pytest.raises(TaskError, match="has no reference solution"):
        env.oracle(task)


def test_specifications_become_tasks_or_are_refused_with_a_reason(data: Path) -> None:
    found = canonical.tasks(data / "exercism_canonical" / "canonical.jsonl", Toolchain(language=("c", "bash")))
    tasks, refused = list(found), found.refused()
    assert (len(tasks), len(tasks) + len(refused)) == (130, 142)
    assert set(refused) >= {"exercism/accumulate", "exercism/react", "exercism/hello-world"}
    for task in tasks:
        cases: Any = task.hidden.data["cases"]
        shown: Any = task.public.data["examples"]
        assert 1 <= len(shown) < len(shown) + len(cases) <= canonical.MAX_CASES
        assert not {one["stdin"] for one in shown} & {one["stdin"] for one in cases}


def dataset(path: object, kind: str, **more: Any) -> CodeEnv:
    return CodeEnv(family="dataset", dataset={"path": str(path), "kind": kind, **more})


QUESTION = {
    "question": "Double it.",
    "meta": {
        "answers": ["def twice(x):\n    return 2 * x\n"],
        "checks": ["assert twice(1) == 2", "assert twice(4) == 8"],
    },
}
FIELDS = {"prompt": "question", "tests": "meta.checks", "reference": "meta.answers"}


def test_any_rows_become_tasks_once_their_columns_are_named(backend: SandboxBackend, tmp_path: Path) -> None:
    path = write(tmp_path, [QUESTION])
    env = CodeEnv(sandbox=backend, family="dataset", dataset={"path": path, "kind": "asserts", "fields": FIELDS})
    (task,) = env.tasks
    assert task.id.startswith("asserts/")
    _, info = played(env, task, "```test\ntwice = str\n```", *env.oracle(task))
    assert info["verdict"].passed


def test_a_split_is_the_options_the_rows_own_or_by_the_hash(tmp_path: Path) -> None:
    def splits(row: Mapping[str, Any], **more: Any) -> list[str]:
        path = write(tmp_path, [{**QUESTION, "question": f"Double {index}.", **row} for index in range(40)])
        return [task.split for task in dataset(path, "asserts", fields=FIELDS, **more).tasks]

    assert set(splits({"split": "prompt"})) == {"train"}
    assert set(splits({"split": "other"}, split="validation")) == {"validation"}
    assert set(splits({})) == {"train", "validation", "test"}
    with pytest.raises(TaskError, match=r"rows.jsonl:1 is not a row .*: wanted a split among .*, found 'other'"):
        splits({"split": "other"})


def test_each_kind_of_tests_is_read_and_judged(backend: SandboxBackend, tmp_path: Path) -> None:
    code = "def twice(x):\n    return 2 * x\n"
    suite = (
        "import unittest\nfrom solution import twice\nclass T(unittest.TestCase):\n"
        "    def test_a(self): self.assertEqual(twice(1), 2)\n    def test_b(self): self.assertEqual(twice(2), 4)\n"
    )
    kinds: dict[str, dict[str, Any]] = {
        "function": {"tests": [{"call": f"twice({x})", "expected": 2 * x} for x in range(4)], "entry": "twice"},
        "unittest": {"tests": suite},
        "asserts": {"tests": "assert twice(1) == 2\nassert twice(2) == 4", "entry": ["twice"]},
        "stdio": {
            "tests": json.dumps({"inputs": ["1", "2"], "outputs": ["2", "4"]}),
            "reference": "print(2*int(input()))",
        },
    }
    for kind, row in kinds.items():
        path = write(tmp_path, [{"id": 1, "prompt": "Double it.", "reference": code, "difficulty": "easy", **row}])
        env = CodeEnv(sandbox=backend, family="dataset", dataset={"path": path, "kind": kind})
        (task,) = env.tasks
        assert (task.id, task.difficulty) == ("1", None)
        _, info = played(env, task, *env.oracle(task))
        assert info["verdict"].passed, (kind, info["verdict"].feedback)
        _, info = played(env, task, "```submit\ndef twice(x): return 3\n```")
        assert info["verdict"].value == 0.0


@pytest.mark.parametrize("form", ["parquet", "folder", "hub"])
def test_what_the_package_datasets_keeps_is_read_too(tmp_path: Path, form: str) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([QUESTION, {**QUESTION, "question": "Double x."}])
    path = tmp_path / ("rows.parquet" if form == "parquet" else "rows")
    if form == "folder":
        datasets.DatasetDict({"test": table}).save_to_disk(str(path))
    elif form == "hub":  # a name of the hub may be a folder of this machine
        path.mkdir()
        table.to_parquet(str(path / "test.parquet"))
    else:
        table.to_parquet(str(path))
    given = {
        "hub" if form == "hub" else "path": str(path),
        "rows": {"parquet": "train", "folder": "test", "hub": "test[:2]"}[form],
    }
    split = {} if form == "hub" else {"split": "test"}
    env = CodeEnv(family="dataset", dataset={**given, **split, "kind": "asserts", "fields": FIELDS})
    assert [task.split for task in env.tasks] == ["test", "test"]


def test_without_the_package_it_is_asked_for_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "datasets.py").write_text("raise ImportError('none')\n")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom agentgym_envs.code.env import CodeEnv\n"
        "list(CodeEnv(family='dataset', dataset={'hub': 'some/set', 'kind': 'stdio'}).tasks)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "reading 'some/set' needs the package datasets: pip install 'agentgym-rlvr[datasets]'" in run.stderr


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kind": "asserts"}, "wanted either path or hub, found neither"),
        ({"path": "a", "hub": "b", "kind": "asserts"}, "found both"),
        ({"path": "a", "kind": "essay"}, "dataset.kind: Input should be 'stdio'"),
        ({"path": "a", "kind": "stdio", "fields": {"promt": "x"}}, "dataset.fields.promt"),
        ({"path": "a", "kind": "stdio", "config": "x"}, "only a data set of the hub has a config"),
        ({"path": "none.jsonl", "kind": "stdio"}, "no task file at none.jsonl"),
        ({"path": "none.txt", "kind": "stdio"}, "wanted a folder or a file that ends in .jsonl"),
    ],
)
def test_a_source_that_cannot_be_read_is_told_in_one_sentence(given: dict[str, Any], words: str) -> None:
    if given["path" if "path" in given else "kind"] == "none.txt":
        pytest.importorskip("datasets")
    with pytest.raises(TaskError) as told:
        list(CodeEnv(family="dataset", dataset=given).tasks)
    assert words in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fields": {**FIELDS, "tests": "meta.test"}}, "there is no column 'meta.test'; the row has question, meta"),
        ({"fields": {"prompt": "question"}}, "the field 'tests' is missing"),
        ({"kind": "function", "fields": {**FIELDS, "tests": "meta.checks"}}, "wanted tests with call and one of"),
    ],
)
def test_a_column_that_is_not_there_or_of_another_form_names_the_row(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    given = {"kind": "asserts", "fields": FIELDS, **change}
    with pytest.raises(TaskError, match=r"rows\.jsonl:1 is not a row") as told:
        list(dataset(write(tmp_path, [QUESTION]), **given).tasks)
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"family": "dataset"}, TaskError, "go together"),
        ({"family": "repair", "dataset": {}}, TaskError, "go together"),
        ({"family": "mbpp", "path": "x", "language": "c"}, TaskError, "are solved in Python"),
        ({"family": "stdio", "path": "x", "language": "cobol"}, UnknownNameError, "no language"),
        ({"family": "stdio", "path": "x", "images": {"pyhton": "x"}}, UnknownNameError, "did you mean 'python'"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        CodeEnv(**options)
