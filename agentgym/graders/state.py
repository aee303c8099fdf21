"""Judge by the state in which the agent left its world: JSON, files or an SQLite database, compared by meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, ValidationError, model_validator

from agentgym.errors import VerifierError
from agentgym.graders.function import clean
from agentgym.graders.patches import PatchError
from agentgym.graders.state_forms import Equality, Form, differences, form, semantic_hash
from agentgym.graders.state_sqlite import decode, read_database, read_script
from agentgym.sandbox import SandboxBackend, SandboxSpec
from agentgym.task import Task
from agentgym.types import Record, Submission, Trust, Verdict

_SHOWN = 5
_NAME = re.compile(r"\w[\w.-]{0,80}")


class Part(Record):
    """One part of the world, handed in as `submission.data[name]`.

    `json`: any value. `files`: texts by path. `sqlite`: a database as base64; its states here are SQL scripts, and it
    is compared as rows by table.
    """

    kind: Literal["json", "files", "sqlite"]
    gold: JsonValue = None
    """The wanted state; not needed where `gold_hash` is given, and then feedback cannot say what differs."""
    gold_hash: str | None = None
    """The `semantic_hash` of the wanted state."""
    start: JsonValue = None
    """The state before the agent did anything."""
    start_hash: str | None = None
    equality: Equality = Equality()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for name in ("gold", "start"):
            given = name in self.model_fields_set
            if given and getattr(self, f"{name}_hash") is not None:
                raise ValueError(f"wanted one of {name} and {name}_hash, found both")
            if given and self.kind != "json":
                value = getattr(self, name)
                texts = isinstance(value, dict) and all(isinstance(one, str) for one in value.values())
                if not (texts if self.kind == "files" else isinstance(value, str)):
                    raise ValueError(f"wanted {name} as {'texts by path' if self.kind == 'files' else 'an SQL script'}")
        if "gold" not in self.model_fields_set and self.gold_hash is None:
            raise ValueError("wanted gold or gold_hash, found neither")
        return self


class StateSpec(Record):
    """What the grader needs, kept in `hidden.data`."""

    parts: Annotated[dict[str, Part], Field(min_length=1)]
    communicate: tuple[str, ...] = ()
    """What the answer must say, as whole words, whatever the case."""
    answer_chars: Annotated[int, Field(ge=1)] = 2000
    """A longer answer says nothing: it might list everything."""

    @model_validator(mode="after")
    def _sayable(self) -> Self:
        for one in self.communicate:
            if not _words(one):
                raise ValueError(f"wanted words in communicate, found {one!r}")
        return self


@dataclass(frozen=True, slots=True)
class _State:
    """A canonical form, or only its hash."""

    form: Form | None
    hash: str


class StateGrader:
    """Compares what the agent left with the wanted state, on this side; databases are read in sandboxes.

    The value is 1 only if every part is as wanted and everything to communicate was said. A task that doing nothing
    would solve is refused.
    """

    trust = Trust.RPC
    levels = ("no_submission", "empty", "malformed", "unchanged", "failed", "passed")

    def check(self, task: Task) -> None:
        """Refuse a task that could not be judged, or that doing nothing would solve.

        Raises:
            VerifierError: the task is malformed, or idle.
        """
        spec = read_spec(task)
        gold = {name: _told(part, "gold") for name, part in spec.parts.items()}
        _refuse_idle(task, spec, gold, {name: _told(part, "start") for name, part in spec.parts.items()})

    def grade(self, task: Task, submission: Submission, sandboxes: SandboxBackend) -> Verdict:
        """Return the verdict on a state export.

        Raises:
            SandboxError: the machinery failed; the submission is not to blame.
            VerifierError: the task is malformed, or solved by doing nothing.
        """
        spec = read_spec(task)
        box = clean(task.sandbox)
        gold = {name: _own(part, "gold", box, sandboxes) for name, part in spec.parts.items()}
        start = {name: _own(part, "start", box, sandboxes) for name, part in spec.parts.items()}
        _refuse_idle(task, spec, gold, start)
        if submission.empty:
            return _verdict("empty", "nothing was submitted")
        try:
            found = {name: _found(name, part, submission, box, sandboxes) for name, part in spec.parts.items()}
        except PatchError as error:
            return _verdict("malformed", str(error))
        right = [gold[name] is not None and one.hash == gold[name].hash for name, one in found.items()]  # type: ignore[union-attr]
        said = [_says(submission.answer or "", one, spec.answer_chars) for one in spec.communicate]
        components: dict[str, float | None] = {"state": sum(right) / len(right)}
        if said:
            components["said"] = sum(said) / len(said)
        if all(right) and all(said):
            return _verdict("passed", "", components)
        if not all(right) and all(one.hash == _hash(start[name]) for name, one in found.items()):
            return _verdict("unchanged", "nothing has changed", components)
        parts = [one for name in found for one in _explain(name, gold[name], found[name], start[name])]
        more = [f"and {len(parts) - _SHOWN} more"] if len(parts) > _SHOWN else []
        unsaid = [f"{said.count(False)} of {len(said)} things to tell were not told"] if not all(said) else []
        return _verdict("failed", "; ".join([*parts[:_SHOWN], *more, *unsaid]), components)


def read_spec(task: Task) -> StateSpec:
    """Read what a state task's grader needs.

    Raises:
        VerifierError: the task is malformed.
    """
    try:
        spec = StateSpec.model_validate(task.hidden.data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VerifierError(f"the state task {task.id!r} is malformed: {where}: {first['msg']}") from error
    for name in spec.parts:
        if not _NAME.fullmatch(name):
            raise VerifierError(f"the state task {task.id!r} names a part {name!r}; wanted letters and digits")
    return spec


def _refuse_idle(
    task: Task, spec: StateSpec, gold: Mapping[str, _State | None], start: Mapping[str, _State | None]
) -> None:
    if spec.communicate:
        return
    if any(one is None for one in start.values()):
        raise VerifierError(
            f"nothing shows that the state task {task.id!r} asks for anything; add start or start_hash, or communicate"
        )
    if all(_hash(gold[name]) == _hash(start[name]) for name in spec.parts):
        raise VerifierError(
            f"doing nothing would solve the state task {task.id!r}: the wanted state is the start; add communicate"
        )


def _own(part: Part, name: str, box: SandboxSpec, sandboxes: SandboxBackend) -> _State | None:
    """Return a state that the task gives, or None."""
    if (known := getattr(part, f"{name}_hash")) is not None:
        return _State(None, known)
    if name not in part.model_fields_set:
        return None
    value: Any = getattr(part, name)
    if part.kind == "sqlite":
        with sandboxes.start(box) as reader:
            value = read_script(reader, value)
    return _state(value, part)


def _told(part: Part, name: str) -> _State | None:
    """Return a state as the task tells it; of a database this is its script, which is not run."""
    if (known := getattr(part, f"{name}_hash")) is not None:
        return _State(None, known)
    return _state(getattr(part, name), part) if name in part.model_fields_set else None


def _found(name: str, part: Part, submission: Submission, box: SandboxSpec, sandboxes: SandboxBackend) -> _State:
    if name not in submission.data and not (part.kind == "files" and submission.files):
        raise PatchError(f"wanted the state of {name!r}, found {', '.join(submission.data) or 'nothing'}"[:300])
    value: Any = submission.data.get(name, dict(submission.files))
    if part.kind == "files" and not (isinstance(value, dict) and all(isinstance(one, str) for one in value.values())):
        raise PatchError(f"wanted {name!r} as texts by path")
    if part.kind == "sqlite":
        data = decode(value)
        with sandboxes.start(box) as reader:
            value = read_database(reader, data)
    try:
        return _state(value, part)
    except RecursionError as error:
        raise PatchError(f"{name!r} is nested too deeply") from error


def _state(value: Any, part: Part) -> _State:
    found = form(value, part.equality)
    return _State(found, semantic_hash(found))


def _hash(state: _State | None) -> str | None:
    return None if state is None else state.hash


def _explain(name: str, gold: _State | None, found: _State, start: _State | None) -> list[str]:
    if gold is None or gold.hash == found.hash:
        return []
    if gold.form is None:
        return [f"{name} is not as it should be"]
    known = frozenset(_names(start.form)) if start is not None and start.form is not None else frozenset()
    return [f"{name}: {one[:160]}" for one in differences(gold.form, found.form, known)]


def _names(one: Form) -> set[str]:
    if one[0] == "o":
        return {name for name, _ in one[1]}.union(*(_names(value) for _, value in one[1]))
    return set().union(*map(_names, one[1])) if one[0] in "lm" else set()


def _words(text: str) -> list[str]:
    """Split a text into words and numbers, without the commas inside numbers."""
    return re.findall(r"(?<!\w)-\d+(?:\.\d+)?|\w+(?:\.\d+)?", re.sub(r"(?<=\d),(?=\d{3})", "", text.casefold()))


def _says(answer: str, wanted: str, limit: int) -> bool:
    if len(answer) > limit:
        return False
    words, need = _words(answer), _words(wanted)
    return any(words[at : at + len(need)] == need for at in range(len(words) - len(need) + 1))


def _verdict(level: str, feedback: str, components: dict[str, float | None] | None = None) -> Verdict:
    value = 1.0 if level == "passed" else 0.0
    return Verdict(value=value, level=level, trust=Trust.RPC, components=components or {}, feedback=feedback)
