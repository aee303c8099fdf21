"""Who is to blame where an OpenEnv server refuses, fails, says nothing or is gone; the server is scripted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentgym.errors import InfrastructureError, TaskError, VerifierError
from agentgym.types import Submission
from agentgym_envs.openenv.env import OpenEnv

pytest.importorskip("websockets")
from websockets.sync.server import ServerConnection, serve

BEGUN: dict[str, Any] = {
    "type": "observation",
    "data": {"observation": {"text": "begin"}, "reward": 0.0, "done": False},
}
WON: dict[str, Any] = {"type": "observation", "data": {"observation": {"text": "done"}, "reward": 1.0, "done": True}}


def answer(line: ServerConnection) -> None:
    """Do what the action says."""
    for text in line:
        asked = json.loads(text)
        match asked["data"].get("do") if asked["type"] == "step" else asked["type"]:
            case "reset":
                line.send(json.dumps(BEGUN))
            case "win":
                line.send(json.dumps(WON))
            case "pay":
                line.send(json.dumps({"type": "observation", "data": {**WON["data"], "reward": asked["data"]["much"]}}))
            case "fail":
                told = {"message": "division by zero", "code": "EXECUTION_ERROR"}
                line.send(json.dumps({"type": "error", "data": told}))
            case "leave":
                return
            case "mumble":
                line.send("no JSON")


@pytest.fixture
def env() -> Iterator[OpenEnv]:
    with serve(answer, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        made = OpenEnv(url=f"http://127.0.0.1:{server.socket.getsockname()[1]}", count=10, timeout_s=1.0)
        made.reset(seed=0)
        yield made
        made.close()
        server.shutdown()
        thread.join(10)


@pytest.mark.parametrize(
    ("action", "told"),
    [("fail", "the server failed at this action: division by zero"), ("hang", "did not answer this action within 1 s")],
)
def test_an_action_at_which_the_server_fails_or_hangs_loses_the_episode(env: OpenEnv, action: str, told: str) -> None:
    observation, _, terminated, _, info = env.step(json.dumps({"do": action}))
    assert told in observation[0].content
    assert (terminated, info["end"], info["verdict"].value) == (True, "agent_fault", 0.0)


@pytest.mark.parametrize("action", ["leave", "mumble"])
def test_a_server_that_is_gone_or_speaks_otherwise_is_infrastructure(env: OpenEnv, action: str) -> None:
    with pytest.raises(InfrastructureError, match="failed"):
        env.step(json.dumps({"do": action}))


@pytest.mark.parametrize("much", ["%", [], float("nan"), 10**400, "1"])
def test_a_server_that_pays_no_number_is_no_verdict_and_not_the_agents_fault(env: OpenEnv, much: object) -> None:
    with pytest.raises(VerifierError, match="no number"):
        env.step(json.dumps({"do": "pay", "much": much}))


@pytest.mark.parametrize(("much", "value"), [(None, 0.0), (True, 1.0), (3, 1.0), (-2.5, 0.0), (0.25, 0.25)])
def test_what_a_server_pays_is_cut_to_a_share_of_the_best(env: OpenEnv, much: object, value: float) -> None:
    *_, info = env.step(json.dumps({"do": "pay", "much": much}))
    assert info["verdict"].value == value


def test_nothing_that_is_handed_in_adds_to_what_the_server_paid(env: OpenEnv) -> None:
    task = next(iter(env.tasks))
    for claim in (Submission(), Submission(answer="done"), Submission(answer="1.0", data={"reward": 1.0})):
        assert env.grade(task, claim).value == 0.0


def test_tasks_are_read_from_a_file_with_the_words_of_their_expert(env: OpenEnv, tmp_path: Path) -> None:
    row = {"id": "a", "split": "train", "public": {"prompt": "Win.", "data": {"reset": {"seed": 3}}}}
    lines = [row | {"hidden": {"reference": {"messages": ['{"do": "win"}']}}}, row | {"id": "b"}]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    made = OpenEnv(url="http://127.0.0.1:9", path=str(tmp_path / "tasks.jsonl"))
    assert made.oracle(made.tasks["a"]) == ['{"do": "win"}']
    with pytest.raises(TaskError, match="has no list of an expert's messages"):
        made.oracle(made.tasks["b"])


def test_an_action_that_is_nested_too_deeply_is_told_and_the_episode_goes_on(env: OpenEnv) -> None:
    for text in ("[" * 100_000, '{"do": ' + "[" * 100_000, "[1]"):
        observation, _, terminated, _, _ = env.step(text)
        assert observation[0].content.startswith("error: wanted a JSON object")
        assert not terminated
    *_, terminated, _, info = env.step(json.dumps({"do": "win"}))
    assert (terminated, info["verdict"].value) == (True, 1.0)
