"""The judge: off unless asked for, tried before it is believed, and never a zero for a broken endpoint."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from agentgym import registry
from agentgym.errors import VerifierError
from agentgym.graders.judge import JudgeGrader
from agentgym.graders.judge_probes import attacks, read_probes
from agentgym.graders.judge_rubric import Rubric, RubricItem, messages_for, read_reply, read_rubric
from agentgym.task import Hidden, Public, Task
from agentgym.testing import ScriptedEndpoint
from agentgym.types import Submission, Trust, Verdict

pytest.importorskip("httpx", reason="the extra `judge` is not installed")

NO_SANDBOX: Any = None
Asked = dict[str, Any]
Character = Callable[[Asked, str, str], bool]
"""Whether a judge finds that an item holds, of a request, the submitted answer, and the item's id."""
RIGHT = {(one.question, text) for one in read_probes(None) for text in one.right}
ITEMS: JsonValue = [
    {"id": "capital", "text": "Names the capital.", "weight": 3},
    {"id": "river", "text": "Names the river."},
]


def honest(asked: Asked, answer: str, item: str) -> bool:
    """Knows which answers are right; in the tests' own tasks, whether the item is named in the first words."""
    return (asked["question"], answer) in RIGHT or (
        asked["question"].startswith("Own") and answer.startswith("Here: ") and item in answer.split(".")[0]
    )


def answering(character: Character) -> Callable[[dict[str, Any]], str]:
    def reply(body: dict[str, Any]) -> str:
        asked: Asked = json.loads(body["messages"][-1]["content"])
        said = str(asked["submission"].get("answer", ""))
        items = {one["id"]: character(asked, said, one["id"]) for one in asked["rubric"]}
        return json.dumps({"reasoning": "scripted", "items": items})

    return reply


@contextmanager
def serving(character: Character = honest) -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint(answering(character)) as endpoint:
        yield endpoint


def grader_of(endpoint: ScriptedEndpoint, **more: Any) -> JudgeGrader:
    quick = {"retries": 1, "retry_wait_s": 0.0}
    return JudgeGrader({"enabled": True, "url": endpoint.url, "model": "scripted", **quick, **more})


def task_of(prompt: str = "Own question", **hidden: Any) -> Task:
    data = {"rubric": ITEMS, "score": "share", **hidden}
    return Task(id="t", split="train", public=Public(prompt=prompt), hidden=Hidden(data=data))


def judged(grader: JudgeGrader, answer: str, **hidden: Any) -> Verdict:
    return grader.grade(task_of(**hidden), Submission(answer=answer), NO_SANDBOX)


# ---------------------------------------------------------------------------------------------------- off by default


def test_judges_are_off_and_say_how_to_turn_them_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTGYM_JUDGE", raising=False)
    for ask in (lambda one: one.check(task_of()), lambda one: judged(one, "Here: capital")):
        with pytest.raises(VerifierError, match=r"is off.*enabled: true.*AGENTGYM_JUDGE"):
            ask(registry.create("graders", "judge"))


def test_settings_that_do_not_say_the_word_leave_the_judge_off() -> None:
    with serving() as endpoint:
        for word in ({}, {"enabled": False}, {"enabled": "yes"}):
            with pytest.raises(VerifierError, match="is off"):
                judged(JudgeGrader({"url": endpoint.url, "model": "m", **word}), "Here: capital")
        assert endpoint.requests == []


def test_the_variable_names_a_file_of_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serving() as endpoint:
        file = tmp_path / "judge.yaml"
        file.write_text(f"enabled: true\nurl: {endpoint.url}\nmodel: from-file\n")
        monkeypatch.setenv("AGENTGYM_JUDGE", str(file))
        assert judged(registry.create("graders", "judge"), "Here: capital river").passed
        assert {one["model"] for one in endpoint.requests} == {"from-file"}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [({"modle": "x"}, "modle"), ({"url": "localhost"}, "url"), ({"retries": -1}, "retries"), ({"model": ""}, "model")],
)
def test_malformed_settings_are_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(VerifierError, match="the judge's settings are malformed") as refusal:
        JudgeGrader({"enabled": True, "url": "http://x", "model": "m", **wrong}).check(task_of())
    assert sentence in str(refusal.value)


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_items_make_the_value_and_stay_in_the_verdict() -> None:
    with serving() as endpoint:
        grader = grader_of(endpoint)
        verdict = judged(grader, "Here: capital. More.")
        assert (verdict.value, verdict.level, verdict.trust) == (0.75, "partial", Trust.OPINION)
        assert verdict.components == {"capital": 1.0, "river": 0.0}
        assert verdict.feedback == "1 of 2 items of the rubric hold"
        assert judged(grader, "Here: capital. More.", score="all").value == 0.0
        assert judged(grader, "Here: capital and river").passed
        assert judged(grader, "No idea").level == "failed"


