"""The pytest_ids grader: every wanted test is accounted for, and a right repository passes."""

from __future__ import annotations

import base64
import os
import random
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import JsonValue

from agentgym import registry
from agentgym.errors import SandboxError, VerifierError
from agentgym.graders.pytest_ids import PytestGrader
from agentgym.graders.pytest_ids_twins import plan
from agentgym.image import ImageSpec
from agentgym.sandbox import SandboxBackend, SandboxSpec
from agentgym.task import Hidden, Public, Task
from agentgym.types import Submission, Trust, Verdict

CORE = "def add(a, b):\n    return a - b\n\n\ndef neg(a):\n    return -a\n"
RIGHT = {"calc/core.py": CORE.replace("a - b", "a + b")}
OLD = "from calc.core import neg\n\n\ndef test_neg():\n    assert neg(2) == -2\n"
BASE = {
    "calc/__init__.py": "",
    "calc/core.py": CORE,
    "tests/__init__.py": "",
    "tests/conftest.py": "import pytest\n\n\n@pytest.fixture\ndef two():\n    return 2\n",
    "tests/test_old.py": OLD,
    "setup.cfg": "[tool:pytest]\naddopts = --nothing-of-the-kind\n",
}
NEW = """
import unittest
import pytest
from calc.core import add


@pytest.mark.parametrize("a, b, c", [(1, 2, 3), (4, 5, 9)])
def test_add(a, b, c):
    assert add(a, b) == c


def test_two(two):
    assert add(two, 3) == 5


class SumTest(unittest.TestCase):
    def test_sum(self):
        self.assertEqual(add(3, 3), 6)
"""
TESTS = {"tests/test_add.py": NEW}
F2P = ["tests/test_add.py::test_add", "tests/test_add.py::test_two", "tests/test_add.py::SumTest::test_sum"]
P2P = ["tests/test_old.py::test_neg"]


@pytest.fixture(scope="module")
def backend() -> Iterator[SandboxBackend]:
    found: SandboxBackend = registry.create("sandboxes", "process")
    try:
        found.check()
        judged(found, RIGHT)
    except SandboxError as missing:
        pytest.skip(str(missing))
    yield found
    found.close()


def calc(files: Mapping[str, str] = BASE, **hidden: Any) -> Task:
    data: dict[str, Any] = {"fail_to_pass": F2P, "pass_to_pass": P2P, "tests": {**TESTS}, **hidden}
    return Task(
        id="calc", split="train", public=Public(prompt="Mend add.", files=dict(files)), hidden=Hidden(data=data)
    )


def judged(backend: SandboxBackend, files: Mapping[str, str], task: Task | None = None, **data: JsonValue) -> Verdict:
    return PytestGrader().grade(task or calc(), Submission(files=dict(files), data=data), backend)


@pytest.mark.docker
def test_a_repository_in_an_image_is_judged_where_it_is() -> None:
    docker: SandboxBackend = registry.create("sandboxes", "docker")
    try:
        docker.check()
    except SandboxError as missing:
        if os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(missing))
    if "writable_root" not in docker.capabilities:
        pytest.skip("the socket proxy before this Docker allows no writable root")
    files = {f"/testbed/{name}": text or "#\n" for name, text in {**BASE, "calc/gone.py": "1"}.items()}
    crowded = "mkdir -p /testbed/.git/objects && cd /testbed/.git/objects && seq 11000 | xargs touch"
    image = ImageSpec(files=files, run=(crowded, "chown -R 1000:1000 /testbed", "ln -s /etc /testbed/link"))
    place = SandboxSpec(image=image.name, writable_root=True, workdir="/testbed")
    gone = "def test_gone():\n    with pytest.raises(ImportError):\n        import calc.gone\n"
    hidden: dict[str, Any] = {**calc().hidden.data, "root": "/testbed"}
    hidden["tests"] = {"tests/test_add.py": f"{NEW}\n\n{gone}"}
    hidden["fail_to_pass"] = [*F2P, "tests/test_add.py::test_gone"]
    task = Task(id="calc", split="train", public=Public(prompt=""), hidden=Hidden(data=hidden), sandbox=place)
    try:
        verdict = judged(docker, RIGHT, task, deleted=["calc/gone.py"])
        assert (verdict.feedback, verdict.value, verdict.trust) == ("", 1.0, Trust.TWINS)
        assert judged(docker, RIGHT, task).value == 0.0
        assert judged(docker, {"calc/core.py": CORE}, task).level == "empty"
        bare = ImageSpec(run=("rm -r /usr/lib/python3/dist-packages/pytest", *image.run), files=files)
        with pytest.raises(SandboxError, match="in the sandbox has no pytest: run `apt-get install python3-pytest`"):
            judged(docker, RIGHT, task.model_copy(update={"sandbox": place.model_copy(update={"image": bare.name})}))
        lost = {**hidden, "root": "/nowhere"}
        with pytest.raises(VerifierError, match=r"'calc' cannot be read in its image: .*no such file"):
            judged(docker, RIGHT, task.model_copy(update={"hidden": Hidden(data=lost)}))
        with pytest.raises(VerifierError, match="add writable_root"):
            judged(docker, RIGHT, task.model_copy(update={"sandbox": SandboxSpec(image=image.name)}))
    finally:
        docker.close()


