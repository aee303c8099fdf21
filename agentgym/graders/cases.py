"""What function tasks are made of: calls of the submission, and what each must give."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, JsonValue, ValidationError, model_validator

from agentgym.errors import VerifierError
from agentgym.graders.values import Comparison, Tree, encode, encode_literal
from agentgym.task import Public, Task
from agentgym.types import Record


class Case(Record):
    """One call, and what its value must be: exactly one of `expected`, `literal` and `check`.

    >>> Case(call="f(2)", expected=4).wanted
    ('i', 4)
    """

    call: str
    """An expression, evaluated where the submission's names are known."""
    expected: JsonValue = None
    """The value, where JSON can write it."""
    literal: str | None = None
    """The value as a Python literal, for tuples, sets, bytes and the like."""
    check: str | None = None
    """A condition on the value `_`, evaluated far from the submission."""

    @model_validator(mode="after")
    def _one_condition(self) -> Self:
        given = ("expected" in self.model_fields_set) + (self.literal is not None) + (self.check is not None)
        if given != 1:
            raise ValueError(f"wanted one of expected, literal and check for {self.call!r}, found {given}")
        if self.literal is not None:
            encode_literal(self.literal)
        return self

    @property
    def wanted(self) -> Tree | None:
        """The value to compare with; None if `check` decides."""
        if self.check is not None:
            return None
        return encode(self.expected) if self.literal is None else encode_literal(self.literal)


class Shared(Record):
    """How a task's calls are made and judged; the agent may know all of it. Kept in `public.data`."""

    examples: tuple[Case, ...] = ()
    """The cases that the agent may see and run."""
    entry: tuple[str, ...] = ()
    """Names that the submission must define."""
    setup: str = ""
    """Source executed before the submission, such as the imports that it may rely on."""
    comparison: Comparison = Comparison()
    case_s: Annotated[float, Field(gt=0, le=600)] = 2.0
    """Seconds that one call may take, the loading of the submission included."""
    total_s: Annotated[float, Field(gt=0, le=3600)] = 6.0
    """Seconds that all calls together may take."""


class FunctionSpec(Record):
    """A function task as its grader sees it."""

    shared: Shared
    hidden: tuple[Case, ...]
    """The cases that decide beside the examples."""
    check_setup: str = ""
    """Source executed before conditions are evaluated."""

    @property
    def cases(self) -> tuple[Case, ...]:
        """Every case, the examples first."""
        return self.shared.examples + self.hidden


def shared_part(public: Public) -> Shared:
    """Read the part that the agent may know."""
    known: dict[str, Any] = {name: one for name, one in public.data.items() if name in Shared.model_fields}
    return Shared.model_validate(known)


def read_spec(task: Task) -> FunctionSpec:
    """Read what a function task's grader needs: `public.data` as `Shared`, `hidden.data` as `cases` and `check_setup`.

    Raises:
        VerifierError: the task is malformed, or no hidden case decides it.
    """
    data = task.hidden.data
    try:
        spec = FunctionSpec.model_validate(
            {
                "shared": shared_part(task.public),
                "hidden": data.get("cases", ()),
                "check_setup": data.get("check_setup", ""),
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VerifierError(f"the function task {task.id!r} is malformed: {where}: {first['msg']}") from error
    if not spec.hidden:
        raise VerifierError(f"the function task {task.id!r} has no hidden cases; put them in hidden.data['cases']")
    return spec
