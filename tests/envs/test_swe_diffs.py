"""The host tells what changed by itself, and what it tells leads from one tree to the other."""

from __future__ import annotations

import time
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym.graders.patches import apply, parse
from agentgym.sandbox import SandboxBackend, SandboxSpec
from agentgym_envs.swe import hunks
from agentgym_envs.swe.diffs import change, collect

names = st.sampled_from(["a.py", "b.txt", "src/a b.py", "src/é.py", "x/y/z", 'quo"te'])
texts = st.text(st.sampled_from("ab\n\r\t\x0c-+@ \\é"), max_size=40).map(str.encode)
trees = st.dictionaries(names, texts, max_size=4)


@given(trees, trees)
def test_a_diff_leads_from_one_tree_to_the_other(base: dict[str, bytes], found: dict[str, bytes]) -> None:
    told = change(base, found)
    after = apply(base, parse(told.diff)).files if told.diff else base
    assert after == found
    assert set(told.files) == {one for one in {*base, *found} if base.get(one) != found.get(one)}


def test_what_tools_leave_behind_is_no_change_unless_the_repository_has_it() -> None:
    litter = ("__pycache__/a.pyc", "x/__pycache__/b.pyc", ".git/HEAD", ".pytest_cache/v", "a.egg-info/PKG-INFO",
              "build/lib/a.py", ".coverage", "sub/.git/config")  # fmt: skip
    assert not change({}, dict.fromkeys(litter, b"new\n")).diff
    kept = {"build/a.py": b"1\n", "a.egg-info/x": b"1\n"}
    assert change(kept, {"build/a.py": b"2\n", "build/b.py": b"", "a.egg-info/x": b"1\n"}).files == (
        "build/a.py",
        "build/b.py",
    )


def test_what_is_not_text_is_left_out_when_new_and_refused_when_it_was_the_repositorys() -> None:
    told = change({"a": b"1\n"}, {"a": b"2\n", "new.bin": b"\xff\x00", "nul.txt": b"a\0b"})
    assert (told.files, told.left_out) == (("a",), ("new.bin", "nul.txt"))
    for base, found in (
        ({"a": b"\xff"}, {"a": b"text\n"}),
        ({"a": b"text\n"}, {"a": b"\xff"}),
        ({"a": b"\xff"}, {}),
    ):
        with pytest.raises(ValueError, match="'a' is not text, and a submission is a diff of texts"):
            change(base, found)
    assert not change({"a": b"\xff"}, {"a": b"\xff"}).diff


def test_odd_names_and_huge_changes_are_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="cannot stand in a diff, rename or remove it"):
        change({}, {"a\nb": b"1\n"})
    with pytest.raises(ValueError, match="the change is too large: 501 files"):
        change({}, {f"f{number}": b"1\n" for number in range(501)})


@pytest.mark.parametrize(
    ("base", "found", "sentence"),
    [
        ({}, {"a": b"a\n" * 4_500_000}, r"'a' is too large for a diff: 9000000 bytes"),
        ({}, {"a": b"a\n" * 1_500_000}, r"the change is too large: 1 files and 4500000 characters"),
        ({"a": b"a\n" * 1_500_000}, {}, r"the change is too large: 1 files and 4500000 characters"),
        ({"a": b"a\n" * 3_000_000}, {"a": b"b\n" * 3_000_000}, "a file of it differs in 12000000 characters"),
        ({}, {f"f{number}": b"a" * 100_000 for number in range(41)}, "the change is too large: 41 files"),
    ],
)
def test_what_cannot_be_handed_in_is_refused_before_a_diff_is_made(
    base: dict[str, bytes], found: dict[str, bytes], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hunks, "_hunk", None)
    with pytest.raises(ValueError, match=sentence):
        change(base, found)


@pytest.mark.parametrize("kind", ["repeated", "swapped", "huge"])
def test_no_texts_take_long_to_compare_and_what_is_told_still_leads_there(kind: str) -> None:
    if kind == "repeated":
        old, new = ([f"{number * step % 101}\n" for number in range(20_000)] for step in (3, 7))
    elif kind == "swapped":
        old = [f"{number}\n" for number in range(20_000)]
        new = [f"{number ^ 1}\n" for number in range(20_000)]
    else:
        old = [f"{number % 1000}\n" for number in range(1_500_000)]
        new = [*old[:700_000], "here\n", *old[700_001:]]
    base, found = ({"a": "".join(lines).encode()} for lines in (old, new))
    began = time.process_time()
    told = change(base, found)
    assert time.process_time() - began < 10
    assert apply(base, parse(told.diff)).files == found
    if kind == "huge":
        assert len(told.diff.splitlines()) == 3 + 1 + 8


def test_a_folder_that_is_gone_is_told_to_the_agent(backend: SandboxBackend) -> None:
    with backend.start(SandboxSpec()) as box, pytest.raises(ValueError, match="/gone any more, or it changes while"):
        collect(box, f"{box.workdir}/gone", {})


def test_links_count_for_nothing_and_a_file_that_became_one_is_refused(backend: SandboxBackend) -> None:
    base = {"a.py": b"1\n", "b.py": b"1\n", "c.py": b"1\n"}
    with backend.start(SandboxSpec()) as box:
        box.upload(base)
        box.exec("ln -s /etc/passwd link; mkfifo pipe; rm b.py; mv c.py d.py; echo 2 > a.py; chmod 755 a.py")
        told = collect(box, box.workdir, base)
        assert told.files == ("a.py", "b.py", "c.py", "d.py")
        assert apply(base, parse(told.diff)).files == {"a.py": b"2\n", "d.py": b"1\n"}
        box.exec("rm a.py; ln -s d.py a.py")
        with pytest.raises(ValueError, match=r"'a\.py' was a plain file and is a link or something else now"):
            collect(box, box.workdir, base)
        assert PurePosixPath(box.workdir).is_absolute()
