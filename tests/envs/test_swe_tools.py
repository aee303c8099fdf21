"""The tools of software engineering: an editor, a search and a shell, in real sandboxes."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec
from agentgym_envs.swe import generated
from agentgym_envs.swe.editor import Editor
from agentgym_envs.swe.env import SweEnv
from agentgym_envs.swe.shell import search_contents, search_names

FILES = {"pkg/a.py": b"def f():\n    return 1\n\n\ndef g():\n    return 1\n", "pkg/odd.bin": b"\xff", "empty": b""}


@pytest.fixture
def box(backend: SandboxBackend) -> Iterator[Sandbox]:
    with backend.start(SandboxSpec()) as found:
        found.upload(FILES)
        yield found


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def said(env: SweEnv, name: str, **arguments: Any) -> str:
    observation, *_ = env.step(call(name, **arguments))
    return "\n".join(one.content for one in observation)


def test_the_editor_views_lines_with_numbers_and_folders(box: Sandbox) -> None:
    editor = Editor(box, box.workdir)
    assert editor.view("pkg/a.py").splitlines()[1] == "     2\t    return 1"
    assert editor.view(f"{box.workdir}/pkg/a.py", [5, -1]).splitlines() == ["     5\tdef g():", "     6\t    return 1"]
    assert f"{box.workdir}/pkg/a.py" in editor.view(".").splitlines()
    assert editor.view("empty") == "empty is empty"
    box.write("long.py", b"x = 1\n" * 1000)
    assert editor.view("long.py").endswith("[… 600 more lines; view them with view_range=[401, 1000]]")
    for path, view_range, wanted in (
        ("pkg/a.py", [0, 3], "wanted view_range within 1 to 6, found [0, 3]"),
        ("pkg/a.py", [3], "wanted view_range as [first, last], found [3]"),
        ("pkg", [1, 2], "pkg is a folder; view_range is for files"),
        ("pkg/none.py", None, "there is no file"),
        ("pkg/odd.bin", None, "is not UTF-8 text"),
        ("/etc/passwd", None, "wanted a path in"),
        ("../../etc/passwd", None, "wanted a path in"),
    ):
        with pytest.raises(ValueError, match=re.escape(wanted)):
            editor.view(path, view_range)


def test_the_editor_edits_what_is_unique_and_takes_edits_back(box: Sandbox) -> None:
    editor = Editor(box, box.workdir)
    with pytest.raises(ValueError, match=r"stands 2 times in pkg/a\.py, at lines 2, 6; add lines around it"):
        editor.str_replace("pkg/a.py", "return 1", "return 2")
    with pytest.raises(ValueError, match=r"does not stand in pkg/a\.py with exactly these characters"):
        editor.str_replace("pkg/a.py", "return 3", "")
    shown = editor.str_replace("pkg/a.py", "def g():\n    return 1", "def g():\n    return 2")
    assert "     6\t    return 2" in shown
    editor.insert("pkg/a.py", 0, "import os")
    assert box.read("pkg/a.py").startswith(b"import os\ndef f():\n    return 1\n\n\ndef g():\n    return 2\n")
    editor.insert("pkg/a.py", 7, "# end")
    assert box.read("pkg/a.py").endswith(b"return 2\n# end\n")
    with pytest.raises(ValueError, match="wanted insert_line from 0 to 8, found 9"):
        editor.insert("pkg/a.py", 9, "x")
    for _ in range(3):
        editor.undo_edit("pkg/a.py")
    assert box.read("pkg/a.py") == FILES["pkg/a.py"]
    with pytest.raises(ValueError, match=r"there is no edit of pkg/a\.py to take back"):
        editor.undo_edit("pkg/a.py")
    assert editor.create("new/deep.py", "x = 1\n") == "created new/deep.py, 1 lines"
    editor.undo_edit("new/deep.py")
    with pytest.raises(FileNotFoundError):
        box.read("new/deep.py")


def test_text_that_stands_everywhere_is_counted_no_further_than_is_told(box: Sandbox) -> None:
    editor = Editor(box, box.workdir)
    box.write("a.txt", b"b\n" + b"a" * 4_000_000)
    began = time.process_time()
    with pytest.raises(ValueError, match=r"stands more than 8 times in a\.txt, at lines 2, 2, 2, 2, 2, 2, 2, 2; add"):
        editor.str_replace("a.txt", "a", "c")
    assert time.process_time() - began < 2
    box.write("a.txt", b"aaa\naaa\n")
    with pytest.raises(ValueError, match=r"stands 4 times in a\.txt, at lines 1, 1, 2, 2; add"):
        editor.str_replace("a.txt", "aa", "c")


def test_no_path_is_longer_than_a_sandbox_takes(backend: SandboxBackend) -> None:
    env = SweEnv(sandbox=backend)
    env.reset(options={"task": generated.task(0)})
    for path in ("a/" * 501, "x" * 5000, "\U0001f600" * 1000, "x/../" * 201):
        for command in ({"command": "view"}, {"command": "create", "file_text": ""}, {"command": "undo_edit"}):
            assert "error: wanted a path of at most 1000 chara" in said(env, "editor", path=path, **command)
        assert "error: wanted a path of at most 1000 characters" in said(env, "search", pattern="x", path=path)
    env.close()


def test_what_can_be_taken_back_is_bounded_in_bytes_and_the_oldest_goes_first(box: Sandbox) -> None:
    editor = Editor(box, box.workdir)
    editor.create("small", "1")
    for number in range(6):
        box.write(f"big{number}", b"x" * 7_000_000)
        editor.create(f"big{number}", "1")
    for path in ("small", "big0", "big1"):
        with pytest.raises(ValueError, match=f"there is no edit of {path} to take back"):
            editor.undo_edit(path)
    for number in (5, 2, 3, 4):
        editor.undo_edit(f"big{number}")
        assert len(box.read(f"big{number}", limit=8_000_000)) == 7_000_000


class Racing:
    """A sandbox whose folder goes away between the editor's look and its write."""

    def __init__(self, box: Sandbox) -> None:
        self._box = box
        self.goes = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._box, name)

    def write(self, path: str, data: bytes) -> None:
        if self.goes:
            raise FileNotFoundError(2, "no such file in the sandbox", path)
        self._box.write(path, data)


