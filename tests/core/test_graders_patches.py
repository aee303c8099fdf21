"""Diffs as data: what git writes is applied exactly, and nothing else is accepted."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym.graders.patches import PatchError, Tree, apply, check_tree, parse, safe_path

HEAD = "diff --git a/f b/f\n"
BODY = "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n"


def patched(base: Tree, diff: str) -> Tree:
    return apply(base, parse(diff)).files


@pytest.fixture
def git(tmp_path: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    return tmp_path


def write(folder: Path, files: Tree) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def git_diff(folder: Path, before: Tree, after: Tree, *options: str) -> str:
    def git(*words: str) -> bytes:
        own = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, check=True, env=own).stdout

    git("init", "-q")
    write(folder, before)
    git("add", "--all")
    git("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-q", "-m", "before")
    for name in before:
        (folder / name).unlink()
    write(folder, after)
    git("add", "--all")
    return git("diff", "--cached", *options).decode()


CHANGES = [
    pytest.param({"x": b"1\n2\n3\n"}, {"x": b"1\ntwo\n3\n"}, id="a line"),
    pytest.param({"x": b"1\n"}, {"x": b"1\n", "d/y": b"new\n"}, id="a new file"),
    pytest.param({"x": b"1\n", "y": b""}, {"x": b"1\n", "z": b""}, id="an empty file moves"),
    pytest.param({"x": b"1\n2\n"}, {"y": b"keep\n"}, id="a deletion and a creation"),
    pytest.param({"x": b"1"}, {"x": b"1\n"}, id="a line end comes"),
    pytest.param({"x": b"1\n"}, {"x": b"1"}, id="a line end goes"),
    pytest.param({"x": b"a\r\nb\r\n"}, {"x": b"a\r\nc\r\n"}, id="carriage returns"),
    pytest.param({"x": b"".join(b"%d\n" % i for i in range(60))},
                 {"y": b"".join(b"%d\n" % i for i in range(60) if i not in (3, 50))}, id="a rename with two hunks"),
    pytest.param({"a b": b"1\n"}, {"a b": b"2\n", "caf\u00e9": "\u00e9\n".encode()}, id="odd names"),
    pytest.param({"x": b"-- a\n++ b\n"}, {"x": b"++ b\n-- c\n"}, id="lines that look like headers"),
]  # fmt: skip


@pytest.mark.parametrize("options", [(), ("-M",), ("-U0",)], ids=["plain", "renames", "no context"])
@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_what_git_writes_is_applied(git: Path, before: Tree, after: Tree, options: tuple[str, ...]) -> None:
    assert patched(before, git_diff(git, before, after, *options)) == after


LINES = st.lists(st.sampled_from(["a", "b", "", "-- x", "+y", "\\ z", "@@ -1 +1 @@", " "]), max_size=12)


@given(before=LINES, after=LINES, ends=st.tuples(st.booleans(), st.booleans()))
def test_any_change_of_lines_survives_the_way_through_a_diff(
    before: list[str], after: list[str], ends: tuple[bool, bool]
) -> None:
    texts = ["\n".join(lines) + "\n" * (end and bool(lines)) for lines, end in zip((before, after), ends, strict=True)]
    assert patched({"f": texts[0].encode()}, unified(*texts))["f"].decode() == texts[1]


def unified(before: str, after: str) -> str:
    """Return a diff with one hunk that replaces everything, written here so that it depends on no tool."""
    if before == after:
        return HEAD
    old, new = before.split("\n"), after.split("\n")
    sides = []
    for sign, lines in (("-", old), ("+", new)):
        complete, rest = lines[:-1], lines[-1]
        text = "".join(f"{sign}{line}\n" for line in complete)
        sides.append((len(complete) + bool(rest), text + (f"{sign}{rest}\n\\ No newline\n" if rest else "")))
    (old_count, old_text), (new_count, new_text) = sides
    header = f"@@ -{min(old_count, 1)},{old_count} +{min(new_count, 1)},{new_count} @@\n"
    return f"{HEAD}--- a/f\n+++ b/f\n{header}{old_text}{new_text}"


def test_lines_that_moved_are_found_and_lines_that_changed_are_not() -> None:
    diff = "--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n x\n-a\n+b\n"
    assert patched({"f": b"new\nnew\nx\na\n"}, diff) == {"f": b"new\nnew\nx\nb\n"}
    with pytest.raises(PatchError, match="hunk 1 does not fit 'f'"):
        patched({"f": b"x\nA\n"}, diff)


def test_plain_diffs_need_no_prefix_and_may_carry_dates() -> None:
    assert patched({"f": b"a\n"}, "--- f\t2020-01-01\n+++ f\t2020-01-02\n@@ -1 +1 @@\n-a\n+b\n") == {"f": b"b\n"}


def test_mode_bits_of_regular_files_are_kept_as_data() -> None:
    found = apply({"f": b"a\n"}, parse(f"{HEAD}old mode 100644\nnew mode 100755\n"))
    assert (found.files, found.executable) == ({"f": b"a\n"}, {"f": True})


REFUSED = [
    pytest.param(BODY.replace("b/f", "b/../f").replace("a/f", "a/../f"), "inside the repository", id="climbing"),
    pytest.param("--- /etc/passwd\n+++ /etc/passwd\n@@ -1 +1 @@\n-a\n+b\n", "inside", id="absolute"),
    pytest.param("diff --git a//etc/f b//etc/f\nnew file mode 100644\n", "inside", id="absolute behind a prefix"),
    pytest.param(BODY.replace("/f", "/.git/config"), "outside of .git", id="git's own files"),
    pytest.param(BODY.replace("/f", "/.GIT/hooks/x"), "outside of .git", id="git's own files, in capitals"),
    pytest.param('--- "a/\\056\\056/f"\n+++ "b/\\056\\056/f"\n@@ -1 +1 @@\n-a\n+b\n', "inside", id="quoted dots"),
    pytest.param(BODY.replace("/f", "/x\\f"), "plain path", id="a backslash"),
    pytest.param('--- "a/\\000"\n+++ "b/\\000"\n@@ -1 +1 @@\n-a\n+b\n', "plain path", id="a NUL"),
    pytest.param(f"{HEAD}new file mode 120000\n--- /dev/null\n+++ b/f\n@@ -0,0 +1 @@\n+/etc\n", "120000", id="a link"),
    pytest.param(f"{HEAD}index 1..2 120000\n{BODY}", "a link or a submodule", id="a changed link"),
    pytest.param(f"{HEAD}new file mode 160000\n", "160000", id="a submodule"),
    pytest.param(f"{HEAD}index 1..2 160000\n{BODY}", "a link or a submodule", id="a moved submodule"),
    pytest.param(f"{HEAD}new file mode 020666\n", "020666", id="a device"),
    pytest.param(f"{HEAD}old mode 100644\nnew mode 104755\n", "104755", id="set-uid"),
    pytest.param(f"{HEAD}GIT binary patch\nliteral 9\n", "binary", id="a binary change"),
    pytest.param(f"{HEAD}Binary files a/f and b/f differ\n", "binary", id="a binary difference"),
    pytest.param(HEAD + BODY.replace("b/f", "b/g"), "two names", id="two names"),
    pytest.param(BODY.replace("-a\n", ""), "ends in the middle", id="fewer lines than announced"),
    pytest.param(BODY + "+c\n", "wanted the next file", id="more lines than announced"),
    pytest.param(BODY.replace("@@ -1 +1 @@", "@@ -1 +1,9999999999 @@"), "header", id="an absurd count"),
    pytest.param(BODY + BODY, "twice", id="a file twice"),
    pytest.param("hello\n", "found none", id="no diff"),
    pytest.param("@@ -1 +1 @@\n-a\n+b\n", "the names", id="no names"),
    pytest.param("".join(BODY.replace("/f", f"/f{i}") for i in range(501)), "at most 500", id="too many files"),
    pytest.param(BODY + "+" * 4_000_001, "at most 4000000", id="too long"),
]


@pytest.mark.parametrize(("diff", "sentence"), REFUSED)
def test_a_diff_that_is_not_plain_text_inside_the_tree_is_refused(diff: str, sentence: str) -> None:
    with pytest.raises(PatchError, match=sentence):
        parse(diff)


MISFITS = [
    pytest.param(BODY.replace("/f", "/g"), "'g', which does not exist", id="unknown file"),
    pytest.param("--- /dev/null\n+++ b/f\n@@ -0,0 +1 @@\n+b\n", "'f', which exists", id="creates what exists"),
    pytest.param("--- a/f\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n", "without all", id="deletes half a file"),
    pytest.param(f"{HEAD}deleted file mode 100644\n", "without all", id="deletes unseen"),
    pytest.param("--- /dev/null\n+++ b/f/g\n@@ -0,0 +1 @@\n+b\n", "both a file and a folder", id="below a file"),
    pytest.param("--- a/n\n+++ b/n\n@@ -1 +1 @@\n-a\n+b\n", "not UTF-8", id="binary base"),
]


@pytest.mark.parametrize(("diff", "sentence"), MISFITS)
def test_a_diff_that_does_not_fit_is_refused(diff: str, sentence: str) -> None:
    with pytest.raises(PatchError, match=sentence):
        patched({"f": b"a\nmore\n", "n": b"\xff\n"}, diff)


def test_copies_cannot_grow_into_a_bomb() -> None:
    copies = "".join(f"diff --git a/f b/c{i}\ncopy from f\ncopy to c{i}\n" for i in range(400))
    with pytest.raises(PatchError, match="too large"):
        patched({"f": b"x" * 1_000_000}, copies)
    with pytest.raises(PatchError, match="too large"):
        check_tree({"f": b"x" * 8_000_001})


@pytest.mark.parametrize("name", ["a", "a/b.py", ".gitignore", "d/.github/x", "caf\u00e9", "a b"])
def test_plain_names_are_safe(name: str) -> None:
    assert safe_path(name) == name
