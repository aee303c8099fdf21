"""Questions from linked corpora: every answer is derived again, and what is not sure is dropped and counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from agentgym_envs.search.passages import Passage
from agentgym_envs.search.questions import Generator
from agentgym_envs.search.tasks import convert
from agentgym_envs.search.world import FACTS, world

Shell = Callable[..., CompletedProcess[str]]


def corpus(*more: Passage) -> list[Passage]:
    return [
        Passage(id="d1", title="Acme", text="Acme was founded by Bo Lind. It is old.", links=("Bo Lind",)),
        Passage(id="d2", title="Bo Lind", text="Bo Lind was born in Lima.", links=("Lima",)),
        Passage(id="d3", title="Lima", text="Lima is a city."),
        *more,
    ]


def test_a_chain_of_linked_sentences_becomes_a_question_whose_answer_follows_from_its_text() -> None:
    made = Generator(corpus())
    (question,) = made.generate(5, hops=2, seed=0)
    assert question.text == "Acme was founded by [1].\n[1] was born in [2].\nWhat is [2]?"
    assert (question.answer, made.derive(question.text)) == ("Lima", "Lima")
    task = convert(question.row())
    assert task.hidden.data["facts"] == [
        {"documents": ["d1"], "reveals": "Bo Lind", "uses": []},
        {"documents": ["d2"], "reveals": "Lima", "uses": [0]},
    ]
    assert task.hidden.reference["queries"] == ["Acme was founded by what.", "Bo Lind was born in what."]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        pytest.param(
            [Passage(id="d4", title="Oslo", text=""), Passage(id="d5", title="B", text="Bo Lind was born in Oslo.",
                                                               links=("Oslo", "Bo Lind"))],
            "another thing fits too", id="a contradiction",
        ),
        pytest.param(
            [Passage(id="d4", title="Rival", text="Acme was founded by Rival. So it says.", links=("Acme",))],
            "another thing fits too", id="two founders",
        ),
    ],
)  # fmt: skip
def test_a_question_that_has_another_answer_is_dropped_and_counted(more: list[Passage], reason: str) -> None:
    made = Generator(corpus(*more))
    assert list(made.generate(5, hops=2, seed=0)) == []
    assert made.dropped[reason] > 0


def test_a_question_that_one_passage_answers_is_dropped() -> None:
    shortcut = Passage(id="d1", title="Acme", text="Acme was founded by Bo Lind. Lima is its seat.", links=("Bo Lind",))
    made = Generator([shortcut, *corpus()[1:]])
    assert list(made.generate(5, hops=2, seed=0)) == []
    assert made.dropped["the first passage names the answer"] > 0


@pytest.mark.parametrize(
    "text",
    ["", "What is [1]?", "Acme was founded by [1].", "Acme was sold by [1].\nWhat is [1]?", "[1] [2]\nWhat is [2]?",
     "Acme was founded by [1].\nWhat is [2]?"],
)  # fmt: skip
def test_what_is_no_question_has_no_answer(text: str) -> None:
    assert Generator(corpus()).derive(text) is None


def test_a_corpus_without_links_is_linked_by_the_titles_that_it_names() -> None:
    unlinked = [one.model_copy(update={"links": ()}) for one in corpus()]
    (question,) = Generator(unlinked).generate(5, hops=2, seed=0)
    assert question.answer == "Lima"


def test_every_answer_of_a_world_is_true_of_the_facts_that_it_was_made_of() -> None:
    """Walks the templates instead of the generator's own sentences."""
    passages = world(3, 200)
    told = {}
    for one in passages:
        for sentence in one.text.split(". "):
            for other in one.links:
                if other in sentence:
                    told[sentence.rstrip(".").replace(other, "@")] = other
    assert sum(map(len, FACTS.values())) == 12
    made = Generator(passages)
    for hops in (1, 2, 3, 4):
        questions = list(made.generate(50, hops=hops, seed=1))
        assert len({question.text for question in questions}) == 50
        for question in questions:
            *lines, _ = question.text.split("\n")
            known: dict[str, str] = {}
            for place, line in enumerate(lines, start=1):
                for name, value in known.items():
                    line = line.replace(name, value)
                known[f"[{place}]"] = told[line.rstrip(".").replace(f"[{place}]", "@")]
            assert known[f"[{hops}]"] == question.answer
            assert len({step.passage for step in question.steps}) == hops


def test_equal_seeds_give_equal_worlds_and_questions() -> None:
    assert world(1, 60) == world.__wrapped__(1, 60)
    assert world(1, 60) != world(2, 60)
    first, again = Generator(world(1, 60)), Generator(world(1, 60))
    assert list(first.generate(9, hops=2, seed=4)) == list(again.generate(9, hops=2, seed=4))


def test_questions_are_written_on_the_command_line_and_can_be_validated(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text("\n".join(one.model_dump_json() for one in world(0, 100)))
    assert shell("search", "index", "c.jsonl").returncode == 0
    done = shell("search", "questions", "c.idx", "--hops", 3, "--count", 20)
    assert done.returncode == 0, done.stderr
    assert "20 questions" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert [len(row["gold_ids"]) for row in rows] == [3] * 20
    options = ("questions=questions.jsonl", "retriever=c.idx")
    found = shell("validate", "agentgym/Search-v0", *options, "--limit", 3, "--jobs", 1)
    assert found.returncode == 0, found.stdout + found.stderr
