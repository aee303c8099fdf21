"""What a terminal task asks of its container, and what verifies it; kept in `hidden.data`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationError

from agentgym.errors import VerifierError
from agentgym.graders.patches import PatchError, safe_path
from agentgym.task import Task
from agentgym.types import Record

Files = dict[str, str]
"""Files in base64, by path."""


class VerifierSpec(Record):
    """How the container's state is judged once the agent is done."""

    verifier: Literal["separate", "shared"] = "separate"
    """`separate`: in a fresh container of the same image, on the files that the agent handed in. `shared`: where the
    agent worked, with all that it left running."""
    tests: Files
    """The test folder, put to `/tests` after the agent is done."""
    script: str = "test.sh"
    """Of that folder; run by bash in the working directory."""
    result: Literal["reward", "code"] = "reward"
    """`reward`: a number in `/logs/verifier/reward.txt`, or JSON in `reward.json`; or the exit code: 0 is 1."""
    reward: str = "reward"
    """Which entry of `reward.json` counts, where it has several."""
    env: dict[str, str] = {}
    total_s: Annotated[float, Field(gt=0, le=36_000)] = 600.0
    """Seconds that the script may take."""


def read_spec(task: Task) -> VerifierSpec:
    """Read how a task is verified.

    Raises:
        VerifierError: the task is malformed.
    """
    try:
        spec = VerifierSpec.model_validate(task.hidden.data)
        names = [safe_path(name) for name in spec.tests]
    except (ValidationError, PatchError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise VerifierError(f"the terminal task {task.id!r} is malformed: {said}") from error
    if spec.script not in names:
        raise VerifierError(f"the terminal task {task.id!r} has no {spec.script!r} among its tests")
    return spec


def roots_of(task: Task, workdir: str) -> tuple[str, ...]:
    """Return the folders and files that count as the agent's work: its working directory, and what the task names.

    The task names them in `public.data["handed_in"]`, as absolute paths; of a working directory that is `/`, only those
    count.
    """
    named = task.public.data.get("handed_in", [])
    more = [str(one).rstrip("/") for one in named] if isinstance(named, list) else []
    return tuple(one for one in (workdir.rstrip("/"), *more) if one.startswith("/"))


def encoded(files: Mapping[str, bytes]) -> Files:
    """Return files as texts."""
    return {name: base64.b64encode(data).decode() for name, data in files.items()}


def decoded(files: JsonValue) -> dict[str, bytes]:
    """Return files that were handed in as texts.

    Raises:
        PatchError: they are not, or a path is none.
    """
    if not isinstance(files, dict):
        raise PatchError(f"wanted files as base64 texts by path, found {type(files).__name__}")
    found = {}
    for name, text in files.items():
        try:
            found[name] = base64.b64decode(str(text), validate=True)
        except binascii.Error as error:
            raise PatchError(f"wanted {name[:200]!r} in base64") from error
    return found
