"""What only the grader knows of a question: its answer, and the facts that lead there."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from agentgym.errors import VerifierError
from agentgym.task import Task
from agentgym.types import Record


class Fact(Record):
    """One single-hop fact: where it is told, what it reveals, and which other facts are needed to ask for it."""

    documents: Annotated[tuple[str, ...], Field(min_length=1)]
    """The ids of passages that tell it; one of them is enough."""
    reveals: str = ""
    """The entity that it reveals, if that is known."""
    uses: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """The places of earlier facts whose entities it speaks of."""


class Gold(Record):
    """The hidden data of a search task."""

    golds: Annotated[tuple[str, ...], Field(min_length=1)]
    facts: tuple[Fact, ...] = ()

    @model_validator(mode="after")
    def _uses_earlier(self) -> Self:
        for place, fact in enumerate(self.facts):
            if any(used >= place for used in fact.uses):
                raise ValueError(f"the fact {place} uses one that is not before it")
        return self

    @property
    def documents(self) -> frozenset[str]:
        """The gold documents."""
        return frozenset(name for fact in self.facts for name in fact.documents)


def read_gold(task: Task) -> Gold:
    """Return a task's hidden data.

    Raises:
        VerifierError: it is malformed.
    """
    try:
        return Gold.model_validate(task.hidden.data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VerifierError(f"the search task {task.id!r} is malformed: {where}: {first['msg']}") from error
