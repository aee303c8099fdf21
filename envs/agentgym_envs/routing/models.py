"""The models that can be asked: scripted ones that know so many towns, or real ones behind endpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Protocol

from pydantic import Field, ValidationError

from agentgym.errors import AgentgymError
from agentgym.graders.judge_client import Client, RefusedError
from agentgym.graders.judge_settings import EndpointSettings
from agentgym.types import Record

Town = Mapping[str, int]
"""`people` and `opened`."""


class ModelSpec(Record):
    """One model of the pool, as the agent is told of it."""

    price: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Of one question."""
    about: str
    """What it is good for, in words."""
    knows: int | None = None
    """Of a scripted model: it knows the towns with at least so many people, and is sure of itself about the rest."""
    endpoint: EndpointSettings | None = None
    """Of a real model: where it is."""


class Model(Protocol):
    """Something that can be asked."""

    def ask(self, question: str, towns: Mapping[str, Town], seed: int) -> str:
        """Answer a question."""
        ...


class ScriptedModel:
    """Answers about the town that a question names: rightly if it is large enough, and else with a wrong year.

    >>> towns = {"Lundby": {"people": 9000, "opened": 1901}}
    >>> ScriptedModel("small", 5000).ask("When was the town hall of Lundby opened?", towns, 0)
    'The town hall of Lundby was opened in 1901.'
    """

    def __init__(self, name: str, knows: int) -> None:
        self._name, self._knows = name, knows

    def ask(self, question: str, towns: Mapping[str, Town], seed: int) -> str:  # noqa: ARG002 -- always the same
        """Answer a question about one town."""
        named = [name for name in towns if name.casefold() in question.casefold()]
        if len(named) != 1:
            return "Please ask about one town at a time, by its name."
        [town] = named
        opened = towns[town]["opened"]
        if towns[town]["people"] < self._knows:
            # Not a random year: asking again must not give another one, by which ignorance would show. Nor one that is
            # always as far off for a town: whoever has learned by how much would put it right.
            digest = hashlib.sha256(f"{self._name}:{town}:{towns[town]}".encode()).digest()
            opened += (1 + digest[0] % 40) * (1 if digest[1] % 2 else -1)
        return f"The town hall of {town} was opened in {opened}."


class EndpointModel:
    """A model behind an OpenAI-compatible endpoint."""

    def __init__(self, settings: EndpointSettings) -> None:
        self._client = Client(settings)

    def ask(self, question: str, towns: Mapping[str, Town], seed: int) -> str:  # noqa: ARG002 -- knows what it knows
        """Ask the model.

        Raises:
            ValueError: it refuses this question.
            InfrastructureError: it does not answer.
        """
        try:
            return self._client.complete([{"role": "user", "content": question}], seed)
        except RefusedError as error:
            raise ValueError(f"the model refuses this question ({error})") from error


POOL: Mapping[str, ModelSpec] = {
    "small": ModelSpec(price=1, about="knows the large towns, of 100,000 people and more", knows=100_000),
    "medium": ModelSpec(price=3, about="knows the towns of 10,000 people and more", knows=10_000),
    "large": ModelSpec(price=10, about="knows every village", knows=0),
}


def read_pool(given: Mapping[str, Any] | None) -> dict[str, ModelSpec]:
    """Return the pool that is given, or the scripted one.

    Raises:
        AgentgymError: it is malformed: fewer than two models, or one that is not either scripted or an endpoint.
    """
    try:
        pool = {name: ModelSpec.model_validate(one) for name, one in (POOL if given is None else given).items()}
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AgentgymError(f"a model of the pool is malformed: {where}: {first['msg']}") from error
    if len(pool) < 2:
        raise AgentgymError(f"wanted at least two models to choose from, found {len(pool)}")
    for name, one in pool.items():
        if (one.knows is None) == (one.endpoint is None):
            raise AgentgymError(f"wanted for the model {name!r} either `knows` (scripted) or `endpoint`, not both")
    return pool


def make(name: str, spec: ModelSpec) -> Model:
    """Return the model of a specification."""
    if spec.endpoint is not None:
        return EndpointModel(spec.endpoint)
    return ScriptedModel(name, spec.knows or 0)
