"""Whatever is asked of a server of environments, it answers as its own OpenAPI document says, and lives."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from env_server import TOKEN, ask, running
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS

from agentgym.serving.app import create_app
from agentgym.serving.sessions import Sessions
from agentgym.testing import ToyEnv

API = schemathesis.openapi.from_dict(create_app(Sessions(ToyEnv), TOKEN, name="toy").openapi())
BOUNDED = settings(
    max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)


SEMANTIC = [CHECKS.get_one("positive_data_acceptance")]
"""A task's id is a valid string where there is no such task, too; what is refused then is a matter of other tests."""


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with running(sessions=5000) as url, ask(url) as found:
        yield found


@API.parametrize()  # type: ignore[untyped-decorator]
@BOUNDED
def test_every_answer_is_one_that_the_document_promises(case: schemathesis.Case, client: httpx.Client) -> None:
    if "session_id" in case.path_parameters and case.meta.generation.mode.is_positive:
        begun = client.post("/sessions", json={"task": "toy-0"}).json()
        case.path_parameters["session_id"] = begun["session_id"]
    token = {"Authorization": f"Bearer {TOKEN}"}
    case.call_and_validate(base_url=str(client.base_url), headers=token, excluded_checks=SEMANTIC)
    assert client.get("/health").json() == {"status": "healthy"}


def test_the_document_knows_every_path() -> None:
    session = "/sessions/{session_id}"
    asked = {"/health", "/metadata", "/schema", "/metrics", "/sessions", session, f"{session}/reset", f"{session}/step"}
    assert {*API.raw_schema["paths"]} == asked
    assert {*API.raw_schema["paths"][session]} == {"get", "delete"}
