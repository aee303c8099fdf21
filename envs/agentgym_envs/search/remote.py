"""A client of any server that speaks Search-R1's `POST /retrieve`."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from agentgym.errors import InfrastructureError
from agentgym_envs.search.http import JsonServer
from agentgym_envs.search.passages import Passage, split_contents
from agentgym_envs.search.query import MAX_CHARACTERS
from agentgym_envs.search.retriever import Hit, check_k

_REMEMBERED = 10_000


class Document(BaseModel):
    """A passage on the wire; what else a server says of it is ignored."""

    id: str | int
    contents: str | None = None
    """The title in quotes, a line break, the text."""
    title: str | None = None
    text: str | None = None

    def passage(self) -> Passage:
        """Return the passage; some servers send title and text apart."""
        title, text = split_contents(self.contents or "")
        return Passage(id=str(self.id), title=self.title or title, text=self.text if self.text is not None else text)


class Scored(BaseModel):
    """A document and its score, as `return_scores` asks for."""

    document: Document
    score: Annotated[float, Field(allow_inf_nan=False)]


class Answer(BaseModel):
    """One list per query."""

    result: list[list[Scored]]


class RemoteRetriever:
    """Searches a server; opens what it found there before, and else asks the server's `GET /document`.

    A server of ours has that path. Others have none, and of theirs only found passages can be opened.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0, retries: int = 3) -> None:
        """Prepare, without speaking to the server yet.

        Args:
            url: of the path `/retrieve`, or of the server.
            timeout_s: of one attempt.
            retries: further attempts where nothing came back, or the server was busy.
        """
        self._server = JsonServer(url.rstrip("/").removesuffix("/retrieve"), timeout_s=timeout_s, retries=retries)
        self._seen: OrderedDict[str, Passage] = OrderedDict()
        self._lock = threading.Lock()

    def search(self, query: str, k: int) -> list[Hit]:
        """Return the server's hits, each passage once and at most `k` of them."""
        asked = query[:MAX_CHARACTERS].encode("utf-8", "replace").decode()
        if not asked.strip():
            check_k(k)
            return []
        body = {"queries": [asked], "topk": check_k(k), "return_scores": True}
        data = self._server.ask("POST", "/retrieve", json=body)
        try:
            result = TypeAdapter(Answer).validate_python(data).result
            if len(result) != 1:
                raise ValueError(f"wanted one list of documents for one query, found {len(result)}")
            hits = {str(one.document.id): Hit(one.document.passage(), one.score) for one in result[0]}
        except (ValidationError, ValueError) as error:
            raise InfrastructureError(
                f"the search server at {self._server.url} does not speak Search-R1's protocol: {_first(error)}"
            ) from error
        found = sorted(hits.values(), key=lambda one: -one.score)[:k]
        self._remember([one.passage for one in found])
        return found

    def get(self, name: str) -> Passage | None:
        """Return a passage by id or title."""
        wanted = name.casefold()
        with self._lock:
            known = self._seen.get(name) or next(
                (one for one in self._seen.values() if one.title.casefold() == wanted), None
            )
        if known is not None:
            return known
        data = self._server.ask("GET", "/document", params={"name": name[:MAX_CHARACTERS]}, missing={})
        if not data:
            return None
        try:
            return Document.model_validate(data).passage()
        except ValidationError as error:
            raise InfrastructureError(
                f"the search server at {self._server.url} sent no document: {_first(error)}"
            ) from error

    def close(self) -> None:
        """Close every connection."""
        self._server.close()

    def _remember(self, passages: list[Passage]) -> None:
        with self._lock:
            for one in passages:
                self._seen[one.id] = one
                self._seen.move_to_end(one.id)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
