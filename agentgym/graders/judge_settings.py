"""Which model judges, where, and what it must have shown before anybody believes it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from agentgym.errors import VerifierError
from agentgym.types import Record

VARIABLE = "AGENTGYM_JUDGE"
_Share = Annotated[float, Field(ge=0, lt=1)]


class EndpointSettings(Record):
    """How a model behind an OpenAI-compatible endpoint is reached."""

    url: Annotated[str, Field(pattern=r"^https?://")]
    """The endpoint's base, such as `http://localhost:8000/v1`; `/chat/completions` is added."""
    model: Annotated[str, Field(min_length=1)]
    api_key_variable: str | None = None
    """The environment variable that holds the key, never the key itself; None sends none."""
    cache: Path | None = None
    """An SQLite file that keeps replies by the hash of what was asked; None keeps them in memory."""
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0)] = 4
    """Of requests that the endpoint did not answer, or was too busy to."""
    retry_wait_s: Annotated[float, Field(ge=0)] = 1.0
    """Scale of the random exponential wait between retries."""
    max_tokens: Annotated[int, Field(ge=16)] = 1024


class JudgeSettings(EndpointSettings):
    """How a judge is reached and tried. Without settings there is no judge: nothing asks a model unasked."""

    enabled: Literal[True]
    """The explicit word that verdicts may rest on a model's opinion, and that tasks may be sent to the endpoint."""
    probes: Path | None = None
    """JSON Lines of more labelled probes, in the form of `judge_probes.yaml`'s entries."""
    max_false_positives: _Share = 0.2
    max_false_negatives: _Share = 0.2
    """The shares of labelled wrong and right answers that the judge may get wrong. Attacks may fool it never."""
    max_characters: Annotated[int, Field(ge=1)] = 20_000
    """The longest submission that is sent; a longer one scores 0."""
    concurrency: Annotated[int, Field(ge=1)] = 8
    """How many probes are asked at once."""


def read_settings(given: JudgeSettings | Mapping[str, Any] | str | Path | None) -> JudgeSettings:
    """Return settings as they are, from a mapping, from a YAML file, or from the one that `AGENTGYM_JUDGE` names.

    Raises:
        VerifierError: there are none, which is how judges are off; or they are malformed.
    """
    if isinstance(given, JudgeSettings):
        return given
    source = given if given is not None else os.environ.get(VARIABLE)
    if not source:
        raise VerifierError(
            f"the grader 'judge' is off: it asks a model, so it wants the word; name a YAML file with `enabled: true`, "
            f"url and model in the environment variable {VARIABLE}, or register a grader with settings of its own"
        )
    try:
        data = source if isinstance(source, Mapping) else yaml.safe_load(Path(source).read_text(encoding="utf-8"))
        if isinstance(data, Mapping) and data.get("enabled") is not True:
            raise VerifierError("the grader 'judge' is off: its settings do not say `enabled: true`")
        return JudgeSettings.model_validate(data)
    except (OSError, yaml.YAMLError) as error:
        raise VerifierError(f"the judge's settings cannot be read from {source}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise VerifierError(f"the judge's settings are malformed: {where}: {first['msg']}") from error
