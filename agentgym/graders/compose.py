"""Graders made of graders: every part's value stays in the verdict, and an unscored part never becomes a zero."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, JsonValue, ValidationError

from agentgym import registry
from agentgym.errors import AgentgymError, InfrastructureError, VerifierError
from agentgym.sandbox import SandboxBackend
from agentgym.task import Hidden, Task
from agentgym.types import Record, Submission, Trust, Verdict

_HARDEST_FIRST = tuple(Trust)
_MAX_FEEDBACK = 3


class Component(Record):
    """One part: a grader, what only it may know, and which part of the submission it judges."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")]
    grader: str
    hidden: dict[str, JsonValue] = {}
    """What this grader reads as `hidden.data`. Its `public.data` is `public.data["components"][name]` if there is one,
    else the task's."""
    takes: Literal["all", "answer", "files", "data"] = "all"
    """Which part of the submission it sees."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """For `weighted`, and there for every part."""
    decides: Literal["passed", "failed", "always"] | None = None
    """For `first`, and there for every part: the values that settle the matter, 1, all below 1, or every value."""


class Components(Record):
    """What a composite reads from `hidden.data`."""

    components: Annotated[tuple[Component, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True)
class _Ran:
    component: Component
    verdict: Verdict
    fault: AgentgymError | None = None


class _Composite(ABC):
    """Runs its parts in order; a subclass says what their values make."""

    levels = ("no_submission", "failed", "partial", "passed")
    mode: ClassVar[str]
    wants: ClassVar[Literal["weight", "decides"] | None] = None

    def check(self, task: Task) -> None:
        """Refuse a malformed task, or one of which a part is malformed.

        Raises:
            VerifierError: saying what is malformed.
            UnknownNameError: there is no such grader.
        """
        for one in self._read(task):
            inner = getattr(registry.create("graders", one.grader), "check", None)
            if inner is not None:
                inner(part_of(task, one))

    def grade(self, task: Task, submission: Submission, sandboxes: SandboxBackend) -> Verdict:
        """Return the verdict that the parts' verdicts make.

        It is as hard to fake as the weakest part that could decide it.

        Raises:
            InfrastructureError, VerifierError: a part failed, and the others do not decide without it.
        """
        self.check(task)
        ran: list[_Ran] = []
        for one in self._read(task):
            ran.append(_run(one, task, submission, sandboxes))
            if self.settled(ran[-1].component, ran[-1].verdict.value):
                break
        value = self.combine([one.component for one in ran], [one.verdict.value for one in ran])
        faults = [one.fault for one in ran if one.fault is not None]
        if value is None and faults:
            raise next((one for one in faults if isinstance(one, InfrastructureError)), faults[0])
        return _verdict(value, ran)

    @abstractmethod
    def combine(self, components: Sequence[Component], values: Sequence[float | None]) -> float | None:
        """Return what values make; None unless it is the same whatever stands for each None."""

    def settled(self, component: Component, value: float | None) -> bool:  # noqa: ARG002 -- for `first`
        """Whether the parts that follow need not run."""
        return False

    def _read(self, task: Task) -> tuple[Component, ...]:
        try:
            components = Components.model_validate(task.hidden.data).components
            self._refuse(components)
        except (ValidationError, ValueError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else None
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else error
            raise VerifierError(f"the task {task.id!r} of the grader {self.mode!r} is malformed: {reason}") from error
        return components

    def _refuse(self, components: Sequence[Component]) -> None:
        names = [one.name for one in components]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two components are called {twice!r}; give each a name of its own")
        for one in components:
            for field in ("weight", "decides"):
                if (getattr(one, field) is not None) != (field == self.wants):
                    wanted = f"a {field}" if field == self.wants else f"no {field}"
                    raise ValueError(f"wanted {wanted} for the component {one.name!r}")


class WeightedGrader(_Composite):
    """The weighted mean of all parts."""

    mode = "weighted"
    wants = "weight"

    def combine(self, components: Sequence[Component], values: Sequence[float | None]) -> float | None:
        """Return the mean; an unscored part leaves it open."""
        if any(value is None for value in values):
            return None
        known = cast(Sequence[float], values)
        if len(set(known)) == 1:
            return known[0]
        weights = [one.weight or 0.0 for one in components]
        mean = math.fsum(w * v for w, v in zip(weights, known, strict=True)) / math.fsum(weights)
        return min(max(mean, math.nextafter(0.0, 1.0)), math.nextafter(1.0, 0.0))  # rounding makes nothing perfect


class AllGrader(_Composite):
    """The worst part: passed if every part is."""

    mode = "all"

    def combine(self, components: Sequence[Component], values: Sequence[float | None]) -> float | None:  # noqa: ARG002
        """Return the least value; an unscored part leaves it open, unless another is 0."""
        known = [value for value in values if value is not None]
        return min(known) if len(known) == len(values) or 0.0 in known else None


class AnyGrader(_Composite):
    """The best part: passed if some part is."""

    mode = "any"

    def combine(self, components: Sequence[Component], values: Sequence[float | None]) -> float | None:  # noqa: ARG002
        """Return the greatest value; an unscored part leaves it open, unless another is 1."""
        known = [value for value in values if value is not None]
        return max(known) if len(known) == len(values) or 1.0 in known else None


class FirstGrader(_Composite):
    """The first part that decides; those after it do not run, so a costly one stands last."""

    mode = "first"
    wants = "decides"

    def settled(self, component: Component, value: float | None) -> bool:
        """Whether this part has decided, or has left it open for good."""
        return component.decides != "passed" if value is None else _decides(component, value)

    def combine(self, components: Sequence[Component], values: Sequence[float | None]) -> float | None:
        """Return the first deciding value; an unscored part leaves it open, unless it could only have agreed."""
        if not values:
            return None
        if values[0] is not None and _decides(components[0], values[0]):
            return values[0]
        rest = self.combine(components[1:], values[1:])
        agrees = values[0] is not None or (components[0].decides == "passed" and rest == 1.0)
        return rest if agrees else None

    def _refuse(self, components: Sequence[Component]) -> None:
        super()._refuse(components)
        *before, last = components
        early = next((one.name for one in before if one.decides == "always"), None)
        if early is not None:
            raise ValueError(f"{early!r} always decides, so nothing after it would ever run; put it last")
        if last.decides != "always":
            raise ValueError(f"wanted decides: always for the last component {last.name!r}, so that there is a verdict")


def part_of(task: Task, component: Component) -> Task:
    """Return the task as one part's grader sees it."""
    known = task.public.data.get("components", {})
    data: Any = known.get(component.name, task.public.data) if isinstance(known, dict) else task.public.data
    if not isinstance(data, dict):
        raise VerifierError(f"wanted an object at public.data['components'][{component.name!r}] of task {task.id!r}")
    public = task.public.model_copy(update={"data": data})
    return task.model_copy(update={"public": public, "hidden": Hidden(data=component.hidden), "grader": None})


