"""Published sets of software engineering tasks load from the user's files, and solve in images like theirs."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agentgym import registry
from agentgym.errors import SandboxError, TaskError
from agentgym.graders.patches import apply, parse
from agentgym.image import ImageSpec
from agentgym.sandbox import SandboxBackend, SandboxSpec
from agentgym.task import Task
from agentgym.types import Submission
from agentgym_envs.swe.families import family_tasks
from agentgym_envs.swe.ids import usable
from agentgym_envs.swe.reverse import reverse

CORE = "def add(a, b):\n    return a + b\n\n\ndef neg(a):\n    return -a\n"
TESTS = "from calc.core import add, neg\n\n\ndef test_add():\n    assert add(2, 3) == 5\n\n\n" + (
    "def test_neg():\n    assert neg(2) == -2\n"
)
BUG = """diff --git a/calc/core.py b/calc/core.py
index 111..222 100644
--- a/calc/core.py
+++ b/calc/core.py
@@ -1,5 +1,5 @@ def add
 def add(a, b):
-    return a + b
+    return a - b
{empty}
{empty}
 def neg(a):
""".replace("{empty}", " ")
FIX = reverse(BUG)
F2P, P2P = ["tests/test_core.py::test_add"], ["tests/test_core.py::test_neg"]
SMITH = {
    "instance_id": "owner__calc.1234abcd.func_pm__0",
    "repo": "swesmith/owner__calc.1234abcd",
    "patch": BUG,
    "FAIL_TO_PASS": F2P,
    "PASS_TO_PASS": P2P,
    "image_name": "jyangballin/swesmith.x86_64.owner_1776_calc.1234abcd",
    "problem_statement": "Sums are wrong.",
}
BENCH = {
    "instance_id": "Owner__calc-7",
    "repo": "Owner/calc",
    "base_commit": "a" * 40,
    "problem_statement": "Sums are wrong.",
    "patch": FIX,
    "test_patch": "diff --git a/tests/test_new.py b/tests/test_new.py\nnew file mode 100644\n--- /dev/null\n"
    "+++ b/tests/test_new.py\n@@ -0,0 +1,2 @@\n+def test_new():\n+    pass\n",
    "FAIL_TO_PASS": json.dumps([*F2P, "tests/test_core.py::test_many[a -"]),
    "PASS_TO_PASS": json.dumps([*P2P, "tests/test_core.py::test_many[b]"]),
    "version": "1.2",
    "difficulty": "<15 min fix",
}


def log(*lines: str) -> str:
    return "\n".join(["=== short test summary info ===", *lines])


def r2e(**more: object) -> dict[str, Any]:
    lines = [("context", "def add(a, b):"), ("deleted", "    return a - b"), ("added", "    return a + b")]
    hunk = {
        "descriptor": {"old_range": {"start": 1, "length": 2}, "new_range": {"start": 1, "length": 2}, "section": ""},
        "line_group": {"all_lines": [{"content": text, "type": kind} for kind, text in lines]},
    }
    changed = {
        "header": {"file": {"path": "calc/core.py"}, "misc_line": None},
        "minus_file": {"path": "a/calc/core.py"},
        "plus_file": {"path": "b/calc/core.py"},
        "hunks": [hunk],
    }
    beside = {**changed, "header": {"file": {"path": "tests/test_core.py"}, "misc_line": None}}
    executed = {
        "test_file_names": ["test_1.py"],
        "test_file_codes": [TESTS],
        "old_commit_res_stdout": log("FAILED r2e_tests/test_1.py::test_add - assert -1 == 5",
                                     "\x1b[32mPASSED\x1b[0m r2e_tests/test_1.py::\x1b[1mtest_neg\x1b[0m"),
        "new_commit_res_stdout": log("PASSED r2e_tests/test_1.py::test_add", "PASSED r2e_tests/test_1.py::test_neg"),
    }  # fmt: skip
    return {
        "repo_name": "calc",
        "docker_image": "namanjain12/calc_final:abc",
        "commit_hash": "b" * 40,
        "parsed_commit_content": json.dumps({"file_diffs": [changed, beside], "old_commit_hash": "c" * 40}),
        "execution_result_content": json.dumps(executed),
        "expected_output_json": json.dumps({"\x1b[1mtest_add\x1b[0m": "PASSED", "test_neg": "PASSED"}),
        "problem_statement": "Write it up. [ISSUE]\nSums are wrong.\n[/ISSUE]",
        **more,
    }


def loaded(family: str, tmp_path: Path, *rows: object) -> list[Task]:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return list(family_tasks(family, path=str(file), count=0, seed=0))


def test_rows_of_swe_bench_and_swe_gym_become_tasks_in_their_images(tmp_path: Path) -> None:
    (task,) = loaded("swe_bench", tmp_path, BENCH)
    image = ImageSpec.from_name(str(task.sandbox.image))
    assert image.base == "swebench/sweb.eval.x86_64.owner_1776_calc-7:latest"
    assert (task.sandbox.workdir, task.sandbox.writable_root) == ("/testbed", True)
    assert task.sandbox.env["PATH"].startswith("/opt/miniconda3/envs/testbed/bin:")
    assert (task.id, task.split, task.public.prompt) == ("Owner__calc-7", "test", "Sums are wrong.")
    assert task.hidden.data["fail_to_pass"] == [*F2P, "tests/test_core.py::test_many"]
    assert task.hidden.data["pass_to_pass"] == P2P
    assert task.hidden.data["test_patch"] == BENCH["test_patch"]
    (gym,) = loaded("swe_gym", tmp_path, {**BENCH, "FAIL_TO_PASS": F2P, "split": "train"})
    assert ImageSpec.from_name(str(gym.sandbox.image)).base == "xingyaoww/sweb.eval.x86_64.owner_s_calc-7:latest"
    (named,) = loaded("swe_bench", tmp_path, {**BENCH, "image_name": "mine/calc:7", "split": "dev"})
    assert ImageSpec.from_name(str(named.sandbox.image)).base == "mine/calc:7"
    assert (gym.split, named.split) == ("train", "validation")


def test_a_row_of_swe_smith_has_its_defect_planted_and_its_patch_turned_round(tmp_path: Path) -> None:
    (task,) = loaded("swe_smith", tmp_path, SMITH)
    gold = str(task.hidden.reference["patch"])
    assert apply({"calc/core.py": CORE.replace("a + b", "a - b").encode()}, parse(gold)).files == {
        "calc/core.py": CORE.encode()
    }
    image = ImageSpec.from_name(str(task.sandbox.image))
    assert image.base == SMITH["image_name"]
    assert "git apply" in image.run[0]
    assert task.public.data["base_commit"] == "1234abcd"
    assert "protected" not in task.hidden.data  # what every image holds somewhere is no secret


def test_a_row_of_r2e_gym_brings_its_tests_and_its_images_lose_them(tmp_path: Path) -> None:
    (task,) = loaded("r2e_gym", tmp_path, r2e())
    assert (task.id, task.public.prompt) == ("calc__" + "b" * 10, "Sums are wrong.")
    assert task.hidden.data["fail_to_pass"] == ["r2e_tests/test_1.py::test_add"]
    assert task.hidden.data["pass_to_pass"] == ["r2e_tests/test_1.py::test_neg"]
    assert task.hidden.data["tests"] == {"r2e_tests/__init__.py": "", "r2e_tests/test_1.py": TESTS}
    gold = parse(str(task.hidden.reference["patch"]))
    assert [one.new for one in gold] == ["calc/core.py"]
    assert "/r2e_tests" in ImageSpec.from_name(str(task.sandbox.image)).run[0]


@pytest.mark.parametrize(
    ("family", "row", "reason"),
    [
        ("swe_bench", {**BENCH, "FAIL_TO_PASS": '["test_x (app.tests.T)"]'}, "not named as pytest names them"),
        ("swe_bench", {**BENCH, "FAIL_TO_PASS": "[]"}, "it names no test that fails before"),
        ("swe_smith", {**SMITH, "problem_statement": ""}, "no issue was written for it"),
        ("r2e_gym", r2e(expected_output_json='{"test_neg": "PASSED"}'), "no test is known to fail before"),
    ],
)
def test_what_cannot_be_judged_is_listed_with_its_reason(
    family: str, row: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"first": row}))
    found = family_tasks(family, path=str(tmp_path / "rows.json"), count=0, seed=0)
    assert list(found) == []
    (told,) = found.refused().values()  # type: ignore[attr-defined]
    assert reason in told


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"instance_id": "a__b-1"}, r"rows.jsonl:1 is not a row of the swe_bench format: the field 'FAIL_TO_PASS' is"),
        ({**BENCH, "FAIL_TO_PASS": "[3]"}, r"wanted a list of test ids, or a JSON text of one, found '\[3\]'"),
        ({**BENCH, "repo": None}, r"rows.jsonl:1 is not a row of the swe_bench format: repo: Field required"),
        ([], r"rows.jsonl:1 is not a row of the swe_bench format"),
    ],
)
def test_a_malformed_row_is_one_sentence(row: object, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=sentence):
        loaded("swe_bench", tmp_path, row)


def test_rows_are_read_from_parquet_and_from_folders_of_files(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    (tmp_path / "data").mkdir()
    names = {name: value for name, value in BENCH.items() if name != "difficulty"}
    for index in range(2):
        row = {**names, "instance_id": f"owner__calc-{index}"}
        pyarrow.parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "data" / f"test-{index}.parquet")
    found = family_tasks("swe_bench", path=str(tmp_path), count=0, seed=0)
    assert [one.id for one in found] == ["owner__calc-0", "owner__calc-1"]
    (tmp_path / "data" / "test-0.parquet").write_bytes(b"PAR0")
    with pytest.raises(TaskError, match=r"no rows can be read at .*test-0.parquet"):
        list(found)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(TaskError, match=r"holds no files that end in .jsonl, .json, .parquet"):
        list(family_tasks("swe_bench", path=str(tmp_path / "nothing"), count=0, seed=0))


def folder(root: Path, **changes: str | None) -> Path:
    made = root / "tasks" / "owner__calc-7"
    made.mkdir(parents=True)
    about = {name: BENCH[name] for name in ("instance_id", "repo", "base_commit", "version")}
    about |= {"instance_id": "owner__calc-7", "split": "test", "image": "swebench/calc:latest", "log_parser": "x"}
    tests = {"FAIL_TO_PASS": json.loads(str(BENCH["FAIL_TO_PASS"])), "PASS_TO_PASS": P2P}
    files: dict[str, str | None] = {
        "task.yaml": yaml.safe_dump(about), "tests.json": json.dumps(tests),
        "problem_statement.md": "Sums are wrong.\n", "gold.patch": FIX,
        "test.patch": str(BENCH["test_patch"]), "Dockerfile": "FROM scratch\n", **changes,
    }  # fmt: skip
    for name, text in files.items():
        if text is not None:
            (made / name).write_text(text)
    return root


def test_task_folders_of_swe_bench_5_load(tmp_path: Path) -> None:
    (task,) = family_tasks("folders", path=str(folder(tmp_path)), count=0, seed=0)
    assert ImageSpec.from_name(str(task.sandbox.image)).base == "swebench/calc:latest"
    assert task.hidden.data["fail_to_pass"] == [*F2P, "tests/test_core.py::test_many"]
    assert (task.split, task.public.prompt) == ("test", "Sums are wrong.")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gold.patch": None}, r"has no readable gold.patch"),
        ({"tests.json": "{}"}, r"tests.json is malformed; wanted lists FAIL_TO_PASS and PASS_TO_PASS"),
        ({"task.yaml": "- 1\n"}, r"task.yaml is malformed; wanted a mapping with instance_id"),
        ({"task.yaml": "instance_id: other\n"}, r"task.yaml names another instance: 'other'"),
        ({"task.yaml": "repo: a/b\n"}, r"is malformed: base_commit: Field required"),
    ],
)
def test_a_malformed_task_folder_is_one_sentence(changes: dict[str, str | None], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=sentence):
        list(family_tasks("folders", path=str(folder(tmp_path, **changes)), count=0, seed=0))
    with pytest.raises(TaskError, match=r"holds no task folders; wanted NAME/task.yaml"):
        list(family_tasks("folders", path=str(tmp_path / "tasks" / "owner__calc-7"), count=0, seed=0))


texts = st.lists(st.sampled_from(["a", "b", "", "- c", "+ d", "-- e"]), max_size=12).map(
    lambda one: "\n".join([*one, ""])
)


@given(before=texts, after=texts)
def test_a_diff_turned_round_takes_the_diff_back(before: str, after: str) -> None:
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), "a/f.py", "b/f.py", n=1)
    diff = "diff --git a/f.py b/f.py\n" + "".join(lines)
    if before == after:
        return
    assert apply({"f.py": before.encode()}, parse(diff)).files["f.py"] == after.encode()
    assert apply({"f.py": after.encode()}, parse(reverse(diff))).files["f.py"] == before.encode()


def test_a_new_file_turned_round_is_a_deletion() -> None:
    made = str(BENCH["test_patch"])
    files = apply({}, parse(made)).files
    assert apply(files, parse(reverse(made))).files == {}
    assert apply({}, parse(reverse(reverse(made)))).files == files


def test_ids_that_would_be_asked_for_twice_are_asked_for_once() -> None:
    assert usable(["t.py::a[x"], ["t.py::a", "t.py::a[y]", "t.py::b"]) == (("t.py::a",), ("t.py::b",))


@pytest.fixture(scope="module")
def docker() -> Iterator[SandboxBackend]:
    found: SandboxBackend = registry.create("sandboxes", "docker")
    try:
        found.check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    yield found
    found.close()


def published(backend: Any, core: str, *more: str) -> str:
    """Build an image that holds a repository as published ones do, and return its name."""
    files = {"/testbed/calc/core.py": core, "/testbed/calc/__init__.py": "", "/testbed/tests/test_core.py": TESTS}
    git = "git -c user.name=a -c user.email=a@example.org"
    commit = (
        f"cd /testbed && git init -q . && git add -A && {git} commit -q -m old && {git} commit -q --allow-empty -m new"
    )
    spec = ImageSpec(files=files, run=(commit, *more))
    backend.accept(SandboxSpec(image=spec.name))
    return str(backend._daemon.require_image(spec.name))


@pytest.mark.docker
def test_a_planted_defect_is_there_in_containers_and_its_reversal_scores_1(docker: Any, tmp_path: Path) -> None:
    image = published(docker, CORE)
    (task,) = loaded("swe_smith", tmp_path, {**SMITH, "image_name": image})
    task = task.model_copy(update={"sandbox": task.sandbox.model_copy(update={"env": {}})})
    with docker.start(task.sandbox) as box:
        assert b"a - b" in box.read("/testbed/calc/core.py")
        told = box.exec("git log --oneline | wc -l; grep -rl 'a + b' / --exclude-dir=proc --exclude-dir=sys 2>&-")
        assert told.stdout.split()[0] == b"1"
        assert b"/testbed" not in told.stdout
    grader = registry.create("graders", "pytest_ids")
    gold = str(task.hidden.reference["patch"])
    for diff, wanted in ((gold, 1.0), (gold.replace("+    return a + b", "+    return a * b"), 0.0)):
        found = grader.grade(task, Submission(data={"diff": diff}), docker)
        assert found.value == wanted, found.feedback


@pytest.mark.docker
def test_an_r2e_image_shows_no_tests_and_its_own_python_judges(docker: Any, tmp_path: Path) -> None:
    old = CORE.replace("a + b", "a - b")
    telling = "mkdir /r2e_tests; cp /testbed/tests/test_core.py /r2e_tests/test_1.py; echo x >/testbed/run_tests.sh"
    python = "cd /testbed && python3 -m venv --without-pip --system-site-packages .venv"
    image = published(docker, old, telling, python)
    (task,) = loaded("r2e_gym", tmp_path, r2e(docker_image=image))
    with docker.start(task.sandbox) as box:
        seen = box.exec("ls -d /r2e_tests /testbed/run_tests.sh /testbed/.venv; command -v python3", cwd="/testbed")
        assert seen.stdout.split() == [b"/opt/r2e/venv/bin/python3"]
    gold = str(task.hidden.reference["patch"])
    found = registry.create("graders", "pytest_ids").grade(task, Submission(data={"diff": gold}), docker)
    assert found.value == 1.0, found.feedback
