"""The place where attacks run: a real sandbox."""

from __future__ import annotations

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