def single(body: str, *ids: str, **hidden: Any) -> Task:
    """Return a task with one hidden test file."""
    tests = {"tests/test_add.py": "import pytest\nfrom calc.core import add\n" + body}
    names = [f"tests/test_add.py::{one}" for one in ids or ("test_add",)]
    return calc(fail_to_pass=names, tests=tests, **hidden)


def test_a_sound_task_is_not_refused() -> None:
    PytestGrader().check(calc())


def test_the_right_repository_passes_with_the_trust_of_twins(backend: SandboxBackend) -> None:
    verdict = judged(backend, RIGHT)
    assert (verdict.value, verdict.level, verdict.trust) == (1.0, "passed", Trust.TWINS)
    assert verdict.components == {"passed": 1.0, "fail_to_pass": 1.0, "pass_to_pass": 1.0, "other_tests": 0.0}


def test_a_diff_passes_like_the_files_that_it_leads_to(backend: SandboxBackend) -> None:
    names = "--- a/calc/core.py\n+++ b/calc/core.py\n"
    diff = f"{names}@@ -1,2 +1,2 @@\n def add(a, b):\n-    return a - b\n+    return a + b\n"
    assert judged(backend, {}, diff=diff).passed
    refused = judged(backend, {}, diff=diff.replace("a - b", "a * b"))
    assert (refused.value, refused.level) == (0.0, "malformed")
    assert "does not fit 'calc/core.py'" in refused.feedback


@pytest.mark.parametrize(
    ("files", "level", "feedback"),
    [
        pytest.param({}, "empty", "nothing was submitted", id="nothing"),
        pytest.param({"calc/core.py": CORE}, "empty", "the submission changes nothing that counts", id="no change"),
        pytest.param({"calc/core.py": f"{CORE}#\n"}, "failed", "3 of the hidden tests fail", id="a comment"),
        pytest.param({"calc/core.py": "def add("}, "broken", "no test could be collected", id="no Python"),
        pytest.param(
            {"calc/core.py": RIGHT["calc/core.py"].replace("-a", "a")},
            "failed",
            "tests/test_old.py::test_neg fails: assert 2 == -2 + where 2 = neg(2)",
            id="a regression",
        ),
        pytest.param(
            {"../x.py": "1"}, "malformed", "wanted a path inside the repository, found '../x.py'", id="climbing"
        ),
    ],
)
def test_every_way_to_end_has_its_level_and_its_sentence(
    backend: SandboxBackend, files: dict[str, str], level: str, feedback: str
) -> None:
    verdict = judged(backend, files)
    assert (verdict.value, verdict.level, verdict.feedback) == (0.0, level, feedback)


def test_a_visible_failures_text_cannot_carry_hidden_tests(backend: SandboxBackend) -> None:
    spy = (
        "import pathlib\nadd = lambda a, b: a + b\n"
        "def neg(a): raise ValueError(''.join(p.read_text() for p in pathlib.Path('.').rglob('test_add*')) + '!')\n"
    )
    verdict = judged(backend, {"calc/core.py": spy})
    assert verdict.feedback == "tests/test_old.py::test_neg fails: ValueError: !"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("def test_add(): pytest.skip('no')\n", id="skips itself"),
        pytest.param("@pytest.mark.skip\ndef test_add(): pass\n", id="skipped"),
        pytest.param("@pytest.mark.xfail\ndef test_add(): assert 0\n", id="xfail"),
        pytest.param("@pytest.mark.xfail\ndef test_add(): pass\n", id="xpass"),
        pytest.param("@pytest.fixture\ndef f(): assert 0\ndef test_add(f): pass\n", id="broken set-up"),
        pytest.param("@pytest.fixture\ndef f():\n    yield\n    assert 0\ndef test_add(f): pass\n", id="tear-down"),
        pytest.param("def test_other(): pass\n", id="missing"),
        pytest.param("import gone\ndef test_add(): pass\n", id="not importable"),
        pytest.param("def test_add():\n    while True: pass\n", id="endless"),
        pytest.param("class TestA:\n    test_add = lambda self: None\n", id="another id"),
    ],
)
def test_a_wanted_test_that_does_not_plainly_pass_is_a_failure(backend: SandboxBackend, body: str) -> None:
    assert judged(backend, RIGHT, single(body, total_s=3, pass_to_pass=[])).value == 0.0
    assert judged(backend, RIGHT, single("def test_add(): pass\n", total_s=3, pass_to_pass=[])).passed


