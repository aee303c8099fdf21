"""What program tasks are made of: inputs of a program, and what it must print for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator

from agentgym.errors import AgentgymError, VerifierError
from agentgym.graders import languages
from agentgym.graders.languages import Language
from agentgym.graders.stdio_output import Output
from agentgym.task import Public, Task
from agentgym.types import Record

_Model = TypeVar("_Model", bound=Record)


class StdioCase(Record):
    """One run of the program."""

    stdin: str = ""
    args: tuple[str, ...] = ()
    stdout: str
    """What it must print; with a checker, one of the outputs that the checker accepts."""


class StdioShared(Record):
    """How a task's programs are built and run; the agent may know all of it. Kept in `public.data`.

    The memory that one run may take is the task's `sandbox.memory_mb`.
    """

    languages: Annotated[tuple[Language, ...], Field(min_length=1)]
    """The languages that the task allows, each by its name or described; the file's extension chooses."""
    examples: tuple[StdioCase, ...] = ()
    """The cases that the agent may see and run."""
    output: Output | None = None
    """How outputs are compared; None if a checker does."""
    build_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    """Seconds that building may take."""
    cpu_s: Annotated[int, Field(ge=1, le=600)] = 2
    """Seconds of a processor that one run may take, in each of its processes; the kernel counts whole seconds."""
    case_s: Annotated[float, Field(gt=0, le=600)] = 8.0
    """Seconds on the clock that one run may take; longer than `cpu_s`, for machines where many episodes run."""
    total_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Seconds on the clock that all runs together may take; those that find no time left fail."""
    output_kb: Annotated[int, Field(ge=1, le=65536)] = 1024
    """What one run may print, in units of 1024 bytes."""

    @field_validator("languages", mode="before")
    @classmethod
    def _read_languages(cls, given: Any) -> Any:
        try:
            return [languages.read(one) for one in given] if isinstance(given, list | tuple) else given
        except AgentgymError as error:
            raise ValueError(str(error)) from error

    @field_validator("languages")
    @classmethod
    def _one_per_extension(cls, given: tuple[Language, ...]) -> tuple[Language, ...]:
        endings = [one.extension for one in given]
        twice = next((one for one in endings if endings.count(one) > 1), None)
        if twice is not None:
            raise ValueError(f"two languages claim the extension {twice!r}; wanted one, so that a file tells its own")
        return given


class StdioSpec(Record):
    """A program task as its grader sees it."""

    shared: StdioShared
    hidden: tuple[StdioCase, ...]
    """The cases that decide beside the examples."""
    checker: str | None = None
    """Python source that defines `check(stdin, wanted, found) -> bool`, for outputs that are right in many ways."""

    @model_validator(mode="after")
    def _can_tell_right_from_wrong(self) -> Self:
        if not self.hidden:
            raise ValueError("no hidden cases; put them in hidden.data['cases']")
        if (self.checker is None) == (self.shared.output is None):
            found = "neither" if self.checker is None else "both"
            raise ValueError(f"wanted either public.data['output'] or hidden.data['checker'], found {found}")
        if not any(case.stdout.strip() for case in self.cases):
            raise ValueError("every case wants an empty output, so a program that does nothing would pass")
        return self

    @property
    def cases(self) -> tuple[StdioCase, ...]:
        """Every case, the examples first."""
        return self.shared.examples + self.hidden


def shared_part(public: Public) -> StdioShared:
    """Read the part that the agent may know.

    Raises:
        VerifierError: it is malformed.
    """
    return _read(StdioShared, {name: one for name, one in public.data.items() if name in StdioShared.model_fields})


def read_spec(task: Task) -> StdioSpec:
    """Read what a program task's grader needs: `public.data` as `StdioShared`, `hidden.data` as `cases` and `checker`.

    Raises:
        VerifierError: the task is malformed, or nothing hidden decides it.
    """
    data = task.hidden.data
    try:
        unknown = next((name for name in data if name not in ("cases", "checker")), None)
        if unknown is not None:
            raise VerifierError(f"wanted cases and checker in hidden.data, found {unknown!r}")
        shared = shared_part(task.public)
        return _read(StdioSpec, {"shared": shared, "hidden": data.get("cases", ()), "checker": data.get("checker")})
    except VerifierError as error:
        raise VerifierError(f"the program task {task.id!r} is malformed: {error}") from error


def _read(model: type[_Model], data: Mapping[str, Any]) -> _Model:
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VerifierError(f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}") from error
