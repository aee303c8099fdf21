"""Instances of software engineering become tasks: from archives, clones and package indexes, with hints."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from pydantic import ValidationError

from agentgym.contamination import find_twins
from agentgym.errors import InfrastructureError, TaskError
from agentgym.image import ImageSpec
from agentgym.task import Task
from agentgym_envs.swe import mined
from agentgym_envs.swe.hints import WORK, tiers
from agentgym_envs.swe.history import alone
from agentgym_envs.swe.sources import Archive, GitCommit, InImage, Repository, Sdist, read, unpack
from agentgym_envs.swe.tasks import Environment, SweInstance, Unfit, gold_files, to_task

BASE = {
    "calc/__init__.py": b"",
    "calc/core.py": b"class Sum:\n    def add(self, a, b):\n        return a - b\n\n\ndef neg(a):\n    return -a\n",
    "tests/test_old.py": b"from calc.core import neg\n\n\ndef test_neg():\n    assert neg(2) == -2\n",
    "tests/data.bin": b"\xff\x00\xfe",
}
PATCH = """diff --git a/calc/core.py b/calc/core.py
--- a/calc/core.py
+++ b/calc/core.py
@@ -1,5 +1,7 @@
 class Sum:
     def add(self, a, b):
-        return a - b
+        if b is None:
+            raise TypeError("b")
+        return a + b


"""
TEST_PATCH = """diff --git a/tests/test_old.py b/tests/test_old.py
--- a/tests/test_old.py
+++ b/tests/test_old.py
@@ -1,4 +1,8 @@
-from calc.core import neg
+from calc.core import Sum, neg


 def test_neg():
+    assert neg(1) == -1
+
+def test_add():
+    assert Sum().add(1, 2) == 3
     assert neg(2) == -2
