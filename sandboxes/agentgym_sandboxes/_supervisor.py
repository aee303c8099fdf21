"""The program that runs first in every sandbox: where it is, or how it is made."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from agentgym.errors import SandboxError
from agentgym_sandboxes import _compile


@lru_cache
def program(machine: str | None = None) -> Path:
    """Return the supervisor for a machine type, by default this one's; builds it once if it did not come built.

    Raises:
        SandboxError: it did not come with the package, and there is no compiler.
    """
    try:
        return _compile.program(_compile.machine_of(machine))
    except _compile.BuildError as error:
        raise SandboxError(str(error)) from error


@lru_cache
def volume(machine: str | None = None) -> str:
    """Return the name of the Docker volume that holds it; needs no compiler.

    Raises:
        SandboxError: there can be none for that machine type.
    """
    try:
        return f"agentgym-{_compile.file_name(_compile.machine_of(machine))}"
    except _compile.BuildError as error:
        raise SandboxError(str(error)) from error
