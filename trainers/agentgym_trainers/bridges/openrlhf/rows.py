"""What travels through OpenRLHF's dataset: one row per group of attempts, read again where it is rolled out."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from agentgym.errors import RecipeError
from agentgym.recipe import Recipe
from agentgym.types import Record, Split

INPUT_KEY = "input"
"""The dataset's column that OpenRLHF takes for the prompt. It is only shown: the environment writes the real one."""
LABEL_KEY = "label"
"""The only column that reaches an agent untouched."""
SOURCE_KEY = "datasource"
"""The column that OpenRLHF names its evaluation's figures by."""


class Row(Record):
    """One group of attempts at one task, as the JSON text of the label column.

    The launcher writes a row for each task of each step, in the order in which the native trainer would take them:
    `seed` is then `derive_seed(recipe.seed, "rollout", step)`, with the native trainer's count of steps, and `number`
    the task's place in that step. Rows of an evaluation all have the recipe's seed.
    """

    format: Literal[1] = 1
    recipe: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    """`digest` of the recipe, so that rows of another recipe are refused."""
    environment: str
    task: str
    split: Split
    purpose: Literal["train", "evaluate"]
    """What the dataset is for. Nothing else tells an agent; a held-out row of a training dataset is an error."""
    seed: Annotated[int, Field(ge=0)]
    number: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _held_out(self) -> Self:
        if self.purpose == "evaluate" and self.split == "train":
            raise ValueError("evaluation runs on held-out tasks, found one of the train split")
        return self

    @property
    def input(self) -> str:
        """What OpenRLHF shows as the prompt; it tells rows of an evaluation apart by it."""
        return f"{self.environment} {self.split} {self.task}"

    @property
    def label(self) -> str:
        """The JSON text of this row."""
        return self.model_dump_json()

    @property
    def columns(self) -> dict[str, str]:
        """The dataset's columns, which OpenRLHF reads from JSON lines."""
        return {INPUT_KEY: self.input, LABEL_KEY: self.label, SOURCE_KEY: self.split}

    @classmethod
    def read(cls, label: str) -> Self:
        """Read a label column.

        Raises:
            RecipeError: it was not written for this bridge, or by another version of it.
        """
        try:
            return cls.model_validate_json(label)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "label"
            raise RecipeError(
                f"wanted a dataset row of the bridge to OpenRLHF, found the label {label[:80]!r}: {field}: "
                f"{first['msg']}; write the dataset anew, and name its column with --data.label_key {LABEL_KEY}"
            ) from error


class AgentSettings(Record):
    """What the generated agent file gives the executor, in each process that rolls out."""

    recipe: dict[str, Any]
    """The whole recipe as plain data, its overrides and profile applied."""
    seeded: bool = True
    """Draw every turn with a seed of its own. vLLM on a CPU ends with an error where a seeded prompt is computed in
    chunks: say false there if prompts of one batch may have more tokens together than vLLM takes at once."""


def digest(recipe: Recipe) -> str:
    """Return 16 hex digits that name a recipe: equal recipes have equal ones."""
    plain = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    return sha256(plain.encode()).hexdigest()[:16]
