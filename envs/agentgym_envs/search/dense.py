"""Nearest vectors beside BM25, and both fused."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agentgym.errors import MissingExtraError, TaskError
from agentgym_envs.search.embedded import EmbeddedRetriever
from agentgym_envs.search.passages import Passage
from agentgym_envs.search.query import MAX_CHARACTERS, words
from agentgym_envs.search.retriever import MAX_K, Hit, Kept, Retriever, check_k

Vectors = NDArray[np.float32]
_BATCH = 256
_RRF = 60


class Encoder(Protocol):
    """Makes vectors of texts; the same text always gives the same vector."""

    name: str
    """Tells encoders apart: vectors of one are never searched with another."""

    def queries(self, texts: Sequence[str]) -> Vectors:
        """Return one row per query, [N, D]."""
        ...

    def passages(self, texts: Sequence[str]) -> Vectors:
        """Return one row per passage, [N, D]."""
        ...


class SentenceEncoder:
    """A model of `sentence-transformers`."""

    def __init__(self, model: str) -> None:
        """Load it.

        Raises:
            MissingExtraError: the package is not installed.
            TaskError: there is no such model.
        """
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingExtraError("sentence-transformers", "dense") from error
        try:
            self._model = SentenceTransformer(model)
        except (OSError, ValueError) as error:
            raise TaskError(f"no model can be loaded from {model!r}: {str(error).splitlines()[0]}") from error
        self.name = model

    def queries(self, texts: Sequence[str]) -> Vectors:
        """Encode with the model's prompt for queries, if it has one."""
        return np.asarray(self._model.encode_query(list(texts), show_progress_bar=False), dtype=np.float32)

    def passages(self, texts: Sequence[str]) -> Vectors:
        """Encode with the model's prompt for documents, if it has one."""
        return np.asarray(self._model.encode_document(list(texts), show_progress_bar=False), dtype=np.float32)


_encoders: dict[str, SentenceEncoder] = {}
_opened: dict[tuple[Path, str], DenseRetriever] = {}
_lock = threading.Lock()


def sentence_encoder(model: str) -> SentenceEncoder:
    """Return the one encoder of this name that a process has."""
    with _lock:
        if model not in _encoders:
            _encoders[model] = SentenceEncoder(model)
        return _encoders[model]


def vectors_file(index: Path, encoder: str) -> Path:
    """Return where the vectors of an index file lie: beside it, named by what made them."""
    mark = hashlib.blake2b(encoder.encode(), digest_size=6).hexdigest()
    return index.with_name(f"{index.name}.{mark}.npz")


def encode(index: EmbeddedRetriever, encoder: Encoder, on_progress: Callable[[int], None] = lambda _: None) -> Path:
    """Make the vectors of an index file's passages, and write them beside it, complete or not at all."""
    rows_ND, some = list[Vectors](), list[str]()
    for count, one in enumerate(index.all(), start=1):
        some.append(f"{one.title}\n{one.text}")
        if len(some) == _BATCH or count == index.passages:
            rows_ND.append(_unit(encoder.passages(some)))
            some = []
            on_progress(count)
    target = vectors_file(index.path, encoder.name)
    part = target.with_name(f".{target.name}.part.npz")
    try:
        with part.open("wb") as file:
            np.savez(file, vectors=np.concatenate(rows_ND), digest=np.array(index.digest))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


class DenseRetriever:
    """The passages whose vectors have the largest cosine with the query's: all are compared, none is missed."""

    def __init__(self, index: EmbeddedRetriever, encoder: Encoder) -> None:
        """Read the vectors.

        Raises:
            TaskError: they were never made, or are those of another corpus.
        """
        self.index = index
        self._encoder = encoder
        file = vectors_file(index.path, encoder.name)
        if not file.is_file():
            raise TaskError(
                f"{index.path} has no vectors of {encoder.name!r}; "
                f"make them with: agentgym search index CORPUS --to {index.path} --dense {encoder.name}"
            )
        with np.load(file, allow_pickle=False) as found:
            self._vectors_ND: Vectors = found["vectors"]
            made_of = str(found["digest"])
        if made_of != index.digest:
            raise TaskError(f"the vectors in {file} belong to other passages than {index.path}; make them again")

    @classmethod
    def shared(cls, index: EmbeddedRetriever, encoder: Encoder) -> DenseRetriever:
        """Return the one of this index file that all environments of a process use; its vectors stay in memory.

        With another index in the file's place, those of the old one are let go.

        Raises:
            TaskError: the vectors were never made, or are those of another corpus.
        """
        key = index.path.resolve(), encoder.name
        with _lock:
            found = _opened.get(key)
            if found is None or found.index is not index:
                found = _opened[key] = cls(index, encoder)
            return found

    def search(self, query: str, k: int) -> list[Hit]:
        """Return the nearest passages; ties stand in the corpus's order."""
        check_k(k)
        if not words(query):
            return []
        text = query[:MAX_CHARACTERS].encode("utf-8", "replace").decode()
        scores_N = self._vectors_ND @ _unit(self._encoder.queries([text]))[0]
        best = np.argsort(-scores_N, kind="stable")[:k]
        passages = self.index.numbered([int(one) for one in best])
        return [Hit(passage, float(scores_N[at])) for at, passage in zip(best, passages, strict=True)]

    def get(self, name: str) -> Passage | None:
        """Ask the index file."""
        return self.index.get(name)

    def enter(self, user: object) -> None:
        """Keep the index file open for a user."""
        self.index.enter(user)

    def leave(self, user: object) -> None:
        """Let go of a user, and with the last one of the index file."""
        self.index.leave(user)

    def close(self) -> None:
        """Close the index file."""
        self.index.close()


class HybridRetriever:
    """Several retrievers of one corpus, fused by reciprocal rank: a passage scores the sum of 1 / (60 + rank).

    (Cormack, Clarke and Buettcher: Reciprocal Rank Fusion outperforms Condorcet and individual rank learning methods.)
    """

    def __init__(self, *parts: Retriever, depth: int = 50) -> None:
        """Take the parts, and how many hits of each are fused."""
        self._parts = parts
        self._depth = min(depth, MAX_K)

    def search(self, query: str, k: int) -> list[Hit]:
        """Return the best hits of all; ties go to the first part's."""
        check_k(k)
        scores: dict[str, float] = {}
        passages: dict[str, Passage] = {}
        for part in self._parts:
            for rank, hit in enumerate(part.search(query, max(k, self._depth)), start=1):
                name = hit.passage.id
                passages.setdefault(name, hit.passage)
                scores[name] = scores.get(name, 0.0) + 1.0 / (_RRF + rank)
        best = sorted(scores, key=lambda name: -scores[name])[:k]
        return [Hit(passages[name], scores[name]) for name in best]

    def get(self, name: str) -> Passage | None:
        """Return what the first part that has it says."""
        return next((found for part in self._parts if (found := part.get(name)) is not None), None)

    def enter(self, user: object) -> None:
        """Keep the parts' files open for a user."""
        for part in self._parts:
            if isinstance(part, Kept):
                part.enter(user)

    def leave(self, user: object) -> None:
        """Let go of a user, and with the last one of the parts' files."""
        for part in self._parts:
            if isinstance(part, Kept):
                part.leave(user)

    def close(self) -> None:
        """Close every part."""
        for part in self._parts:
            part.close()


def _unit(vectors_ND: Vectors) -> Vectors:
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.asarray(vectors_ND / np.maximum(lengths_N1, 1e-12), dtype=np.float32)