def test_an_id_seen_twice_is_a_failure(backend: SandboxBackend) -> None:
    conftest = "def pytest_collection_modifyitems(items):\n    items += items[:1]\n"
    task = calc({**BASE, "tests/conftest.py": f"{BASE['tests/conftest.py']}\n\n{conftest}"})
    assert judged(backend, RIGHT, task).value == 0.0


def test_tests_that_nobody_asked_for_are_counted_and_do_not_decide(backend: SandboxBackend) -> None:
    body = "def test_add(): assert add(1, 2) == 3\ndef test_no(): assert 0\ndef test_nor(): assert 0\n"
    verdict = judged(backend, RIGHT, single(body))
    assert (verdict.value, verdict.components["other_tests"]) == (1.0, 2.0)


def test_an_id_without_parameters_stands_for_all_of_them(backend: SandboxBackend) -> None:
    body = "@pytest.mark.parametrize('n', [3, {}])\ndef test_add(n): assert add(1, 2) == n\n"
    assert judged(backend, RIGHT, single(body.format("3.0"))).passed
    assert not judged(backend, RIGHT, single(body.format("4"))).passed
    assert judged(backend, RIGHT, single(body.format("4"), "test_add[3]", twins=0)).passed


def test_a_source_folder_and_settings_are_the_tasks_to_name(backend: SandboxBackend) -> None:
    files = {("src/" + name if name.startswith("calc") else name): text for name, text in BASE.items()}
    body = "@pytest.mark.odd\ndef test_add(): assert add(1, 2) == 3\n"
    task = single(body, import_roots=["src"], ini={"markers": "odd: strange", "addopts": "--strict-markers"})
    assert judged(backend, {"src/calc/core.py": RIGHT["calc/core.py"]}, task.model_copy(
        update={"public": Public(prompt="", files=files)})).passed  # fmt: skip


def test_the_standard_library_comes_before_the_repository_and_the_repository_before_what_is_installed(
    backend: SandboxBackend,
) -> None:
    body = (
        "import json, pluggy_like, calc\ndef test_add():\n    assert add(1, 2) == 3\n    assert json.dumps(1) == '1'\n"
    )
    planted = {"json.py": "raise SystemExit", "pluggy_like.py": "", "_pytest/__init__.py": "raise SystemExit"}
    assert judged(backend, {**RIGHT, **planted}, single(body)).passed


