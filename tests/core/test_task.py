"""Task sets are lazy and ordered, and say which file and line is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentgym.errors import TaskError, UnknownNameError
from agentgym.task import Hidden, Public, Task, TaskSet


def task(name: str, split: str = "train") -> Task:
    return Task(id=name, split=split, public=Public(prompt=name))  # type: ignore[arg-type]


def rows(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_nothing_is_read_before_it_is_needed_and_no_more_than_needed() -> None:
    read = []

    def source() -> Iterator[Task]:
        for index in range(10):
            read.append(index)
            yield task(str(index))

    few = TaskSet("lazy", source).split("train").take(2)
    assert read == []
    assert [one.id for one in few] == ["0", "1"]
    assert read == [0, 1]


def test_a_set_can_be_read_again_in_the_same_order() -> None:
    tasks = TaskSet("twice", lambda: [task("b"), task("a")])
    assert [one.id for one in tasks] == [one.id for one in tasks] == ["b", "a"]


def test_splits_hold_only_their_own_tasks() -> None:
    tasks = TaskSet("mixed", lambda: [task("a"), task("b", "test"), task("c", "validation")])
    assert [[one.id for one in tasks.split(name)] for name in ("train", "validation", "test")] == [["a"], ["c"], ["b"]]
    with pytest.raises(UnknownNameError, match="did you mean 'test'"):
        tasks.split("tests")  # type: ignore[arg-type]


def test_two_tasks_with_one_id_are_refused() -> None:
    with pytest.raises(TaskError, match="holds two tasks with id 'a'"):
        list(TaskSet("double", lambda: [task("a"), task("a", "test")]))


def test_an_unknown_task_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'alpha'"):
        TaskSet("few", lambda: [task("alpha"), task("beta")])["alpho"]


def test_hidden_parts_show_nothing_as_text() -> None:
    one = Task(id="t", split="test", public=Public(prompt="p"), hidden=Hidden(data={"answer": "gold-42"}))
    assert "gold-42" not in f"{one} {one!r} {one.hidden} {one.hidden!r} {one.content}"


def test_a_misspelt_field_of_a_task_is_an_error_with_its_file_and_line(tmp_path: Path) -> None:
    good = json.dumps({"id": "a", "split": "train", "public": {"prompt": "x"}})
    bad = json.dumps({"id": "b", "split": "train", "public": {"prompt": "x"}, "hiden": {}})
    with pytest.raises(TaskError, match=r"rows\.jsonl:3 is not a task of the wanted format: hiden: Extra inputs"):
        list(TaskSet.from_jsonl(rows(tmp_path / "rows.jsonl", good, "", bad)))


@pytest.mark.parametrize("line", ["{", "3", "null", '{"id": 4}', '"text"'])
def test_a_line_that_is_no_task_is_an_error_and_not_a_crash(tmp_path: Path, line: str) -> None:
    with pytest.raises(TaskError, match=r"rows\.jsonl:1 is not a task"):
        list(TaskSet.from_jsonl(rows(tmp_path / "rows.jsonl", line)))


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"no task file at .*none\.jsonl"):
        list(TaskSet.from_jsonl(tmp_path / "none.jsonl"))
    with pytest.raises(TaskError, match=r"no task folder at .*none"):
        list(TaskSet.from_directory(tmp_path / "none"))


def test_rows_of_another_format_are_parsed_by_a_function(tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", '{"question": "2+2"}')
    tasks = TaskSet.from_jsonl(path, lambda row: task(row["question"]))
    assert [one.id for one in tasks] == ["2+2"]
    with pytest.raises(TaskError, match="the field 'answer' is missing"):
        list(TaskSet.from_jsonl(path, lambda row: task(row["answer"])))


def test_a_directory_gives_one_task_per_folder_in_name_order(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "task.json").write_text('{"split": "test", "public": {"prompt": "x"}}')
    assert [one.id for one in TaskSet.from_directory(tmp_path)] == ["a", "b"]
    (tmp_path / "c").mkdir()
    with pytest.raises(TaskError, match="c is not a task folder of the wanted format"):
        list(TaskSet.from_directory(tmp_path))


def test_a_generator_is_asked_for_consecutive_seeds() -> None:
    tasks = TaskSet.from_generator("made", lambda seed, difficulty: task(f"{seed}@{difficulty}"), count=2, seed=5)
    assert [one.id for one in tasks] == ["5@1.0", "6@1.0"]