def test_the_endpoint_is_asked_in_openais_shape_with_the_key_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    with serving() as endpoint:
        assert judged(grader_of(endpoint, api_key_variable="JUDGE_KEY"), "Here: capital").value == 0.75
        body = endpoint.requests[-1]
        assert [one["role"] for one in body["messages"]] == ["system", "user"]
        assert (body["temperature"], body["model"]) == (0, "scripted")
        assert json.loads(body["messages"][1]["content"])["submission"] == {"answer": "Here: capital"}
        assert set(endpoint.keys) == {"Bearer secret"}


def test_an_empty_answer_is_no_question_for_a_model() -> None:
    with serving() as endpoint:
        for text in ("", "  ", "?!", "。。。"):
            assert judged(grader_of(endpoint), text).level == "empty"
        assert endpoint.requests == []


def test_what_is_too_long_is_not_sent() -> None:
    with serving() as endpoint:
        long = judged(grader_of(endpoint, max_characters=100), "Here: capital" * 20)
        assert (long.value, endpoint.requests) == (0.0, [])


def test_files_are_judged_too() -> None:
    def reads_files(asked: Asked, answer: str, item: str) -> bool:
        return honest(asked, answer, item) or "a.md" in asked["submission"].get("files", {})

    with serving(reads_files) as endpoint:
        submission = Submission(files={"a.md": "text"})
        assert grader_of(endpoint).grade(task_of(), submission, NO_SANDBOX).passed


# ---------------------------------------------------------------------------------------------- tried before believed