@pytest.mark.parametrize(
    ("hidden", "sentence"),
    [
        ({"fail_to_pass": []}, "fail_to_pass"),
        ({"fail_to_pass": ["tests/test_add.py"]}, "wanted ids like"),
        ({"fail_to_pass": ["tests/test_add.py::test_a[1"]}, "wanted ids like"),
        ({"fail_to_pass": ["../tests/test_add.py::test_a"]}, "inside the repository"),
        ({"pass_to_pass": F2P[:1]}, "named twice"),
        ({"fail_to_pass": ["tests/test_gone.py::test_a"]}, "no test file 'tests/test_gone.py'"),
        ({"import_roots": ["lib"]}, "no import root 'lib'"),
        ({"ini": {"markers": "a\naddopts = -x"}}, "indented"),
        ({"tests": {"/etc/x": ""}}, "inside the repository"),
        ({"timeout": 3}, "timeout: Extra inputs are not permitted"),
    ],
)
def test_a_malformed_task_is_refused_in_a_sentence(
    backend: SandboxBackend, hidden: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(VerifierError, match=sentence):
        judged(backend, RIGHT, calc(**hidden))
    with pytest.raises(VerifierError, match=sentence):
        PytestGrader().check(calc(**hidden))


TWINNED = [
    ("assert add(1, 2) == 3", True),
    ("assert 3 == add(1, 2)", True),
    ("want = 3\n    assert add(1, 2) == want", True),
    ("want = 3\n    assert add(want, 0) == want", False),
    ("assert add(1, 2) == pytest.approx(3.0)", True),
    ("assert [add(1, 2), 1] == [3, 1]", True),
    ("assert add(1, 2) is not None", True),
    ("assert not add(1, -1)", True),
    ("assert add(1, 2)", True),
    ("for a, want in [(1, 2), (2, 3)]:\n        assert add(a, 1) == want", True),
    ("with pytest.raises(TypeError):\n        add(1, 'a')", True),
    ("assert add(1, 2) == add(2, 1)", False),
    ("assert add(1, 2) == 3\n    helper()", False),
    ("if add(1, 2):\n        assert add(1, 2) == 3", False),
    ("add(1, 2)", False),
    ("assert add(1, 2) == 3 and add(1, 1) == 2", False),
]


@pytest.mark.parametrize(("body", "by_value"), TWINNED)
def test_trust_is_that_of_twins_only_where_every_assertion_has_one(
    backend: SandboxBackend, body: str, by_value: bool
) -> None:
    task = single(f"def helper(): assert True\ndef test_add():\n    {body}\n")
    verdict = judged(backend, RIGHT, task)
    assert (verdict.value, verdict.trust is Trust.TWINS) == (1.0, by_value)


def test_every_assertion_gets_a_twin_and_few_assertions_get_several() -> None:
    source = "def test_a():\n    assert f(1) == 2\n    assert f(2) == 4\ndef test_b():\n    assert f(0) == 0\n"
    for seed in range(10):
        found = plan({"t.py": source}, ["t.py::test_a", "t.py::test_b"], 40, random.Random(seed))
        twins = [one for one in found.trials if not one.must_pass]
        assert found.by_value
        assert len(twins) >= 5
        assert {one.function for one in found.trials if one.must_pass} == {"t.py::test_a", "t.py::test_b"}
        for one in found.trials:
            assert one.source.count("def test_") == 1
        changed = {line for one in twins for line in one.source.splitlines()} - {*source.splitlines()}
        assert {line.split("==")[0].strip() for line in changed} == {"assert f(1)", "assert f(2)", "assert f(0)"}


def test_fewer_twins_than_assertions_lower_the_trust() -> None:
    source = "def test_a():\n" + "".join(f"    assert f({n}) == {n}\n" for n in range(9))
    assert plan({"t.py": source}, ["t.py::test_a"], 9, random.Random(0)).by_value
    assert not plan({"t.py": source}, ["t.py::test_a"], 8, random.Random(0)).by_value


def test_twins_of_tests_that_the_agent_can_read_prove_nothing(backend: SandboxBackend) -> None:
    hidden = "def test_add(): assert add(1, 2) == 3\n"
    shown = f"from calc.core import add\n{hidden}def test_late(): assert add(2, 2) == 4\n"
    files = {**BASE, "tests/test_add.py": shown}
    ids = ["tests/test_add.py::test_add", "tests/test_add.py::test_late"]
    for tests, trust in (
        ({}, Trust.SEPARATE),
        ({"tests/test_add.py": f"{shown}# changed\n"}, Trust.SEPARATE),
        ({"tests/test_add.py": shown.replace("2, 2) == 4", "2, 3) == 5")}, Trust.TWINS),
    ):
        verdict = judged(backend, RIGHT, calc(files, fail_to_pass=ids, tests=tests))
        assert (verdict.value, verdict.trust) == (1.0, trust)
        wrong = judged(backend, {"calc/core.py": f"{CORE}#"}, calc(files, fail_to_pass=ids, tests=tests))
        assert wrong.feedback.startswith("tests/test_add.py::test_add fails: assert -1 == 3")


def test_tests_may_come_as_a_diff_and_files_that_are_not_text_as_base64(backend: SandboxBackend) -> None:
    odd = base64.b64encode(b"\xff\x00").decode()
    diff = """--- a/tests/test_old.py
+++ b/tests/test_old.py
@@ -1,5 +1,9 @@
-from calc.core import neg
+from pathlib import Path
+from calc.core import add, neg


 def test_neg():
     assert neg(2) == -2
+
+def test_add():
+    assert Path(__file__).with_name("odd.bin").read_bytes()[0] + add(1, 2) == 258
"""
    hidden: dict[str, JsonValue] = {"fail_to_pass": ["tests/test_old.py::test_add"], "test_patch": diff}
    public = Public(prompt="Mend add.", files=BASE, data={"binary": {"tests/odd.bin": odd}})
    task = Task(id="calc", split="train", public=public, hidden=Hidden(data=hidden))
    PytestGrader().check(task)
    verdict = judged(backend, RIGHT, task)
    assert (verdict.feedback, verdict.value) == ("", 1.0)
    assert judged(backend, {"calc/core.py": f"{CORE}#\n"}, task).level == "failed"
    bad = Hidden(data={**hidden, "test_patch": diff.replace("import neg", "import pos")})
    with pytest.raises(VerifierError, match="the test patch of 'calc' does not fit its repository: hunk 1"):
        PytestGrader().check(task.model_copy(update={"hidden": bad}))
    wrong = public.model_copy(update={"data": {"binary": {"tests/odd.bin": "?"}}})
    with pytest.raises(VerifierError, match="as base64 texts by path"):
        PytestGrader().check(task.model_copy(update={"public": wrong}))
