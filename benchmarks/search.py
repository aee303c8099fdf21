"""How fast a corpus is indexed and searched: the embedded index against `bm25s`, on the same passages, in one run.

`python -m benchmarks.search --corpus corpus.jsonl.gz --questions questions.jsonl`; without files, a generated world.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from agentgym_envs.search.embedded import EmbeddedRetriever
from agentgym_envs.search.index import build
from agentgym_envs.search.passages import Corpus, Passage
from agentgym_envs.search.questions import Generator
from agentgym_envs.search.world import world

K = 5
Search = Callable[[str], list[str]]


def ours(passages: Sequence[Passage], folder: Path) -> Search:
    """Build the index file and open it."""
    index = EmbeddedRetriever(build(passages, folder / "ours.idx").path)
    return lambda query: [hit.passage.id for hit in index.search(query, K)]


def bm25s(passages: Sequence[Passage], folder: Path) -> Search:
    """Build the index of the package `bm25s` with the same constants, keep it on disk, and search it in memory."""
    from bm25s import BM25, tokenize

    made = BM25(k1=1.2, b=0.75)
    words = tokenize([f"{one.title}\n{one.text}" for one in passages], stopwords=None, show_progress=False)
    made.index(words, show_progress=False)
    made.save(folder / "bm25s", show_progress=False)

    def search(query: str) -> list[str]:
        tokens = tokenize([query], stopwords=None, show_progress=False)
        numbers, _ = made.retrieve(tokens, k=K, show_progress=False)
        return [passages[int(at)].id for at in numbers[0]]

    return search


SYSTEMS: dict[str, Callable[[Sequence[Passage], Path], Search]] = {"ours": ours, "bm25s": bm25s}


def run(passages: Sequence[Passage], queries: Sequence[str], rounds: int) -> dict[str, Any]:
    """Build and search `rounds` times, the systems in turn; return figures by system, and how far they agree."""
    builds: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    waits: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    found: dict[str, list[list[str]]] = {}
    for _ in track(range(rounds), "measuring", console=Console(stderr=True), transient=True):
        searches: dict[str, Search] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, make in SYSTEMS.items():
                began = time.perf_counter()
                searches[name] = make(passages, Path(folder))
                builds[name].append(time.perf_counter() - began)
                searches[name](queries[0])  # what is loaded at first use is no query's time
            found = {name: [] for name in SYSTEMS}
            for query in queries:
                for name, search in searches.items():
                    began = time.perf_counter()
                    names = search(query)
                    waits[name].append(time.perf_counter() - began)
                    found[name].append(names)
    shared = [len({*one} & {*other}) / K for one, other in zip(found["ours"], found["bm25s"], strict=True)]
    figures = {
        name: {
            "passages_per_s": len(passages) / statistics.median(builds[name]),
            "p50_ms": 1000 * statistics.median(waits[name]),
            "p95_ms": 1000 * statistics.quantiles(waits[name], n=20)[-1],
        }
        for name in SYSTEMS
    }
    return {"passages": len(passages), "queries": len(queries), "systems": figures, "overlap": statistics.fmean(shared)}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="passages; a world of 8,000 things where it is left out")
    parser.add_argument("--questions", type=Path, help="JSON Lines with a field `question`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    given = parser.parse_args()
    if (given.corpus is None) != (given.questions is None):
        parser.error("--corpus and --questions go together")
    passages = list(Corpus(given.corpus)) if given.corpus else list(world(0, 8000))
    if given.questions:
        queries = [json.loads(line)["question"] for line in given.questions.read_text(encoding="utf-8").splitlines()]
    else:
        queries = [one.text for one in Generator(passages).generate(700, hops=2, seed=0)]
    result = run(passages, queries, given.rounds)
    table = Table("", *result["systems"], box=box.SIMPLE)
    rows = (("indexed, passages per second", "passages_per_s", "{:.0f}"), ("query, median ms", "p50_ms", "{:.2f}"),
            ("query, 95th percentile ms", "p95_ms", "{:.2f}"))  # fmt: skip
    for title, key, form in rows:
        table.add_row(title, *(form.format(one[key]) for one in result["systems"].values()))
    Console().print(table)
    print(f"{result['passages']} passages, {result['queries']} queries, {given.rounds} rounds; of each top {K} the two "
          f"share {result['overlap']:.0%}")  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
