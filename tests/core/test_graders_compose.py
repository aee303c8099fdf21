"""Composites: what parts make together, what an unscored part leaves open, and how far the whole can be trusted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from agentgym import registry
from agentgym.errors import AgentgymError, SandboxError, UnknownNameError, VerifierError
from agentgym.graders.compose import AllGrader, AnyGrader, Component, FirstGrader, WeightedGrader
from agentgym.sandbox import SandboxBackend
from agentgym.task import Hidden, Public, Task
from agentgym.types import Submission, Trust, Verdict

NO_SANDBOX: Any = None
Grader = WeightedGrader | AllGrader | AnyGrader | FirstGrader
GRADERS: Mapping[str, Callable[[], Grader]] = {
    "weighted": WeightedGrader,
    "all": AllGrader,
    "any": AnyGrader,
    "first": FirstGrader,
}


class Scripted:
    """Says what the task tells it to, and counts how often it was asked."""

    asked = 0

    def grade(self, task: Task, submission: Submission, sandboxes: SandboxBackend) -> Verdict:
        type(self).asked += 1
        data: dict[str, Any] = dict(task.hidden.data)
        if "raises" in data:
            raise {"sandbox": SandboxError, "verifier": VerifierError}[data["raises"]]("as scripted")
        return Verdict(
            value=data["value"],
            level="said",
            trust=Trust(data.get("trust", "rpc")),
            components={"inner": 0.5},
            feedback=f"said {data['value']} of {submission.answer}",
            error="scripted" if data["value"] is None else None,
        )


@pytest.fixture(autouse=True, scope="module")
def scripted() -> Iterator[None]:
    registry.add("graders", "scripted", Scripted)
    yield
    registry._registered["graders"].pop("scripted")


def part(name: str, value: float | None = 1.0, **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {key: more.pop(key) for key in ("weight", "decides", "takes") if key in more}
    return {"name": name, "grader": "scripted", "hidden": {"value": value, **more}, **options}


def task_of(*components: dict[str, Any]) -> Task:
    return Task(id="t", split="train", public=Public(prompt="?"), hidden=Hidden(data={"components": list(components)}))


def judged(mode: str, *components: dict[str, Any]) -> Verdict:
    verdict: Verdict = registry.create("graders", mode).grade(task_of(*components), Submission(answer="x"), NO_SANDBOX)
    return verdict


def test_weights_make_a_mean_and_every_part_stays_in_the_verdict() -> None:
    verdict = judged("weighted", part("code", 1.0, weight=3), part("style", 0.0, weight=1))
    assert (verdict.value, verdict.level) == (0.75, "partial")
    assert verdict.components == {"code": 1.0, "code.inner": 0.5, "style": 0.0, "style.inner": 0.5}
    assert verdict.feedback == "style: said 0.0 of x"


def test_all_is_the_worst_part_and_any_the_best() -> None:
    parts = part("a", 1.0), part("b", 0.25)
    assert (judged("all", *parts).value, judged("any", *parts).value) == (0.25, 1.0)
    assert (judged("all", *parts).level, judged("any", *parts).level) == ("partial", "passed")
    assert judged("any", *parts).feedback == ""


def test_first_asks_no_further_once_it_is_decided() -> None:
    before = Scripted.asked
    quick, costly = part("quick", 1.0, decides="passed"), part("costly", 0.0, decides="always", trust="shared")
    verdict = judged("first", quick, costly)
    assert (verdict.value, verdict.trust, Scripted.asked - before) == (1.0, Trust.RPC, 1)
    assert "costly" not in verdict.components
    verdict = judged("first", part("quick", 0.0, decides="passed"), part("costly", 0.5, decides="always"))
    assert (verdict.value, verdict.components["quick"]) == (0.5, 0.0)
    assert judged("first", part("gate", 0.0, decides="failed"), part("b", 1.0, decides="always")).value == 0.0


@pytest.mark.parametrize("mode", ["weighted", "all", "any"])
def test_a_composite_is_as_hard_to_fake_as_its_weakest_part(mode: str) -> None:
    weight = {"weight": 1} if mode == "weighted" else {}
    parts = [part(f"p{index}", 0.5, trust=trust, **weight) for index, trust in enumerate(("rpc", "separate", "twins"))]
    assert judged(mode, *parts).trust is Trust.SEPARATE


@pytest.mark.parametrize(
    ("mode", "parts", "value"),
    [
        ("all", (part("a", None), part("b", 0.0)), 0.0),
        ("all", (part("a", None), part("b", 1.0)), None),
        ("all", (part("a", None), part("b", 0.5)), None),
        ("any", (part("a", None), part("b", 1.0)), 1.0),
        ("any", (part("a", None), part("b", 0.0)), None),
        ("weighted", (part("a", None, weight=1), part("b", 0.0, weight=99)), None),
        ("first", (part("a", None, decides="passed"), part("b", 0.0, decides="always")), None),
        ("first", (part("a", None, decides="passed"), part("b", 1.0, decides="always")), 1.0),
        ("first", (part("a", None, decides="failed"), part("b", 1.0, decides="always")), None),
        ("first", (part("a", 1.0, decides="passed"), part("b", None, decides="always")), 1.0),
    ],
)
def test_an_unscored_part_leaves_the_whole_unscored_unless_the_others_decide(
    mode: str, parts: tuple[dict[str, Any], ...], value: float | None
) -> None:
    verdict = judged(mode, *parts)
    assert (verdict.value, verdict.level == "unscored") == (value, value is None)
    assert (verdict.error is not None) == (value is None)


@pytest.mark.parametrize(("fault", "kind"), [("sandbox", SandboxError), ("verifier", VerifierError)])
def test_a_parts_failure_is_the_wholes_unless_the_others_decide(fault: str, kind: type[AgentgymError]) -> None:
    broken = part("broken", raises=fault)
    with pytest.raises(kind, match="as scripted"):
        judged("all", broken, part("b", 1.0))
    verdict = judged("all", broken, part("b", 0.0))
    assert (verdict.value, verdict.components["broken"]) == (0.0, None)


def test_an_infrastructure_failure_is_told_before_a_verifiers_because_it_is_retried() -> None:
    with pytest.raises(SandboxError):
        judged("all", part("a", raises="verifier"), part("b", raises="sandbox"))


VALUES = st.sampled_from([0.0, 0.5, 1.0, None])
DECIDES = st.sampled_from(["passed", "failed"])


@given(st.sampled_from(sorted(GRADERS)), st.lists(st.tuples(VALUES, DECIDES), min_size=1, max_size=4))
def test_a_value_is_decided_exactly_when_no_unscored_part_could_change_it(
    mode: str, parts: list[tuple[float | None, Any]]
) -> None:
    last = len(parts) - 1
    components = [
        Component(name=f"p{i}", grader="scripted", weight=i + 1.0, decides="always" if i == last else decides)
        for i, (_, decides) in enumerate(parts)
    ]
    grader = GRADERS[mode]()
    choices = [(value,) if value is not None else (0.0, 0.5, 1.0) for value, _ in parts]
    possible = {grader.combine(components, list(values)) for values in itertools.product(*choices)}
    found = grader.combine(components, [value for value, _ in parts])
    assert None not in possible
    assert found == (possible.pop() if len(possible) == 1 else None)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(1e-6, 1e6)), min_size=1, max_size=6))
def test_a_weighted_mean_is_perfect_only_if_every_part_is(parts: list[tuple[float, float]]) -> None:
    components = [Component(name=f"p{i}", grader="scripted", weight=weight) for i, (_, weight) in enumerate(parts)]
    found = WeightedGrader().combine(components, [value for value, _ in parts])
    assert found is not None
    assert 0.0 <= found <= 1.0
    assert (found == 1.0) == all(value == 1.0 for value, _ in parts)
    assert (found == 0.0) == all(value == 0.0 for value, _ in parts)


@pytest.mark.parametrize(
    ("mode", "components", "sentence"),
    [
        ("all", [], "components"),
        ("all", [part("a"), part("a")], "two components are called 'a'"),
        ("all", [part("a", weight=1)], "wanted no weight for the component 'a'"),
        ("weighted", [part("a")], "wanted a weight for the component 'a'"),
        ("weighted", [part("a", weight=0)], "weight"),
        ("first", [part("a")], "wanted a decides"),
        ("first", [part("a", decides="passed")], "wanted decides: always for the last component 'a'"),
        ("first", [part("a", decides="always"), part("b", decides="always")], "nothing after it would ever run"),
        ("any", [{**part("a"), "graders": 1}], "graders"),
        ("any", [part("a b")], "name"),
    ],
)
def test_a_malformed_composite_is_refused_in_one_sentence(
    mode: str, components: list[dict[str, Any]], sentence: str
) -> None:
    with pytest.raises(VerifierError, match="is malformed") as refusal:
        registry.create("graders", mode).check(task_of(*components))
    assert sentence in str(refusal.value)


def test_an_unknown_part_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'answer'"):
        AllGrader().check(task_of({"name": "a", "grader": "anser"}))


def test_a_malformed_part_is_refused_before_anything_runs() -> None:
    before = Scripted.asked
    answer = {"name": "b", "grader": "answer", "hidden": {"kind": "exact", "golds": [" "]}}
    with pytest.raises(VerifierError, match="an empty answer would match it"):
        judged("all", part("a", 0.0), answer)
    assert Scripted.asked == before


def test_composites_nest_and_judge_real_parts_of_one_submission() -> None:
    number = {"kind": "numeric", "gold": "42", "abs_tol": 0}
    either = [
        {"name": "word", "grader": "answer", "hidden": {"kind": "exact", "golds": ["forty-two"]}},
        {"name": "number", "grader": "answer", "hidden": number},
    ]
    task = task_of({"name": "right", "grader": "any", "hidden": {"components": either}, "takes": "answer"}, part("b"))
    verdict = AllGrader().grade(task, Submission(answer="42", files={"a": "b"}), NO_SANDBOX)
    assert verdict.passed
    assert verdict.components["right.number"] == 1.0
    wrong = AllGrader().grade(task, Submission(answer="43"), NO_SANDBOX)
    assert (wrong.value, wrong.feedback.splitlines()[0]) == (0.0, "right: word: the answer is not the expected one")


def test_a_part_sees_its_own_public_data_and_its_own_part_of_the_submission() -> None:
    sandboxes: SandboxBackend = registry.create("sandboxes", "process")
    try:
        sandboxes.check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    program: JsonValue = {"languages": ["bash"], "output": {"mode": "tokens"}}
    cases: JsonValue = [{"stdin": "a\n", "stdout": "a"}]
    claim: JsonValue = {"kind": "exact", "golds": ["yes"]}
    task = Task(
        id="t",
        split="train",
        public=Public(prompt="?", data={"components": {"program": program}}),
        hidden=Hidden(
            data={
                "components": [
                    {"name": "program", "grader": "stdio", "takes": "files", "hidden": {"cases": cases}},
                    {"name": "claim", "grader": "answer", "takes": "answer", "hidden": claim},
                ]
            }
        ),
    )
    submission = Submission(answer="yes", files={"main.sh": "cat"})
    assert AllGrader().grade(task, submission, sandboxes).passed
    assert not AllGrader().grade(task, Submission(answer="yes"), sandboxes).passed
    sandboxes.close()
