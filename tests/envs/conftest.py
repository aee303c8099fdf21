"""What tests of environments need: real sandboxes, and real task data where it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentgym import registry
from agentgym.errors import SandboxError
from agentgym.sandbox import SandboxBackend


@pytest.fixture(scope="session")
def backend() -> Iterator[SandboxBackend]:
    found: SandboxBackend = registry.create("sandboxes", "process")
    try:
        found.check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    yield found
    found.close()


@pytest.fixture(scope="session")
def docker() -> Iterator[SandboxBackend]:
    found: SandboxBackend = registry.create("sandboxes", "docker")
    try:
        found.check()
    except SandboxError as missing:
        if os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(missing))
    yield found
    found.close()


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real task sets beside the project."""
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no task data at {folder}")
    return folder
