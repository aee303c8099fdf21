"""The place where attacks run: a real sandbox."""

from __future__ import annotations

import os
from collections.abc import Iterator

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


@pytest.fixture(scope="session", params=["process", pytest.param("docker", marks=pytest.mark.docker)])
def anywhere(request: pytest.FixtureRequest) -> Iterator[SandboxBackend]:
    """Return each kind of sandbox in turn."""
    found: SandboxBackend = registry.create("sandboxes", request.param)
    try:
        found.check()
    except SandboxError as missing:
        if request.param == "docker" and os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(missing))
    yield found
    found.close()
