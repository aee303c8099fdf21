"""What travels between a server of environments and its clients."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from agentgym.types import Message, Record, ToolCall, Verdict

MAX_TEXT = 1 << 20


class Asked(BaseModel):
    """A call that an action asks for."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=256)]
    arguments: dict[str, JsonValue] = {}
    id: Annotated[str, Field(max_length=256)] = ""


class Action(BaseModel):
    """One assistant message: text in which calls may be written, or calls beside it."""

    model_config = ConfigDict(extra="forbid")

    content: Annotated[str, Field(max_length=MAX_TEXT)] = ""
    tool_calls: Annotated[tuple[Asked, ...], Field(max_length=256)] = ()
    call_format: str | None = None
    metadata: dict[str, JsonValue] = {}
    """Ignored; OpenEnv's actions carry it."""

    def message(self) -> Message:
        """Return the message that an environment takes."""
        calls = tuple(ToolCall(name=one.name, arguments=one.arguments, id=one.id) for one in self.tool_calls)
        return Message(role="assistant", content=self.content, tool_calls=calls, call_format=self.call_format)


class Reset(BaseModel):
    """How an episode begins. Unknown fields are refused, for one that is ignored would be a knob without effect."""

    model_config = ConfigDict(extra="forbid")

    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    task: Annotated[str, Field(max_length=4096)] | None = None
    """A task's id; without one the seed picks."""
    hint: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    episode_id: Annotated[str, Field(max_length=255)] | None = None
    """The client's name for the episode; kept in the state."""


class Seen(Record):
    """What a reset or a step shows, in OpenEnv's shape: what belongs together, `reward`, `done`."""

    observation: dict[str, Any]
    """`messages`, and `info`; at a reset also `tools`."""
    reward: float | None = None
    done: bool = False


class Begun(Seen):
    """The first observation of a new session, and its id."""

    session_id: str


class State(Record):
    """What a client may know of its session."""

    session_id: str
    episode_id: str | None = None
    task_id: str | None = None
    step_count: Annotated[int, Field(ge=0)] = 0
    done: bool = False


class Health(Record):
    """The server lives."""

    status: Literal["healthy"] = "healthy"


class Metadata(Record):
    """What is served."""

    name: str
    description: str


class Schemas(Record):
    """JSON schemas, as OpenEnv's clients ask for them."""

    action: dict[str, JsonValue]
    observation: dict[str, JsonValue]
    state: dict[str, JsonValue]


class Problem(Record):
    """Why something was not done."""

    detail: str
    """One sentence."""
    error: str
    """The name of the error."""


def seen(messages: tuple[Message, ...], info: dict[str, Any], reward: float | None, ended: tuple[bool, bool]) -> Seen:
    """Return what a client is shown. Nothing but messages and `info` leaves the server."""
    told = {**info, "terminated": ended[0], "truncated": ended[1]}
    verdict = told.get("verdict")
    if isinstance(verdict, Verdict):
        told["verdict"] = verdict.model_dump(mode="json")
    tools = told.pop("tools", None)
    observation: dict[str, Any] = {"messages": [one.model_dump(mode="json") for one in messages], "info": told}
    if tools is not None:
        observation["tools"] = tools
    return Seen(observation=observation, reward=reward, done=any(ended))
