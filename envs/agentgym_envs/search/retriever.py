"""What every way of searching promises, and the settings that choose one."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import Field, TypeAdapter, ValidationError

from agentgym.errors import RecipeError
from agentgym.types import Record
from agentgym_envs.search.passages import Passage

MAX_K = 100


@dataclass(frozen=True, slots=True)
class Hit:
    """One passage that was found."""

    passage: Passage
    score: float
    """Higher is better; comparable within one answer only."""


class Retriever(Protocol):
    """Finds passages; safe to use from many threads at once.

    Any text is a query: none is an error, and none is syntax. The same query gives the same hits in the same order,
    best first, at most `k` and never one passage twice; a query without a word gives none.
    """

    def search(self, query: str, k: int) -> list[Hit]:
        """Return the best hits.

        Raises:
            ValueError: `k` is not between 1 and `MAX_K`.
            InfrastructureError: what searches cannot be reached, or answers nonsense.
        """
        ...

    def get(self, name: str) -> Passage | None:
        """Return the passage with this id, else the first with this title; None if there is none."""
        ...

    def close(self) -> None:
        """Let go of files and connections; may be called twice."""
        ...


@runtime_checkable
class Kept(Protocol):
    """A retriever that keeps files open between searches while somebody uses it; optional."""

    def enter(self, user: object) -> None:
        """Keep them for this user."""
        ...

    def leave(self, user: object) -> None:
        """Let go of this user, and with the last one of the files; whoever never entered may leave."""
        ...


class EmbeddedSettings(Record):
    """BM25 over an index file that `agentgym search index` made."""

    kind: Literal["fts5"] = "fts5"
    index: str


class DenseSettings(Record):
    """Nearest vectors, made by a model of `sentence-transformers`, over an index file's passages."""

    kind: Literal["dense"]
    index: str
    model: str
    """A folder, or a name that `sentence-transformers` knows."""


class HybridSettings(Record):
    """BM25 and nearest vectors over one index file, fused by reciprocal rank."""

    kind: Literal["hybrid"]
    index: str
    model: str


class RemoteSettings(Record):
    """A server that speaks Search-R1's `POST /retrieve`."""

    kind: Literal["remote"]
    url: str
    """Such as http://127.0.0.1:8000/retrieve."""
    timeout_s: Annotated[float, Field(gt=0)] = 10.0
    retries: Annotated[int, Field(ge=0, le=10)] = 3


class OpenSearchSettings(Record):
    """An index of an OpenSearch cluster."""

    kind: Literal["opensearch"]
    url: str
    """Such as http://127.0.0.1:9200."""
    index: str
    timeout_s: Annotated[float, Field(gt=0)] = 10.0
    retries: Annotated[int, Field(ge=0, le=10)] = 3


Settings = Annotated[
    EmbeddedSettings | DenseSettings | HybridSettings | RemoteSettings | OpenSearchSettings, Field(discriminator="kind")
]
_SETTINGS: TypeAdapter[Any] = TypeAdapter(Settings)
_shared: dict[str, Retriever] = {}
_lock = threading.Lock()


def open_retriever(chosen: Any) -> Retriever:
    """Return the retriever of a mapping such as `{kind: remote, url: …}`, or of an index file.

    What costs much is shared by all that ask for the same in a process: connections, vectors and models.

    Raises:
        RecipeError: the mapping is malformed.
        TaskError: the index file is missing or is none.
        MissingExtraError: a package for this kind is not installed.
    """
    data = {"kind": "fts5", "index": chosen} if isinstance(chosen, str) else chosen
    try:
        found = _SETTINGS.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "retriever"
        raise RecipeError(f"the retriever is malformed: {where}: {first['msg']}") from error
    if isinstance(found, EmbeddedSettings | DenseSettings | HybridSettings):
        return _open(found)  # shared by what the file is, for it may be replaced
    with _lock:
        name = found.model_dump_json()
        if name not in _shared:
            _shared[name] = _open(found)
        return _shared[name]


def _open(chosen: Any) -> Retriever:
    from agentgym_envs.search.embedded import EmbeddedRetriever

    match chosen:
        case EmbeddedSettings():
            return EmbeddedRetriever.shared(chosen.index)
        case RemoteSettings():
            from agentgym_envs.search.remote import RemoteRetriever

            return RemoteRetriever(chosen.url, timeout_s=chosen.timeout_s, retries=chosen.retries)
        case OpenSearchSettings():
            from agentgym_envs.search.opensearch import OpenSearchRetriever

            return OpenSearchRetriever(chosen.url, chosen.index, timeout_s=chosen.timeout_s, retries=chosen.retries)
        case _:
            from agentgym_envs.search.dense import DenseRetriever, HybridRetriever, sentence_encoder

            words = EmbeddedRetriever.shared(chosen.index)
            vectors = DenseRetriever.shared(words, sentence_encoder(chosen.model))
            return vectors if isinstance(chosen, DenseSettings) else HybridRetriever(words, vectors)


def check_k(k: int) -> int:
    """Return a number of hits that may be asked for.

    Raises:
        ValueError: it is not between 1 and `MAX_K`.
    """
    if not 1 <= k <= MAX_K:
        raise ValueError(f"wanted between 1 and {MAX_K} passages, found {k}")
    return k