def test_a_judge_is_tried_once_and_its_error_rates_are_told_with_intervals(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as endpoint, caplog.at_level(logging.INFO):
        grader = grader_of(endpoint)
        found = grader.qualification()
        asked = len(endpoint.requests)
        assert (found.fooled, found.false_positives.value, found.false_negatives.value) == ((), 0.0, 0.0)
        assert found.false_positives.tasks == found.false_negatives.tasks == 12
        assert 0.15 < found.false_positives.high < 0.3
        assert "false positives 0.0% [0.0, 24.2] of 12" in str(found)
        assert str(found) in caplog.text
        grader.qualification()
        grader_of(endpoint).qualification()
        assert len(endpoint.requests) == asked


def test_labelled_probes_of_ones_own_count(tmp_path: Path) -> None:
    file = tmp_path / "probes.jsonl"
    probe = {
        "question": "Own?",
        "reference": "r",
        "decoy": "d",
        "item": "i",
        "right": ["Here: none"],
        "wrong": ["w"] * 3,
    }
    file.write_text(json.dumps(probe) + "\n\n")
    with serving() as endpoint:
        found = grader_of(endpoint, probes=str(file)).qualification()
        assert (found.false_positives.tasks, found.false_negatives.tasks) == (15, 13)
        assert found.false_negatives.value == pytest.approx(1 / 13)
    file.write_text("{}\n")
    with serving() as endpoint, pytest.raises(VerifierError, match="probes cannot be read"):
        grader_of(endpoint, probes=str(file)).qualification()


def test_a_judge_that_refuses_too_much_or_accepts_too_much_is_refused() -> None:
    wrong = {(one.question, text) for one in read_probes(None) for text in one.wrong}

    def stern(asked: Asked, answer: str, item: str) -> bool:
        return False

    def lax(asked: Asked, answer: str, item: str) -> bool:
        return (asked["question"], answer) in RIGHT | wrong

    for character, sentence in ((stern, "100% false negatives"), (lax, "100% false positives")):
        with serving(character) as endpoint, pytest.raises(VerifierError, match=f"is refused: it has {sentence}"):
            judged(grader_of(endpoint), "Here: capital")


def test_a_rubric_that_nothing_meets_is_refused_for_its_task_only() -> None:
    def polite(asked: Asked, answer: str, item: str) -> bool:
        return item == "polite" or honest(asked, answer, item)

    empty_meets: list[JsonValue] = [
        {"id": "polite", "text": "Is not rude."},
        {"id": "river", "text": "Names the river."},
    ]
    with serving(polite) as endpoint:
        grader = grader_of(endpoint)
        with pytest.raises(VerifierError, match=r"refused for this task: for empty, .*write items that an"):
            judged(grader, "Here: river", rubric=empty_meets)
        assert judged(grader, "Here: capital river").passed


# ------------------------------------------------------------------------------------------------------- the endpoint


def test_a_busy_endpoint_is_asked_again() -> None:
    with serving() as endpoint:
        grader = grader_of(endpoint, retries=3)
        grader.qualification()
        endpoint.statuses = [503, 429, 500]
        assert judged(grader, "Here: capital river").passed


@pytest.mark.parametrize("status", [500, 503, 429, 401, 404, 302])
def test_an_endpoint_that_fails_leaves_the_verdict_unscored_and_never_zero(status: int) -> None:
    with serving() as endpoint:
        grader = grader_of(endpoint)
        grader.qualification()
        endpoint.statuses = [status] * 200
        verdict = judged(grader, "Here: capital")
        assert (verdict.value, verdict.level) == (None, "unscored")
        assert f"status {status}" in (verdict.error or "")


def test_an_endpoint_that_is_not_there_leaves_the_verdict_unscored() -> None:
    with serving() as endpoint:
        gone = JudgeGrader({"enabled": True, "url": endpoint.url, "model": "gone", "retries": 0})
    verdict = judged(gone, "Here: capital")
    assert (verdict.value, "does not answer" in (verdict.error or "")) == (None, True)


def test_a_key_that_is_missing_is_an_unscored_verdict_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with serving() as endpoint:
        verdict = judged(grader_of(endpoint, api_key_variable="JUDGE_KEY"), "Here: capital")
        assert (verdict.value, "JUDGE_KEY, which is empty" in (verdict.error or "")) == (None, True)


def test_a_judge_that_replies_to_nobody_as_asked_leaves_the_verdict_unscored() -> None:
    with serving() as endpoint:
        grader = grader_of(endpoint)
        assert judged(grader, "Here: capital").value == 0.75
        endpoint.reply = lambda _: "I think it is fine."
        verdict = judged(grader, "Here: river")
        assert (verdict.value, "replies to nobody as asked" in (verdict.error or "")) == (None, True)


def test_replies_are_kept_by_what_was_asked(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "cache.sqlite"
    with serving() as endpoint:
        assert judged(grader_of(endpoint, cache=str(file)), "Here: capital").value == 0.75
        asked = len(endpoint.requests)
        endpoint.reply = lambda _: "nonsense"
        # Other settings that do not change a reply: another judge in memory, the same file.
        again = grader_of(endpoint, cache=str(file), retries=5)
        assert judged(again, "Here: capital").value == 0.75
        assert len(endpoint.requests) == asked
        assert judged(again, "Here: river").value is None
    with sqlite3.connect(file) as base:
        rows = base.execute("SELECT asked, reply FROM replies").fetchall()
    base.close()
    assert len(rows) == asked
    assert all(len(key) == 64 and json.loads(reply)["items"] for key, reply in rows)


# ---------------------------------------------------------------------------------------------------- what is asked


@pytest.mark.parametrize(
    ("hidden", "sentence"),
    [
        ({"rubric": []}, "rubric"),
        ({"score": "mean"}, "score"),
        ({"rubric": [{"id": "a", "text": " "}]}, "text"),
        ({"rubric": [{"id": "a", "text": "x"}] * 2}, "the same id"),
        ({"rubric": [{"id": "a", "text": "x", "weight": 0}]}, "weight"),
        ({"rubrics": []}, "rubrics"),
    ],
)
def test_a_malformed_rubric_is_refused_in_one_sentence(hidden: dict[str, Any], sentence: str) -> None:
    with pytest.raises(VerifierError, match="the judge's task 't' is malformed") as refusal:
        read_rubric(task_of(**hidden))
    assert sentence in str(refusal.value)


RUBRIC = Rubric(question="?", rubric=(RubricItem(id="a", text="x"), RubricItem(id="b", text="y")), score="all")


@pytest.mark.parametrize(
    "text",
    [
        "", "true", "[]", "{}", '{"items": {"a": true}}', '{"items": {"a": true, "b": true, "c": true}}',
        '{"items": {"a": true, "b": 1}}', '{"items": {"a": "true", "b": "true"}}', '{"items": [true, true]}',
        'Sure! {"items": {"a": true, "b": true}}', '{"items": {"a": true, "b": true}} {"items": {}}', "[" * 9999,
    ],
)  # fmt: skip
def test_a_reply_is_read_whole_or_not_at_all(text: str) -> None:
    assert read_reply(RUBRIC, text) is None


@given(st.text())
def test_whatever_is_submitted_stays_one_string_in_the_request(text: str) -> None:
    (_, user) = messages_for(RUBRIC, Submission(answer=text))
    asked = json.loads(user["content"])
    assert asked["submission"] == {"answer": text}
    assert [one["id"] for one in asked["rubric"]] == ["a", "b"]


@settings(max_examples=20)
@given(st.text("ΑΒΓΔΕΖΗΘ", min_size=4, max_size=9))
def test_no_reference_and_no_item_appears_in_the_feedback(secret: str) -> None:
    with_secret: list[JsonValue] = [{"id": "a", "text": f"Says {secret}."}]
    for answer in ("Here: none", f"it is {secret}", "?"):
        verdict = judged(GRADER[0], answer, rubric=with_secret, reference=secret)
        assert secret not in verdict.feedback + repr(verdict.components)


GRADER: list[JudgeGrader] = []


@pytest.fixture(autouse=True, scope="module")
def one_grader() -> Iterator[None]:
    with serving() as endpoint:
        GRADER.append(grader_of(endpoint, model="shared"))
        yield
        GRADER.clear()


def test_every_kind_of_attack_is_tried() -> None:
    kinds = {kind for kind, _ in attacks(RUBRIC)}
    assert kinds >= {"empty", "punctuation", "opener", "rubric pasted", "instruction injection", "reply pasted"}