def test_a_folder_that_goes_away_meanwhile_is_told_and_the_edit_can_still_be_taken_back(box: Sandbox) -> None:
    racing = Racing(box)
    editor = Editor(cast("Sandbox", racing), box.workdir)
    editor.create("pkg/a.py", "1")
    racing.goes = True
    with pytest.raises(ValueError, match="cannot be written: its folder went away meanwhile"):
        editor.create("pkg/a.py", "2")
    with pytest.raises(ValueError, match="cannot be written: its folder went away meanwhile"):
        editor.undo_edit("pkg/a.py")
    racing.goes = False
    editor.undo_edit("pkg/a.py")
    assert box.read("pkg/a.py") == FILES["pkg/a.py"]


def test_the_editor_follows_no_link_out_of_the_repository(box: Sandbox) -> None:
    box.exec("ln -s /etc/passwd pkg/link; ln -s /etc etc")
    editor = Editor(box, box.workdir)
    for path in ("pkg/link", "etc/passwd"):
        with pytest.raises(ValueError, match="cannot be opened as a plain file"):
            editor.view(path)
        with pytest.raises(ValueError, match="cannot be opened as a plain file"):
            editor.create(path, "mine")


def test_search_is_bounded_and_says_when_nothing_is_found(box: Sandbox) -> None:
    found = search_contents(box, box.workdir, r"def [fg]\(", ".", "*.py")
    assert found.splitlines() == ["pkg/a.py:1:def f():", "pkg/a.py:5:def g():"]
    assert search_contents(box, box.workdir, "def", ".", "*.txt") == "no line below . matches 'def'"
    box.upload({f"many/{number}.txt": b"needle " + b"x" * 999 + b"\n" for number in range(120)})
    lines = search_contents(box, box.workdir, "needle", "many", None).splitlines()
    assert len(lines) == 101
    assert lines[-1] == "[… 20 more matches: narrow the search]"
    assert max(map(len, lines)) == 301
    assert search_names(box, box.workdir, "*.py", ".") == "pkg/a.py"
    assert search_names(box, box.workdir, "kg/a", ".") == "pkg/a.py"
    assert search_names(box, box.workdir, "pkg/*.bin", ".") == "pkg/odd.bin"
    assert search_names(box, box.workdir, "nothing", "pkg") == "no file below pkg is called 'nothing'"
    for pattern, path in (("(", "."), ("x", "no/folder")):
        with pytest.raises(ValueError, match="the search failed: grep"):
            search_contents(box, box.workdir, pattern, path, None)
    with pytest.raises(ValueError, match="the search failed: find"):
        search_names(box, box.workdir, "x", "no/folder")


def test_without_sessions_each_command_begins_in_the_repository(backend: SandboxBackend) -> None:
    env = SweEnv(sandbox=backend)
    (system, user), _ = env.reset(options={"task": generated.task(0)})
    assert "each in a shell of its own that begins in the repository" in system.content
    assert "<issue>" in user.content
    assert said(env, "bash", command="cd tests; x=1; pwd") == f"{env.root}/tests"
    assert said(env, "bash", command='echo "$PWD$x"') == env.root
    assert said(env, "bash", command="cd /; python3 -c 'import kit0.words as w; print(w.__file__)'") == (
        f"{env.root}/kit0/words.py"
    )
    assert said(env, "bash", command="exit 3") == "[exit code 3]"
    assert said(env, "bash", command="true") == "[no output]"
    assert said(env, "bash", command="sleep 9", timeout_s=0.3) == "[ended: it took longer than 0.3 s]"
    assert said(env, "bash", command="true", timeout_s=0) == (
        "error: wanted timeout_s above 0 and at most 600, found 0"
    )
    cut = said(env, "bash", command="seq 1 100000 | tr -d '\\n'")
    assert "bytes dropped" in cut or "characters left out" in cut
    assert len(cut) < env.observation_limit + 100
    assert said(env, "editor", command="insert", path="README.md") == "error: insert wants insert_line"
    assert "glob is for kind content" in said(env, "search", pattern="x", kind="files", glob="*.py")
    env.close()


@pytest.mark.docker
def test_with_sessions_the_shell_remembers_and_survives_its_own_end(docker: SandboxBackend) -> None:
    env = SweEnv(sandbox=docker)
    (system, _), _ = env.reset(options={"task": generated.task(0)})
    assert "shell of its own" not in system.content
    said(env, "bash", command="cd tests; export X=here; f() { echo called; }; sleep 60 &")
    assert said(env, "bash", command='echo "$PWD $X"; f; kill -0 $! && echo alive').split() == [
        f"{env.root}/tests", "here", "called", "alive"
    ]  # fmt: skip
    said(env, "bash", command="exit 0")
    assert said(env, "bash", command='echo "$PWD $X"') == f"{env.root}/tests here"
    assert "took longer" in said(env, "bash", command="sleep 60", timeout_s=0.5)
    assert said(env, "bash", command="cd /; python3 -c 'import kit0; print(1)'") == "1"
    assert said(env, "bash", command=f"echo {shlex.quote('a b')} | wc -w") == "2"
    env.close()
