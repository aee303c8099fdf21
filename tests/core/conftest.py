"""What tests of the core need."""

from __future__ import annotations

import pytest

from agentgym import registry
from agentgym.errors import SandboxError


@pytest.fixture
def needs_sandbox() -> None:
    """Skip where the process sandbox cannot run."""
    try:
        registry.create("sandboxes", "process").check()
    except SandboxError as missing:
        pytest.skip(str(missing))