def _run(component: Component, task: Task, submission: Submission, sandboxes: SandboxBackend) -> _Ran:
    seen = submission
    if component.takes != "all":
        seen = Submission.model_validate({component.takes: getattr(submission, component.takes)})
    grader = registry.create("graders", component.grader)
    try:
        return _Ran(component, grader.grade(part_of(task, component), seen, sandboxes))
    except (InfrastructureError, VerifierError) as fault:
        # Kept, not raised: the other parts may decide without this one.
        trust = getattr(grader, "trust", _HARDEST_FIRST[-1])
        error = f"{type(fault).__name__}: {fault}"
        return _Ran(component, Verdict(value=None, level="unscored", trust=trust, error=error), fault)


def _decides(component: Component, value: float) -> bool:
    return component.decides == "always" or (component.decides == "passed") == (value == 1.0)


def _verdict(value: float | None, ran: Sequence[_Ran]) -> Verdict:
    components: dict[str, float | None] = {}
    for one in ran:
        components[one.component.name] = one.verdict.value
        components |= {f"{one.component.name}.{name}": part for name, part in one.verdict.components.items()}
    level = "unscored" if value is None else "passed" if value == 1.0 else "failed" if value == 0.0 else "partial"
    said = [(one.component.name, one.verdict.feedback) for one in ran if not one.verdict.passed]
    lines = [f"{name}: {feedback}" for name, feedback in said if feedback] if value != 1.0 else []
    errors = [f"{one.component.name}: {one.verdict.error}" for one in ran if one.verdict.error]
    return Verdict(
        value=value,
        level=level,
        trust=max((one.verdict.trust for one in ran), key=_HARDEST_FIRST.index),
        components=components,
        feedback="\n".join(lines[:_MAX_FEEDBACK]),
        error="; ".join(errors) or "a component is unscored" if value is None else None,
    )
