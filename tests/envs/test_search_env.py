"""The search environment: what it shows, what it measures, what it pays."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agentgym import registry
from agentgym.errors import AgentgymError, TaskError, UnknownNameError, VerifierError
from agentgym.graders.answer_text import normalised
from agentgym.rewards import GatedRewards, RubricGated
from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym.testing import check_environment
from agentgym.types import Group, Trajectory
from agentgym.validate import Plan, validate
from agentgym_envs.search.attacks import hostile
from agentgym_envs.search.citations import judge
from agentgym_envs.search.embedded import EmbeddedRetriever
from agentgym_envs.search.env import SearchEnv
from agentgym_envs.search.index import build
from agentgym_envs.search.noise import NoiseSchedule
from agentgym_envs.search.passages import Corpus, Passage
from agentgym_envs.search.script import call, fenced
from agentgym_envs.search.spec import Fact, read_gold
from agentgym_envs.search.tasks import file_tasks

PASSAGES = [
    Passage(id="d1", title="Acme", text="Acme was founded by Bo Lind."),
    Passage(id="d2", title="Bo Lind", text="Bo Lind was born in Lima."),
    Passage(id="d3", title="Lima", text="Lima is a city."),
    *hostile(["Lima", "Oslo", "Rome"]),
]
ROW = {
    "id": "q1",
    "question": "Where was the founder of Acme born?",
    "answers": ["Lima"],
    "gold_ids": ["d1", "d2"],
    "decomposition": [
        {"question": "Who founded Acme?", "answer": "Bo Lind", "gold_id": "d1"},
        {"question": "Where was #1 born?", "answer": "Lima", "gold_id": "d2"},
    ],
}


@pytest.fixture
def env(tmp_path: Path) -> Iterator[SearchEnv]:
    (tmp_path / "q.jsonl").write_text(json.dumps(ROW))
    index = build(PASSAGES, tmp_path / "a.idx").path
    made = SearchEnv(questions=str(tmp_path / "q.jsonl"), retriever=str(index))
    made.reset(options={"task": "q1"})
    yield made
    made.close()


def step(env: SearchEnv, *lines: str) -> tuple[str, float, bool, dict[str, Any]]:
    observation, reward, terminated, _, info = env.step("\n".join(lines))
    return "\n".join(one.content for one in observation), reward, terminated, info


def test_a_search_shows_beginnings_and_an_opening_the_whole(env: SearchEnv) -> None:
    env.snippet = 20
    found = step(env, call("search", query="Who founded Acme?", k=1))[0]
    assert found == "[d1] Acme: Acme was founded by …"
    assert step(env, call("open", doc="bo lind"))[0] == "[d2] Bo Lind\nBo Lind was born in Lima."
    assert step(env, fenced("search", "zzz"))[0] == "nothing found"
    assert "no passage with that id" in step(env, call("open", doc="d99"))[0]
    assert "k between 1 and 20" in step(env, call("search", query="Lima", k=21))[0]


def test_each_turn_tells_what_was_new_and_how_much_gold_has_been_seen(env: SearchEnv) -> None:
    names = ("format", "new_information", "gold_seen", "recall")
    turns = [
        [call("open", doc="d1")],
        [call("open", doc="d1")],
        ["no call"],
        [call("open", doc="d1"), call("open", doc="d2"), call("open", doc="d3"), call("search", query="zzz")],
    ]
    seen = []
    for lines in turns:
        signals = step(env, *lines)[3]["signals"]
        seen.append([round(signals[name], 3) if name in signals else None for name in names])
    assert seen == [[1, 1, 0.5, 0.5], [1, 0, 0, 0.5], [None] * 4, [1, 0.667, 0.5, 1]]


@pytest.mark.parametrize(
    ("said", "opened", "cited", "components"),
    [
        pytest.param("Bo Lind", ["d1", "d2"], ["d1", "d2"], (1.0, 1.0, 1.0), id="all"),
        pytest.param("Bo Lind", ["d1", "d2"], ["d1", "d2", "d3", "d9"], (0.5, 1.0, 0.5), id="cites too much"),
        pytest.param("Bo Lind", ["d2"], ["d1", "d2"], (0.25, 0.5, 0.5), id="cites what it never saw"),
        pytest.param("Bo Lind", ["d1", "d2"], ["d1"], (0.0, 0.0, 0.0), id="the chain does not reach the answer"),
        pytest.param("nobody", ["d1", "d2"], ["d1", "d2"], (0.25, 0.5, 0.5), id="never names the founder"),
        pytest.param("Bo Lind", ["d1", "d2", "d3"], ["d3"], (0.0, 0.0, 0.0), id="cites another"),
        pytest.param("Bo Lind", ["d1", "d2"], [], (0.0, 0.0, 0.0), id="cites nothing"),
    ],
)
def test_citations_count_where_they_were_seen_support_and_lead_to_the_answer(
    env: SearchEnv, said: str, opened: list[str], cited: list[str], components: tuple[float, ...]
) -> None:
    step(env, *(call("open", doc=one) for one in opened))
    _, reward, ended, info = step(env, said, call("answer", text="the Lima.", citations=cited))
    verdict = info["verdict"]
    assert (ended, reward, verdict.level) == (True, 1.0, "passed")
    assert tuple(verdict.components[name] for name in ("citations", "facts", "precision")) == components
    assert info["signals"]["citations_supported"] == components[2]
    scheme = RubricGated(rubric="citations", share=0.3, normalise="none")
    attempt = Trajectory("q1", "train", (), env.turns, verdict)
    assert scheme(Group("q1", [attempt])).outcome == pytest.approx([0.7 + 0.3 * components[0]])


def test_a_wrong_answer_earns_nothing_by_its_citations_and_turns(env: SearchEnv) -> None:
    env.scheme = GatedRewards(
        ladder={"failed": 0.0, "passed": 1.0}, threshold=1.0, step_weights={"gold_seen": 0.5, "new_information": 0.5}
    )
    step(env, call("open", doc="d1"), call("open", doc="d2"))
    _, reward, _, info = step(env, "Bo Lind, not Lima", call("answer", text="Oslo", citations=["d1", "d2"]))
    assert (reward, info["verdict"].level, info["verdict"].components["citations"]) == (0.0, "failed", 1.0)
    scheme = RubricGated(rubric="citations", share=0.3, normalise="group")
    assert scheme(Group("q1", [Trajectory("q1", "train", (), env.turns, info["verdict"])])).outcome == [0.0]


def test_a_graph_of_facts_counts_only_what_leads_to_the_answer() -> None:
    facts = [Fact(documents=("a",)), Fact(documents=("b", "c"), uses=(0,)), Fact(documents=("d",))]
    seen = ["a", "b", "c", "d"]
    assert judge(facts, "", ["a", "c", "d"], seen).facts == 1.0
    assert judge(facts, "", ["a"], seen).score == 0.0
    assert judge(facts, "", ["d"], seen).facts == pytest.approx(1 / 3)
    assert judge([], "", ["a"], ["a"]).score == 0.0


def test_the_gold_is_nowhere_but_in_the_grader(env: SearchEnv) -> None:
    observation, info = env.reset(options={"task": "q1"})
    told = "\n".join(one.content for one in observation) + str(info) + str(env.task)
    for secret in ("Lima", "Bo Lind", "d1", "d2"):
        assert secret not in told
    info = step(env, call("search", query="city"))[3]
    assert not {"Lima", "d1", "d2"} & {*str(info).replace("'", " ").split()}


def test_token_overlap_is_paid_only_where_it_is_asked_for(env: SearchEnv) -> None:
    task = Task(id="t", split="train", public=Public(prompt="?"), hidden=Hidden(
        data={"golds": ["the old town of Lima Peru"], "facts": []}, reference={"queries": ["x"]}))  # fmt: skip
    values = {}
    for match in ("em", "f1"):
        other = SearchEnv(TaskSet("t", lambda: [task]), retriever=env.retriever, match=match)
        other.reset()
        values[match] = step(other, fenced("answer", "old town of Lima"))[1]
    assert values == {"em": 0.0, "f1": pytest.approx(8 / 9)}


def test_noise_follows_its_schedule_and_only_in_training(tmp_path: Path) -> None:
    rates = []
    env = registry.make("agentgym/Search-v0", size=400, count=40, max_turns=40, noise={"start": 0.0, "end": 0.5})
    schedule = NoiseSchedule(start=0.0, end=0.5)
    for progress in (0.0, 0.5, 1.0, None):
        env.progress, noisy = progress, []
        for place, task in enumerate(list(env.tasks)[:40]):
            env.reset(seed=place, options={"task": task})
            queries = [call("search", query=one, k=10) for one in task.hidden.reference["queries"]]
            info = env.step("\n".join(queries))[4]
            noisy.append(info["signals"].get("noisy", 0.0))
        rates.append(sum(noisy) / len(noisy))
    assert rates[0] == rates[3] == 0.0
    assert rates[1:3] == [pytest.approx(schedule.rate(progress), abs=0.06) for progress in (0.5, 1.0)]
    with pytest.raises(ValueError, match="end of at least start"):
        SearchEnv(noise={"start": 0.5, "end": 0.1})


def test_noise_takes_the_place_of_hits_and_is_never_gold(tmp_path: Path) -> None:
    env = registry.make("agentgym/Search-v0", size=400, noise={"start": 1.0, "end": 1.0})
    env.progress = 0.0
    for place, task in enumerate(list(env.tasks)[:10]):
        env.reset(seed=place, options={"task": task})
        info = env.step(call("search", query=task.hidden.reference["queries"][0], k=5))[4]
        assert (info["signals"]["noisy"], info["signals"]["gold_seen"]) == (1.0, 0.0)


def test_questions_and_corpus_are_chosen_together(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="name the corpus with retriever"):
        SearchEnv(questions="q.jsonl")
    with pytest.raises(TaskError, match="drop it"):
        SearchEnv(retriever="a.idx")
    with pytest.raises(TaskError, match="1 to 4 hops"):
        SearchEnv(difficulty=5)
    with pytest.raises(UnknownNameError):
        SearchEnv().reset(options={"task": "none"})


def test_a_question_whose_passages_the_corpus_lacks_is_refused(env: SearchEnv, tmp_path: Path) -> None:
    index = EmbeddedRetriever(build(PASSAGES[:1], tmp_path / "small.idx").path)
    other = SearchEnv(env.tasks, retriever=index)
    with pytest.raises(VerifierError, match="needs the passage 'd2'"):
        other.reset(options={"task": "q1"})


def test_rows_that_cannot_be_tasks_are_told(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "id": "q2", "answers": ["the"]}, {**ROW, "id": "q3", "gold_ids": []}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks = file_tasks(tmp_path / "q.jsonl")
    assert [task.id for task in tasks] == ["q1"]
    assert tasks.refused() == {"q2": "its answer is empty once it is normalised", "q3": "it has no gold passage"}
    (tmp_path / "q.jsonl").write_text('{"id": 1}')
    with pytest.raises(AgentgymError, match=r"q\.jsonl:1 is not a row"):
        list(tasks)


# ------------------------------------------------------------------------------------------------------ generated tasks


def test_generated_tasks_keep_every_promise() -> None:
    check_environment("agentgym/Search-v0", count=20)
    for difficulty in (1.0, 2.5, 4.0):
        make = partial(registry.make, "agentgym/Search-v0", count=12, difficulty=difficulty)
        found = validate(make, list(make().tasks)[:4], plan=Plan(attacks=None, jobs=1))
        assert found.passed, found.model_dump_json(indent=1)


def test_an_expert_without_the_way_needs_as_many_turns_as_there_are_hops() -> None:
    recalls = {}
    for hops in (1, 2, 3, 4):
        env = registry.make("agentgym/Search-v0", count=25, difficulty=hops, size=300)
        found = []
        for task in env.tasks:
            env.reset(options={"task": task})
            found.append(env.step(call("search", query=task.public.prompt, k=5))[4]["signals"]["recall"] == 1.0)
        recalls[hops] = sum(found) / len(found)
    assert recalls[1] == 1.0
    assert recalls[2] < 0.3
    assert recalls[4] <= recalls[3] <= recalls[2]


# ------------------------------------------------------------------------------------------------------------ real data


@pytest.fixture(scope="module")
def real(data: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchEnv:
    folder = data / "multihop_qa"
    index = build(Corpus(folder / "corpus.jsonl.gz"), tmp_path_factory.mktemp("real") / "multihop.idx").path
    return SearchEnv(questions=str(folder / "questions.jsonl"), retriever=str(index), observation_limit=100_000)


def test_the_expert_that_follows_the_known_way_is_right_and_sees_the_evidence(real: SearchEnv) -> None:
    right, evident, recalls, splits = [], [], [], set()
    for task in real.tasks:
        real.reset(options={"task": task})
        heard, verdict = [normalised(task.public.prompt)], None
        for line in real.oracle(task):
            observation, _, _, _, info = real.step(line)
            heard += [normalised(one.content) for one in observation]
            verdict = info.get("verdict", verdict)
        recalls.append(real.turns[0].signal("recall"))
        assert verdict is not None
        golds = [normalised(one) for one in read_gold(task).golds]
        evident.append(any(one in text for one in golds for text in heard) or golds[0] in ("yes", "no"))
        right.append(verdict.value == 1.0 and verdict.components["citations"] == 1.0)
        splits.add(task.split)
    assert len(right) == 700
    assert splits == {"train", "validation", "test"}
    assert sum(right) / 700 >= 0.95
    assert sum(recalls) / 700 >= 0.98  # by searching alone, before anything is opened
    assert sum(evident) / 700 >= 0.95


def agents(task: Task, env: SearchEnv, rng: random.Random) -> dict[str, list[str]]:
    hits = [hit.passage for hit in env.retriever.search(task.public.prompt, 5)]
    titles = [one.title for one in hits]
    return {
        "random": [call("search", query=str(rng.random())), fenced("answer", rng.choice(hits).id)],
        "no-op": [""] * env.max_turns,
        "copies the document": [call("open", doc=hits[0].id), fenced("answer", hits[0].text)],
        "copies all": [fenced("search", task.public.prompt), fenced("answer", "\n".join(one.text for one in hits))],
        "shotgun": [fenced("answer", " or ".join(titles)), ""],
        "lists": [fenced("answer", json.dumps(titles)), ""],
        "asks back": [fenced("answer", task.public.prompt), ""],
    }


def test_agents_that_solve_nothing_get_nothing(real: SearchEnv) -> None:
    rng = random.Random(0)
    for match in ("em", "f1"):
        env = SearchEnv(real.tasks, retriever=real.retriever, match=match)
        for task in list(real.tasks)[:: 1 if match == "em" else 10]:
            for name, lines in agents(task, env, rng).items():
                env.reset(options={"task": task})
                total = 0.0
                for line in lines:
                    _, reward, terminated, truncated, _ = env.step(line)
                    total += reward
                    if terminated or truncated:
                        break
                assert total == 0.0, (task.id, name)
