"""The environment `agentgym/Search-v0`: search a corpus, open passages, answer with citations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import JsonValue

from agentgym.env import AgentEnv, Observation, Submit, tool
from agentgym.errors import TaskError, VerifierError
from agentgym.graders.answer import AnswerGrader
from agentgym.task import Hidden, Task, TaskSet
from agentgym.types import Message, Submission, Verdict
from agentgym_envs.search import attacks, script
from agentgym_envs.search.citations import judge
from agentgym_envs.search.embedded import EmbeddedRetriever
from agentgym_envs.search.noise import NoiseSchedule, with_noise
from agentgym_envs.search.passages import Passage
from agentgym_envs.search.retriever import Kept, Retriever, open_retriever
from agentgym_envs.search.spec import read_gold
from agentgym_envs.search.tasks import file_tasks
from agentgym_envs.search.world import world_retriever, world_tasks

EXPLANATION = """Answer the question from a corpus that you can search. Each message calls one tool:
search (a query; shows the best passages), open (a passage's id or title; shows all of it), and at last
answer (the answer alone, a few words; with the ids of the passages that support it as citations)."""
MAX_SHOWN = 20
MAX_CITATIONS = 50
_F1 = 0.8


class SearchEnv(AgentEnv):
    """Questions whose answers take several searches; the answer decides, and citations are judged beside it."""

    grader = "answer"
    levels: ClassVar[tuple[str, ...]] = AnswerGrader.levels
    signals: ClassVar[tuple[str, ...]] = (
        "format", "new_information", "gold_seen", "recall", "citations_supported", "noisy",
    )  # fmt: skip

    def __init__(
        self,
        tasks: TaskSet | None = None,
        *,
        questions: str | None = None,
        retriever: Any = None,
        count: int = 200,
        difficulty: float = 2.0,
        world: int = 0,
        size: int = 300,
        match: Literal["em", "f1"] = "em",
        noise: Mapping[str, Any] | None = None,
        snippet: int = 400,
        bad: float = 0.5,
        explain: bool = True,
        **options: Any,
    ) -> None:
        """Choose questions and corpus; by default both are generated.

        Args:
            tasks: a task set over the retriever's corpus.
            questions: a JSON Lines file of questions over the retriever's corpus.
            retriever: an index file, or a mapping such as `{kind: remote, url: …}`, or an object that searches.
            count: how many questions to generate.
            difficulty: of generated questions, 1 to 4 hops; 2.5 mixes two and three.
            world: the seed of the generated corpus.
            size: how many things the generated corpus tells of.
            match: `em` asks for the gold up to case, articles and punctuation; `f1` pays token overlap from 0.8 on.
            noise: ZeroSearch's schedule, `{start: 0, end: 0.5}`, for training episodes only.
            snippet: how many characters of each passage a search shows.
            bad: the share of demonstrations that answer before they know.
            explain: open with a system message that explains the tools.
            **options: those of `AgentEnv`.
        """
        generated = tasks is None and questions is None
        if generated != (retriever is None):
            wanted = "drop it, or name questions=…" if generated else "name the corpus with retriever=…"
            raise TaskError(f"generated questions have a corpus of their own, and others need one: {wanted}")
        if match not in ("em", "f1"):
            raise ValueError(f"wanted match em or f1, found {match!r}")
        if snippet < 20 or not 0.0 <= bad <= 1.0:
            raise ValueError(f"wanted snippet of at least 20 and bad between 0 and 1, found {snippet} and {bad}")
        if generated:
            tasks = world_tasks(count=count, difficulty=difficulty, world=world, size=size)
            self.retriever: Retriever = world_retriever(world, size)
        else:
            tasks = tasks or file_tasks(str(questions))
            self.retriever = retriever if hasattr(retriever, "search") else open_retriever(retriever)
        super().__init__(tasks, **options)
        self.match = match
        self.noise = NoiseSchedule.model_validate(dict(noise)) if noise is not None else None
        self.paced = noise is not None
        self.snippet = snippet
        self.bad = bad
        self.explain = explain
        self._seen: dict[str, None] = {}
        self._turn = -1
        self._shown: set[str] = set()
        self._new: set[str] = set()

    # ------------------------------------------------------------------ the episode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode in which nothing has been seen."""
        self._seen, self._turn = {}, -1
        found = super().reset(seed=seed, options=options)
        if isinstance(self.retriever, Kept):
            self.retriever.enter(self)
        return found

    def close(self) -> None:
        """End the episode; the last environment of a corpus closes the files that were kept open for searches."""
        super().close()
        if isinstance(self.retriever, Kept):
            self.retriever.leave(self)

    def prompt(self) -> Sequence[Message]:
        """The question, after an explanation of the tools if wanted."""
        opening = (Message(role="system", content=EXPLANATION),) if self.explain else ()
        return (*opening, *super().prompt())

    @tool
    def search(self, query: str, k: int = 3) -> str:
        """Show the beginnings of the k best passages for a query, with their ids."""
        if not 1 <= k <= MAX_SHOWN:
            raise ValueError(f"wanted k between 1 and {MAX_SHOWN}, found {k}")
        hits = self.retriever.search(query, k)
        rate = self.noise.rate(self.progress) if self.noise is not None and self.progress is not None else 0.0
        if rate:
            clean = {hit.passage.id for hit in hits}
            gold = read_gold(self._full_task).documents
            hits = with_noise(self.retriever, query, hits, rate, gold, self.np_random)
            kept = sum(hit.passage.id in clean for hit in hits)
            self.emit("noisy", 1.0 - kept / len(clean) if clean else 0.0)
        self._saw([hit.passage for hit in hits])
        return "\n".join(self._line(hit.passage) for hit in hits) or "nothing found"

    @tool
    def open(self, doc: str) -> str:
        """Show the whole of a passage, by its id or its title."""
        found = self.retriever.get(doc.strip())
        if found is None:
            raise ValueError("there is no passage with that id or title; search shows ids")
        self._saw([found])
        return f"[{found.id}] {found.title}\n{found.text}"

    @tool
    def answer(self, text: str, citations: list[str] = []) -> Submit:  # noqa: B006 -- read as a schema, never changed
        """Hand in the answer alone, with the ids of the passages that support it, and end."""
        self.emit("format", 1.0)
        return Submit(text, citations=list(dict.fromkeys(citations))[:MAX_CITATIONS])

    # ------------------------------------------------------------------ judging

    def grade(self, task: Task, submission: Submission) -> Verdict:
        """Judge the answer; the verdict's components tell how well citations support it, and decide nothing by it."""
        hidden = read_gold(task)
        verdict = AnswerGrader().grade(self._answer_task(task), submission, self.sandboxes)
        cited = submission.data.get("citations", [])
        names = [str(one) for one in cited] if isinstance(cited, list) else []
        said = "\n".join([*(turn.action.content for turn in self.turns), submission.answer or ""])
        rubric = judge(hidden.facts, said, names, self._seen)
        parts = {"citations": rubric.score, "facts": rubric.facts, "precision": rubric.precision}
        return verdict.model_copy(update={"components": {**parts, "recall": self._recall(task)}})

    def on_verdict(self, verdict: Verdict) -> None:
        """Tell how many of the citations support something."""
        self.emit("citations_supported", verdict.components.get("precision") or 0.0)

    def check_task(self, task: Task) -> None:
        """Refuse a task that cannot be judged, or whose gold passages the corpus lacks."""
        hidden = read_gold(task)
        AnswerGrader().check(self._answer_task(task))
        if isinstance(self.retriever, EmbeddedRetriever):
            missing = next((name for name in sorted(hidden.documents) if not self.retriever.has(name)), None)
            if missing is not None:
                raise VerifierError(
                    f"the search task {task.id!r} needs the passage {missing!r}, which {self.retriever.path} lacks; "
                    "index the corpus that the questions were made for"
                )

    def oracle(self, task: Task) -> Sequence[str]:
        """Ask what an expert asks who knows the way, then answer and cite."""
        return script.expert(task)

    def demonstration(self, task: Task, rng: np.random.Generator) -> Sequence[str]:
        """Return the expert's way, or, for the share `bad`, an answer with something that it met on the way."""
        return script.hasty(task, rng) if rng.random() < self.bad else script.plain(task)

    def attacks(self, task: Task) -> Mapping[str, Submission | Sequence[str]]:
        """Return attacks by documents, citations and answers that hedge."""
        return attacks.of(task)

    # ------------------------------------------------------------------ the rest

    def _answer_task(self, task: Task) -> Task:
        kind: dict[str, JsonValue] = {"kind": "normalised"} if self.match == "em" else {"kind": "f1", "threshold": _F1}
        return task.model_copy(update={"hidden": Hidden(data={**kind, "golds": [*read_gold(task).golds]})})

    def _saw(self, passages: Sequence[Passage]) -> None:
        """Remember what was shown, and measure all that this turn has shown."""
        gold = read_gold(self._full_task).documents
        if self._turn != len(self.turns):
            self._turn, self._shown, self._new = len(self.turns), set(), set()
        self._shown |= {one.id for one in passages}
        self._new |= {one.id for one in passages} - self._seen.keys()
        self._seen |= dict.fromkeys(one.id for one in passages)
        self.emit("format", 1.0)
        self.emit("new_information", len(self._new) / len(self._shown) if self._shown else 0.0)
        self.emit("gold_seen", len(self._new & gold) / len(gold) if gold else 0.0)
        self.emit("recall", self._recall(self._full_task))

    def _recall(self, task: Task) -> float:
        gold = read_gold(task).documents
        return len(gold & self._seen.keys()) / len(gold) if gold else 0.0

    def _line(self, one: Passage) -> str:
        text = " ".join(one.text.split())
        cut = text if len(text) <= self.snippet else f"{text[: self.snippet].rstrip()} …"
        return f"[{one.id}] {one.title}: {cut}"
