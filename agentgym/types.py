"""The records that flow from a rollout to a gradient; each is written once and read by everyone after."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, field_validator

from agentgym.errors import HeldOutError, VerifierError
from agentgym.tokens import TokenBuffer

Split = Literal["train", "validation", "test"]
Role = Literal["system", "user", "assistant", "tool"]


class Record(BaseModel):
    """Base of the frozen records: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


Text = Annotated[str, AfterValidator(_encodable)]
"""Without lone surrogates, which can be neither tokenised, sent nor stored: one in an agent's file name, or in the name
of a tool that a model made up, must not void an episode."""


class ToolCall(Record):
    """One call that the assistant asks for."""

    name: Text
    arguments: dict[str, JsonValue] = {}
    id: Text = ""
    problem: Text = ""
    """Why its arguments could not be read, if so: told to the assistant in place of a result."""


class Message(Record):
    """One chat message, in the OpenAI shape."""

    role: Role
    content: Text = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    guidance: Text = ""
    """Hint text shown after `content`, tokenised apart, so that the train context can leave it out exactly."""
    call_format: str | None = None
    """How `content` writes tool calls, one of `toolcalls.FORMATS`; None where its author is not known for one way."""

    def openai(self) -> dict[str, Any]:
        """Return the dictionary that OpenAI-compatible endpoints and chat templates take."""
        shape: dict[str, Any] = {"role": self.role, "content": self.content + self.guidance}
        if self.tool_calls:
            shape["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
                }
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            shape["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            shape["name"] = self.name
        return shape


class Signal(Record):
    """A named raw measurement of a turn or an episode: a fact, not the training reward."""

    name: str
    value: Annotated[float, Field(allow_inf_nan=False)]


class Submission(Record):
    """What the agent hands in, as data: an answer, files, a diff, or a state export."""

    answer: str | None = None
    files: dict[str, str] = {}
    data: dict[str, JsonValue] = {}

    @property
    def empty(self) -> bool:
        """Whether nothing was handed in."""
        return (
            not (self.answer or "").strip() and not any(text.strip() for text in self.files.values()) and not self.data
        )


class Trust(StrEnum):
    """How hard a verdict is to fake, hardest first."""

    RPC = "rpc"
    """The judged code answers questions out of process and never holds what is expected."""
    TWINS = "twins"
    """Tests run beside must-fail twins, so that a framework that always agrees is caught."""
    SEPARATE = "separate"
    """Tests run in a fresh sandbox, in the same process as the judged code."""
    SHARED = "shared"
    """Tests run where the agent worked."""
    OPINION = "opinion"
    """A model was asked about a text that the agent wrote, and can be talked into much."""


class Noise(Record):
    """What was done to a verdict to study training under imperfect graders; never part of an evaluation."""

    rho0: float
    """The rate at which wrong answers are accepted."""
    rho1: float
    """The rate at which right answers are rejected."""
    flipped: bool
    clean_value: float
    """What the grader really said."""
    clean_level: str


class Verdict(Record):
    """What a grader says of a submission. `value` None means unscored, and never becomes 0."""

    value: float | None
    level: str
    """The rung of the outcome ladder, such as `no_submission`, `failed`, `passed`; each task family names its own."""
    trust: Trust
    components: dict[str, float | None] = {}
    feedback: str = ""
    """Short text that is safe to show to the agent: hidden cases are never quoted."""
    error: str | None = None
    """Why it is unscored."""
    grader: str | None = None
    """Who judged: a registered grader's name, or `grade` for the environment's own; None where nothing was judged."""
    noise: Noise | None = None
    """Set where noise was injected, whether or not it flipped this verdict."""
    appeal: float | None = None
    """What a trusted grader said of the same submission; None where it was not asked or could not tell."""

    @field_validator("value")
    @classmethod
    def _in_range(cls, value: float | None) -> float | None:
        if value is not None and not (math.isfinite(value) and 0.0 <= value <= 1.0):
            raise VerifierError(f"wanted a verdict between 0 and 1, or None for unscored; found {value!r}")
        return value

    @property
    def passed(self) -> bool:
        """Whether the submission is entirely right."""
        return self.value == 1.0


@dataclass(slots=True)
class Turn:
    """One assistant message and the observation it caused."""

    action: Message
    observation: tuple[Message, ...]
    signals: tuple[Signal, ...] = ()
    stop_reason: str = "stop"
    """Why generation ended: `stop`, `length`, or `abort`."""
    weight_version: int = 0
    seconds: float = 0.0

    def signal(self, name: str, default: float = 0.0) -> float:
        """Return the last value of a named signal in this turn."""
        return next((one.value for one in reversed(self.signals) if one.name == name), default)


EndReason = Literal[
    "submitted", "turns", "tokens", "time", "context", "agent_fault", "error", "cancelled", "infrastructure", "verifier"
]


@dataclass(slots=True)
class Trajectory:
    """Everything about one episode.

    Created by the rollout, completed by the grader, priced by the reward scheme, and never rewritten.
    """

    task_id: str
    split: Split
    prompt: tuple[Message, ...]
    turns: list[Turn]
    verdict: Verdict | None = None
    tokens: TokenBuffer | None = None
    end: EndReason = "submitted"
    seed: int = 0
    attempt: int = 0
    """Index within the group, 0..G-1."""
    hint: str | None = None
    """The guidance shown, if any."""
    off_policy: Literal["none", "true", "shaped", "reset"] = "none"
    """How the loss treats the ratio of a hinted attempt that is trained in its bare context."""
    error: str | None = None
    seconds: float = 0.0
    extra: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def scored(self) -> bool:
        """Whether the verdict has a value; unscored attempts stay out of losses and group statistics."""
        return self.verdict is not None and self.verdict.value is not None

    @property
    def passed(self) -> bool:
        """Whether the attempt is entirely right."""
        return self.verdict is not None and self.verdict.passed

    def training_tokens(self) -> TokenBuffer:
        """Return the train context of this trajectory. This is the only door into a loss.

        Raises:
            HeldOutError: if the task is not in the train split.
            ValueError: if the trajectory was produced without token ids.
        """
        if self.split != "train":
            raise HeldOutError(
                f"task {self.task_id!r} belongs to the {self.split!r} split and cannot be trained on; "
                "train on tasks whose split is 'train'"
            )
        if self.tokens is None:
            raise ValueError(f"the trajectory of task {self.task_id!r} has no token ids: its engine speaks text only")
        return self.tokens.without_guidance()


@dataclass(slots=True)
class Group:
    """G trajectories of one task, and what became of them."""

    task_id: str
    trajectories: list[Trajectory]
    guided: bool = False
    cut: int = 0
    """Spare attempts that were cancelled or left out because enough others had ended before them."""
    replaced: list[Trajectory] = field(default_factory=list)
    """Attempts that ended and are not trained, because spare or hinted ones stand in for them."""

    @property
    def ended(self) -> list[Trajectory]:
        """All attempts that ended, trained or replaced: what machines lost is a share of these."""
        return [*self.trajectories, *self.replaced]

    @property
    def unaided(self) -> list[Trajectory]:
        """Those of them that saw no hint: what the policy can do by itself."""
        return [one for one in self.ended if one.hint is None]

    @property
    def scored(self) -> list[Trajectory]:
        """The attempts that count."""
        return [one for one in self.trajectories if one.scored]

    @property
    def solved(self) -> bool:
        """Whether any attempt passed."""
        return any(one.passed for one in self.trajectories)


def count_by_end(trajectories: Iterable[Trajectory]) -> dict[str, int]:
    """Count how episodes ended."""
    counts: dict[str, int] = {}
    for one in trajectories:
        counts[one.end] = counts.get(one.end, 0) + 1
    return counts


def pass_rate(trajectories: Sequence[Trajectory]) -> float:
    """Return the share of scored attempts that passed; NaN if none was scored."""
    scored = [one for one in trajectories if one.scored]
    return sum(one.passed for one in scored) / len(scored) if scored else math.nan
