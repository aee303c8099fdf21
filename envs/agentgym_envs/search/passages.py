"""Passages, and the corpora that hold them: JSON Lines, or a folder of documents."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from agentgym.errors import TaskError
from agentgym.types import Record
from agentgym_envs.search import documents

MAX_CHARACTERS = 1_000_000
"""Of a passage; more is no passage but a document."""


class Passage(Record):
    """What is indexed, found, opened and cited as one piece."""

    id: Annotated[str, Field(min_length=1, max_length=500)]
    title: str = ""
    text: Annotated[str, Field(max_length=MAX_CHARACTERS)]
    links: tuple[str, ...] = ()
    """The titles or ids of passages that this one links to, in reading order."""

    @field_validator("id", "title", "text")
    @classmethod
    def _encodable(cls, text: str) -> str:
        # A lone surrogate can be neither stored nor sent.
        return text.encode("utf-8", "replace").decode()


class Corpus:
    """Passages read lazily, in the same order each time; knows how far it has read."""

    def __init__(self, path: str | Path) -> None:
        """Look at a JSON Lines file (which may end in `.gz`) or a folder of documents.

        Raises:
            TaskError: there is neither.
        """
        self.path = Path(path)
        self.position = 0
        """Bytes read of `total`, while it is iterated over."""
        self.skipped: dict[str, str] = {}
        """Files of a folder that could not be read, with the reason, after an iteration."""
        if self.path.is_dir():
            self._files = documents.files(self.path)
            if not self._files:
                raise TaskError(f"{path} holds no document; wanted files that end in {', '.join(documents.SUFFIXES)}")
            self.total = sum(one.stat().st_size for one in self._files)
        elif self.path.is_file():
            self.total = self.path.stat().st_size
        else:
            raise TaskError(f"no corpus at {path}; wanted a JSON Lines file or a folder of documents")

    def __iter__(self) -> Iterator[Passage]:
        self.position, self.skipped = 0, {}
        yield from self._folder() if self.path.is_dir() else self._lines()

    def _lines(self) -> Iterator[Passage]:
        with self.path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as unpacked:
            lines = unpacked if self.path.suffix == ".gz" else raw
            try:
                for number, line in enumerate(lines, start=1):
                    self.position = raw.tell()
                    if line.strip():
                        yield self._passage(number, line)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise TaskError(f"{self.path} cannot be read: {error}") from error

    def _passage(self, number: int, line: bytes) -> Passage:
        try:
            return _from_row(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise TaskError(
                f"{self.path}:{number} is not a passage: {detail}; wanted an object with id, title and text"
            ) from error

    def _folder(self) -> Iterator[Passage]:
        for file in self._files:
            name = file.relative_to(self.path).as_posix()
            try:
                sections = documents.sections(file)
            except documents.UnreadableError as error:
                self.skipped[name] = str(error)
                sections = []
            for index, one in enumerate(sections):
                links = tuple(documents.target(name, link) for link in one.links)
                yield Passage(id=f"{name}#{index + 1}" if index else name, title=one.title, text=one.text, links=links)
            self.position += file.stat().st_size


def _from_row(row: Any) -> Passage:
    """Return the passage of a row: our own form, BEIR's (`_id`), or Search-R1's (`contents`)."""
    if not isinstance(row, dict):
        raise TypeError(f"found {type(row).__name__}")
    found: dict[str, Any] = {"id": row.get("id", row.get("_id"))}
    if isinstance(found["id"], int):
        found["id"] = str(found["id"])
    if "text" not in row and isinstance(row.get("contents"), str):
        found["title"], found["text"] = split_contents(row["contents"])
    else:
        found |= {"title": row.get("title") or "", "text": row.get("text"), "links": row.get("links", ())}
    return Passage.model_validate(found)


def split_contents(contents: str) -> tuple[str, str]:
    r"""Return the title and the text of Search-R1's one field.

    >>> split_contents('"Lima"\nThe capital of Peru.')
    ('Lima', 'The capital of Peru.')
    """
    title, _, text = contents.partition("\n")
    return title.strip().strip('"'), text


def digest_of(passage: Passage) -> bytes:
    """Return what stands for one passage in the hash of a corpus."""
    fields = [passage.id, passage.title, passage.text, list(passage.links)]
    return hashlib.sha256(json.dumps(fields, ensure_ascii=False).encode()).digest()
