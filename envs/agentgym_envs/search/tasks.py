"""Questions from files: published multi-hop sets, and what `agentgym search questions` writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from agentgym.graders.answer_text import normalised
from agentgym.task import Hidden, Public, Task
from agentgym_envs.code.splits import digest, split_of
from agentgym_envs.rows import FileTasks, Refused, Row
from agentgym_envs.search.spec import Fact

_REFERENCE = re.compile(r"#(\d+)")


def file_tasks(path: str | Path) -> FileTasks:
    """Return the questions of a JSON Lines file, each in the split that the hash of its text decides.

    A row has `id`, `question`, `answers` and `gold_ids`; how they hang together is taken from `decomposition`
    (MuSiQue: steps with `question`, `answer`, `gold_id`, where `#1` is the first step's answer) or from `evidences`
    and `gold_titles` (2WikiMultihopQA: triples of subject, relation, object), where there are any.
    """
    return FileTasks("search", Path(path), convert, lambda row: str(row["id"]))


def convert(row: Row) -> Task:
    """Return the task of a row.

    Raises:
        Refused: its answer is empty once it is normalised, or it has no gold passage.
    """
    golds = [one for one in row["answers"] if normalised(one)]
    if not golds:
        raise Refused("its answer is empty once it is normalised")
    if not row["gold_ids"]:
        raise Refused("it has no gold passage")
    question = str(row["question"]).strip()
    data: dict[str, JsonValue] = {"golds": [*golds], "facts": [one.model_dump(mode="json") for one in facts_of(row)]}
    hops = len(row.get("decomposition") or row["gold_ids"])
    return Task(
        id=str(row["id"]),
        split=split_of(digest(normalised(question))),
        public=Public(prompt=question),
        hidden=Hidden(data=data, reference={"queries": [*queries_of(row)], "answer": golds[0]}),
        difficulty=float(hops),
    )


def facts_of(row: Row) -> list[Fact]:
    """Return the facts behind a question, as far as its row tells them."""
    if row.get("decomposition"):
        return [_step(one) for one in row["decomposition"]]
    titles = {normalised(title): name for title, name in zip(row.get("gold_titles", ()), row["gold_ids"], strict=False)}
    triples = [(normalised(one), normalised(other), other) for one, _, other in row.get("evidences") or ()]
    places = [_document(subject, titles) for subject, _, _ in triples]
    if not triples or None in places:
        return [Fact(documents=(name,)) for name in row["gold_ids"]]
    found = []
    for at, ((subject, _, shown), document) in enumerate(zip(triples, places, strict=True)):
        uses = tuple(before for before in range(at) if triples[before][1] == subject)
        used_later = any(later[0] == normalised(shown) for later in triples[at + 1 :])
        found.append(Fact(documents=(str(document),), reveals=shown if used_later else "", uses=uses))
    return found


def queries_of(row: Row) -> list[str]:
    """Return what an expert who knows the decomposition asks for, in order."""
    steps: Sequence[dict[str, Any]] = row.get("decomposition") or ()
    answers = [str(one["answer"]) for one in steps]
    asked = [_REFERENCE.sub(lambda m: _answer(answers, m), str(one["question"])) for one in steps]
    return [*asked, *dict.fromkeys(str(one) for one in row.get("gold_titles", ()))]


def _step(step: dict[str, Any]) -> Fact:
    uses = tuple(sorted({int(one) - 1 for one in _REFERENCE.findall(str(step["question"]))}))
    return Fact(documents=(step["gold_id"],), reveals=str(step["answer"]), uses=uses)


def _answer(answers: Sequence[str], found: re.Match[str]) -> str:
    place = int(found[1]) - 1
    return answers[place] if 0 <= place < len(answers) else found[0]


def _document(subject: str, titles: dict[str, str]) -> str | None:
    """Return the passage about a subject; titles may have more in brackets behind the name."""
    if subject in titles:
        return titles[subject]
    near = [name for title, name in titles.items() if title.startswith(f"{subject} ")]
    return near[0] if len(near) == 1 else None
