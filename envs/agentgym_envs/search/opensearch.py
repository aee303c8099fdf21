"""OpenSearch, for corpora too large for one file: the same queries, answered by a cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from agentgym.errors import InfrastructureError
from agentgym_envs.search.http import JsonServer
from agentgym_envs.search.passages import Passage
from agentgym_envs.search.query import segmented, words
from agentgym_envs.search.retriever import Hit, check_k

_BATCH = 500
MAPPING: dict[str, Any] = {
    "settings": {
        "index": {"similarity": {"default": {"type": "BM25", "k1": 1.2, "b": 0.75}}},
        "analysis": {"analyzer": {"default": {"tokenizer": "standard", "filter": ["lowercase", "asciifolding"]}}},
    },
    "mappings": {
        "dynamic": "strict",
        "properties": {
            "number": {"type": "long"},
            "id": {"type": "keyword"},
            "name": {"type": "keyword"},
            "title": {"type": "keyword", "index": False, "doc_values": False},
            "text": {"type": "keyword", "index": False, "doc_values": False},
            "links": {"type": "keyword", "index": False, "doc_values": False},
            "passage": {"type": "text"},
        },
    },
}
"""What `load` makes of an index: words as FTS5 has them, BM25 with its constants, nothing else searched."""


class _Source(BaseModel):
    id: str
    title: str
    text: str
    links: tuple[str, ...] = ()


class _Found(BaseModel):
    source: Annotated[_Source, Field(alias="_source")]
    score: Annotated[float | None, Field(alias="_score")] = None


class _Hits(BaseModel):
    hits: list[_Found]


class _Answer(BaseModel):
    hits: _Hits
    timed_out: bool


class OpenSearchRetriever:
    """Searches an index that `load` filled."""

    def __init__(self, url: str, index: str, *, timeout_s: float = 10.0, retries: int = 3) -> None:
        """Prepare, without speaking to the cluster yet.

        Args:
            url: of the cluster; a user and a password may stand before the host.
            index: its name there.
            timeout_s: of one attempt.
            retries: further attempts where nothing came back, or the cluster was busy.
        """
        self.index = index
        self._timeout_s = timeout_s
        self._server = JsonServer(url, timeout_s=timeout_s, retries=retries)

    def search(self, query: str, k: int) -> list[Hit]:
        """Return the best hits; ties stand in the corpus's order."""
        check_k(k)
        chosen = words(query)
        if not chosen:
            return []
        # A `match` query has no syntax: its text goes through the analyser and nowhere else.
        return self._ask({"match": {"passage": {"query": " ".join(chosen), "operator": "or"}}}, k)

    def get(self, name: str) -> Passage | None:
        """Return the passage with this id, else the first with this title, in any case."""
        for field, value in (("id", name), ("name", _folded(name))):
            found = self._ask({"term": {field: value.encode("utf-8", "replace").decode()}}, 1)
            if found:
                return found[0].passage
        return None

    def close(self) -> None:
        """Close every connection."""
        self._server.close()

    def load(self, passages: Iterable[Passage], on_progress: Callable[[int], None] = lambda _: None) -> int:
        """Make the index, fill it, and return how many passages it has.

        Raises:
            InfrastructureError: the index is there already, or the cluster refuses something.
        """
        self._server.ask("PUT", f"/{self.index}", json=MAPPING)
        numbered, count = enumerate(passages), 0
        while some := list(islice(numbered, _BATCH)):
            lines = [line for number, one in some for line in _lines(number, one)]
            headers = {"Content-Type": "application/x-ndjson"}
            answer = self._server.ask("POST", f"/{self.index}/_bulk", content="".join(lines), headers=headers)
            if answer.get("errors"):
                failed = [one for one in answer.get("items", []) if "error" in one.get("create", {})]
                raise InfrastructureError(f"the cluster refuses a passage: {json.dumps(failed[:1])[:300]}")
            count += len(some)
            on_progress(count)
        self._server.ask("POST", f"/{self.index}/_refresh")
        return count

    def _ask(self, query: dict[str, Any], k: int) -> list[Hit]:
        body = {
            "query": query,
            "size": k,
            "sort": [{"_score": "desc"}, {"number": "asc"}],
            "track_scores": True,
            "track_total_hits": False,
            "timeout": f"{max(1, round(1000 * self._timeout_s))}ms",
            "_source": ["id", "title", "text", "links"],
        }
        data = self._server.ask("POST", f"/{self.index}/_search", json=body)
        try:
            answer = _Answer.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InfrastructureError(f"{self._server.url} is no OpenSearch: {where}: {first['msg']}") from error
        if answer.timed_out:
            raise InfrastructureError(f"the cluster at {self._server.url} ran out of time")
        return [Hit(Passage(**one.source.model_dump()), one.score or 0.0) for one in answer.hits.hits]


def _lines(number: int, one: Passage) -> tuple[str, str]:
    document = {
        "number": number,
        "id": one.id,
        "name": _folded(one.title),
        "title": one.title,
        "text": one.text,
        "links": list(one.links),
        "passage": segmented(f"{one.title}\n{one.text}"),
    }
    return json.dumps({"create": {"_id": one.id}}) + "\n", json.dumps(document) + "\n"


def _folded(title: str) -> str:
    return title.casefold()