"""


def archive(files: dict[str, bytes], top: str = "calc-1.0/", links: dict[str, str] | None = None) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{top}{name}")
            member.size, member.mode = len(content), 0o755 if name.endswith(".sh") else 0o644
            tar.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(f"{top}{name}")
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return data.getvalue()


def instance(tmp_path: Path, **changes: Any) -> SweInstance:
    file = tmp_path / "calc.tar.gz"
    file.write_bytes(archive(BASE))
    given: dict[str, Any] = {
        "instance_id": "calc-1",
        "repo": "who/calc",
        "base_commit": "0" * 40,
        "problem_statement": "Adding subtracts.",
        "patch": PATCH,
        "test_patch": TEST_PATCH,
        "FAIL_TO_PASS": '["tests/test_old.py::test_add"]',
        "PASS_TO_PASS": ["tests/test_old.py::test_neg"],
        "source": {"kind": "archive", "path": str(file)},
    }
    return SweInstance.model_validate({**given, **changes})


def test_an_instance_becomes_a_task_with_whole_tests_and_a_hidden_gold(tmp_path: Path) -> None:
    task = to_task(instance(tmp_path))
    assert set(task.public.files) == {"calc/__init__.py", "calc/core.py", "tests/test_old.py"}
    assert task.public.data["binary"] == {"tests/data.bin": base64.b64encode(BASE["tests/data.bin"]).decode()}
    assert task.hidden.data["fail_to_pass"] == ["tests/test_old.py::test_add"]
    tests = task.hidden.data["tests"]
    assert isinstance(tests, dict)
    assert "Sum().add(1, 2) == 3" in str(tests["tests/test_old.py"])
    assert "a + b" not in task.public.model_dump_json() + "".join(task.hints)
    assert gold_files(str(task.hidden.reference["patch"])) == ("calc/core.py",)


def test_what_does_not_fit_is_refused_with_its_hunk(tmp_path: Path) -> None:
    with pytest.raises(Unfit, match=r"gold patch of 'calc-1' does not fit .*hunk 1 does not fit 'calc/core.py'"):
        to_task(instance(tmp_path, patch=PATCH.replace("a - b", "a * b")))
    with pytest.raises(Unfit, match="test patch of 'calc-1' does not fit"):
        to_task(instance(tmp_path, test_patch=TEST_PATCH.replace("import neg", "import pos")))
    marked = TEST_PATCH.replace("+def test_add", "+@pytest.mark.xfail(reason='later')\n+def test_add").replace(
        "+1,8", "+1,9"
    )
    with pytest.raises(Unfit, match=r"test_old\.py::test_add is marked as expected to fail"):
        to_task(instance(tmp_path, test_patch=marked))
    with pytest.raises(ValidationError, match="fail_to_pas"):
        instance(tmp_path, fail_to_pas=[])


def test_an_instance_in_an_image_leaves_its_repository_there(tmp_path: Path) -> None:
    source = InImage(root="/testbed")
    task = to_task(instance(tmp_path, source=source, environment=Environment(image="calc:1")))
    assert not task.public.files
    assert (task.hidden.data["root"], task.hidden.data["test_patch"]) == ("/testbed", TEST_PATCH)
    assert task.sandbox.writable_root
    assert task.sandbox.workdir == "/testbed"
    made = ImageSpec.from_name(str(task.sandbox.image))
    assert made.base == "calc:1"
    assert made.run == (alone("/testbed"),)


def test_archives_of_every_kind_are_read_and_links_are_left_out(tmp_path: Path) -> None:
    files = {**BASE, "run.sh": b"#!/bin/sh\n"}
    found = unpack(archive(files, links={"evil": "/etc/passwd"}))
    assert found.files == files
    assert (found.executable, found.left_out) == (frozenset(("run.sh",)), ("evil",))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as writer:
        for name, data in BASE.items():
            writer.writestr(f"top/{name}", data)
    assert unpack(zipped.getvalue()).files == BASE
    assert set(unpack(archive({"../out": b"", "a": b""}, top="")).files) == {"a"}
    with pytest.raises(TaskError, match="cannot be read"):
        unpack(b"no archive")
    wrong = Archive(path=str(tmp_path / "calc.tar.gz"), sha256="0" * 64)
    instance(tmp_path)
    with pytest.raises(TaskError, match="its SHA-256 is not"):
        read(wrong)


def test_a_commit_of_a_clone_is_read_without_its_history(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
        return subprocess.run(["git", *own, *words], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    for content in ("first", "second"):
        (tmp_path / "file").write_text(content)
        git("add", "-A")
        git("commit", "-qm", content)
    found = read(GitCommit(path=str(tmp_path), commit=git("rev-parse", "HEAD~1")))
    assert found.files == {"file": b"first"}
    with pytest.raises(TaskError, match="cannot be read"):
        read(GitCommit(path=str(tmp_path), commit="0" * 40))


@pytest.fixture
def index() -> Iterator[Callable[[Path], str]]:
    """Serve a folder as a package index."""
    with ExitStack() as stack:

        def serve(folder: Path) -> str:
            handler = partial(Quiet, directory=str(folder))
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}/simple"

        yield serve


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        return None


def test_a_source_package_is_fetched_once_and_held_to_its_sum(
    index: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = archive(BASE, top="my_calc-1.0/")
    digest = hashlib.sha256(data).hexdigest()
    page = tmp_path / "simple" / "my-calc"
    page.mkdir(parents=True)
    (page / "my_calc-1.0.tar.gz").write_bytes(data)
    (page / "index.html").write_text(f'<a href="my_calc-1.0.tar.gz#sha256={digest}">my_calc-1.0.tar.gz</a>')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", index(tmp_path))
    assert read(Sdist(package="My.Calc", version="1.0")).files == BASE
    (page / "my_calc-1.0.tar.gz").unlink()
    read.cache_clear()
    assert read(Sdist(package="My.Calc", version="1.0", sha256=digest)).files == BASE
    with pytest.raises(TaskError, match=r"no source package of My.Calc 2\.0"):
        read(Sdist(package="My.Calc", version="2.0"))
    with pytest.raises(InfrastructureError, match="cannot be fetched"):
        read(Sdist(package="other", version="1.0"))


def test_hints_grow_from_how_to_work_to_a_plan_and_never_quote_the_gold() -> None:
    found = tiers(PATCH, Repository(BASE))
    assert found[0] == WORK
    assert "calc/core.py" in found[1]
    assert "Sum.add" not in found[1]
    assert "`Sum.add` in calc/core.py" in found[2]
    assert "`neg`" not in found[2]
    assert "replace about 1 lines by 3; the new code has a condition, a raised exception, a return" in found[3]
    assert not any(line[1:].strip() in hint for line in PATCH.splitlines()[4:] if line[:1] == "+" for hint in found)
    assert "`add`" in tiers(PATCH.replace("@@\n", "@@ def add(self, a, b):\n"))[2]


def test_tasks_of_one_repository_are_no_twins_for_its_text_and_split_together(tmp_path: Path) -> None:
    big = {**BASE, "README": b"many words " * 10_000}
    (tmp_path / "big.tar.gz").write_bytes(archive(big))
    source = {"kind": "archive", "path": str(tmp_path / "big.tar.gz")}

    def task(name: str, text: str) -> Task:
        return to_task(instance(tmp_path, instance_id=name, problem_statement=text, source=source))

    first, other = task("a", "Adding subtracts two numbers."), task("b", "Negation of a huge number takes forever.")
    again = task("c", "Adding subtracts two numbers.")
    assert first.split == other.split
    assert not find_twins([first], [other])
    assert [one.held_out for one in find_twins([first], [again])] == ["c"]


def test_mined_rows_without_a_source_package_are_refused_with_a_reason(data: Path, tmp_path: Path) -> None:
    with gzip.open(data / "swe_mined/tasks.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(json.dumps(one) for one in rows if one["pypi_sdist"] is None))
    found = mined.tasks(few)
    assert not list(found)
    assert set(found.refused().values()) == {"it names no source package on which its patches fit"}
    assert len(found.refused()) == 53
