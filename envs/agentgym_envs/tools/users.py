"""Whom the agent talks to: scripted from the task by default, or a model behind an endpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Protocol

from pydantic import Field, ValidationError

from agentgym.errors import AgentgymError, InfrastructureError
from agentgym.graders.judge_client import Client, RefusedError
from agentgym.graders.judge_settings import EndpointSettings
from agentgym.types import Record

_END = "[END]"
_MAX_REPLY = 2000
_MAX_SAID = 8000
_CONTROL = ({"role": "user", "content": "Say hello."},)


class UserScript(Record):
    """What a user knows and wants; kept in `public.data["user"]`, for talking to the user may reveal all of it."""

    instruction: str
    """Who they are and what they want, addressed to them."""
    facts: dict[str, str] = {}
    """What they answer to a question in which one of these words occurs; words joined by | are alternatives."""
    confirm: str = "Yes, please go ahead."
    """What they answer to any other question."""
    wants: tuple[str, ...] = ()
    """What they hope to hear, for a persona."""
    patience: Annotated[int, Field(ge=1)] = 12
    """So many answers later they leave."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the user says; None means that they leave. `mood`, 0 to 1, only where somebody has one."""

    text: str | None
    mood: float | None = None


class User(Protocol):
    """One user in one conversation."""

    def reply(self, said: str) -> Reply:
        """Answer what the agent said."""
        ...


@dataclass(slots=True)
class ScriptedUser:
    """Answers questions from what the script knows, agrees to everything else, and leaves when nothing is asked.

    >>> user = ScriptedUser(UserScript(instruction="…", facts={"zip": "It is 80218."}))
    >>> user.reply("What is your zip code?").text
    'It is 80218.'
    >>> user.reply("Done.").text is None
    True
    """

    script: UserScript
    answers: int = 0

    def reply(self, said: str) -> Reply:
        """Answer what the agent said."""
        self.answers += 1
        if "?" not in said or self.answers > self.script.patience or re.search(r"\banything else\b", said, re.I):
            return Reply(None)
        known = [
            answer for words, answer in self.script.facts.items() if re.search(rf"\b(?:{words})\b", said, re.IGNORECASE)
        ]
        return Reply(" ".join(dict.fromkeys(known)) or self.script.confirm)


@dataclass(slots=True)
class Persona:
    """A scripted user with a mood that can be verified: it rises with each hope that is met, and falls with the rest.

    After RLVER (Wang et al. 2025), where a simulated user's emotion is the reward; here the rule is plain, so the same
    words always move it the same way. Hopes are words to hear; each counts once.
    """

    user: ScriptedUser
    mood: float = 0.5
    heard: set[str] = field(default_factory=set)

    def reply(self, said: str) -> Reply:
        """Answer, in a mood."""
        wants = self.user.script.wants
        new = {one for one in wants if one not in self.heard and re.search(rf"\b{re.escape(one)}\b", said, re.I)}
        self.heard |= new
        moved = 0.5 * len(new) / len(wants) if new else -0.1
        self.mood = round(min(1.0, max(0.0, self.mood + moved)), 6)
        answer = self.user.reply(said).text
        return Reply(None if self.mood == 0.0 else answer, self.mood)


class ModelUser:
    """A model plays the user; it ends the conversation when it is content, or gives up."""

    def __init__(self, script: UserScript, opening: str, client: Client, seed: int) -> None:
        self._client = client
        self._seed = seed
        self._answers, self._patience = 0, script.patience
        system = (
            "You play a customer who writes to a support agent. Never say that you play, and do not do the agent's "
            "work. Tell only what the following says; invent nothing. Write one short message at a time. When your "
            f"matter is settled or hopeless, write {_END} and nothing else.\n\n{script.instruction}"
        )
        self._messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": "Hello, how can I help you?"},
            {"role": "assistant", "content": opening},
        ]

    def reply(self, said: str) -> Reply:
        """Ask the model; it leaves a conversation that its endpoint refuses, and hears only so much at once.

        Raises:
            InfrastructureError: the endpoint does not answer, or refuses even a greeting.
        """
        self._messages.append({"role": "user", "content": _cut(said)})
        self._answers += 1
        try:
            text = self._client.complete(self._messages, self._seed)[:_MAX_REPLY].strip()
        except RefusedError as error:
            self._require_working(error)
            return Reply(None)
        if not text or _END in text or self._answers > self._patience:
            return Reply(None)
        self._messages.append({"role": "assistant", "content": text})
        return Reply(text)

    def _require_working(self, refused: RefusedError) -> None:
        """Find out by a greeting whether the endpoint refuses what was said, or everything."""
        try:
            self._client.complete(_CONTROL, self._seed)
        except RefusedError:
            raise InfrastructureError(f"the user's endpoint refuses even a greeting: {refused}") from refused


def _cut(said: str) -> str:
    if len(said) <= _MAX_SAID:
        return said
    half = _MAX_SAID // 2
    return f"{said[:half]}\n[… {len(said) - 2 * half} characters left out …]\n{said[-half:]}"


def user_maker(kind: str | Mapping[str, object]) -> UserMaker:
    """Return what makes users: `scripted`, `persona`, or the settings of an endpoint with `url` and `model`.

    Raises:
        AgentgymError: it is none of these.
    """
    if isinstance(kind, str):
        if kind not in ("scripted", "persona"):
            raise AgentgymError(f"wanted user: scripted, persona, or an endpoint's url and model; found {kind!r}")
        return UserMaker(kind)
    try:
        return UserMaker("model", Client(EndpointSettings.model_validate(dict(kind))))
    except ValidationError as error:
        first = error.errors()[0]
        raise AgentgymError(f"the user's endpoint is malformed: {first['loc'][0]}: {first['msg']}") from error


@dataclass(frozen=True, slots=True)
class UserMaker:
    """Makes one user per episode."""

    kind: str
    client: Client | None = None

    def __call__(self, script: UserScript, opening: str, seed: int) -> User:
        """Return the user of an episode."""
        if self.client is not None:
            return ModelUser(script, opening, self.client, seed)
        scripted = ScriptedUser(script)
        return Persona(scripted) if self.kind == "persona" else scripted


_BEFORE_OBJECT = "for|to|with|from|of|by|sent|send|give|gave|tell|told|help|let|ask|asked|refund"
_PERSON = (
    (r"\bYou are\b", "I am"), (r"\byou are\b", "I am"), (r"\b[Yy]ou're\b", "I'm"), (r"\b[Yy]ou've\b", "I've"),
    (r"\b[Yy]ou'd\b", "I'd"), (r"\b[Yy]ou'll\b", "I'll"), (r"\bYour\b", "My"), (r"\byour\b", "my"),
    (r"\b[Yy]ourself\b", "myself"), (r"\b[Yy]ours\b", "mine"), (rf"\b({_BEFORE_OBJECT}) you\b", r"\1 me"),
    (r"\b[Yy]ou\b", "I"),
)  # fmt: skip


def first_person(instruction: str) -> str:
    """Turn an instruction to a user into what they say themselves.

    >>> first_person("Your name is Ann. You've ordered a lamp and you want your money back.")
    "My name is Ann. I've ordered a lamp and I want my money back."
    """
    for pattern, said in _PERSON:
        instruction = re.sub(pattern, said, instruction)
    return instruction
