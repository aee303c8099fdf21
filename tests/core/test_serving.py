"""Environments on a server: the same episodes as here, however clients behave."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import gymnasium
import httpx
import pytest
from env_server import TOKEN, ask, running
from websockets.sync.client import connect

from agentgym import registry
from agentgym.env import tool
from agentgym.errors import CapabilityError, InfrastructureError, TaskError
from agentgym.serving.client import RemoteEnv
from agentgym.serving.refusals import CrashError, EndingError, FullError
from agentgym.serving.server import serve
from agentgym.serving.sessions import Bounds, Sessions
from agentgym.serving.wire import Action, Reset
from agentgym.task import Task, TaskSet
from agentgym.testing import ToyEnv, toy_task
from agentgym.types import Message, ToolCall

SECRET = "0b5c7a-a-path-that-nobody-may-see"


class Slow(ToyEnv):
    """A toy with a tool that waits and one that breaks, and a record of what was closed."""

    closed: list[int] = []
    waiting = threading.Event()

    @tool
    def wait(self, seconds: float) -> str:
        """Wait."""
        self.waiting.set()
        time.sleep(seconds)
        return "waited"

    @tool
    def crash(self) -> str:
        """Break."""
        raise RuntimeError(SECRET)

    def close(self) -> None:
        self.closed.append(id(self))
        super().close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running() as found:
        yield found


def plain(info: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in info.items() if name != "tools"} | {"tools": json.dumps(info.get("tools"))}


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_remote_episode_is_the_local_one(url: str, seed: int) -> None:
    here, there = ToyEnv(), RemoteEnv(url, token=TOKEN)
    task = toy_task(seed)
    for round_ in range(2):  # a session may be reset
        local, far = (env.reset(seed=seed + round_, options={"task": task.id}) for env in (here, there))
        assert local[0] == far[0]
        assert plain(local[1]) == plain(far[1])
        call = ToolCall(name="reverse", arguments={"text": "añ\x00b"}, id="c1")
        garbled = Message(role="assistant", content="é", tool_calls=(call,))
        lines: list[Message | str] = [garbled, "no call at all", *here.oracle(task)]
        for line in lines:
            local_step, far_step = here.step(line), there.step(line)
            assert local_step == far_step
        assert local_step[4]["verdict"].value == 1.0
    there.close()
    there.close()


def test_a_step_before_a_reset_or_after_the_end_says_so(url: str) -> None:
    env = RemoteEnv(url, token=TOKEN)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("x")
    env.reset(options={"task": "toy-0"})
    for line in ToyEnv().oracle(toy_task(0)):
        env.step(line)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("x")
    env.close()


def test_a_stranger_learns_that_the_server_lives_and_no_more(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False) as stranger:
        assert stranger.get("/health").json() == {"status": "healthy"}
        for path in ("/metadata", "/schema", "/metrics", "/openapi.json"):
            assert stranger.get(path).status_code == 401
        assert stranger.post("/sessions", json={}).status_code == 401
        assert stranger.post("/sessions", json={}, headers={"Authorization": "Bearer " + "x" * 22}).status_code == 401
    with (
        closing(RemoteEnv(url, token="wrong")) as env,
        pytest.raises(InfrastructureError, match="401: wanted the header"),
    ):
        env.reset()
    with pytest.raises(Exception, match="403"), connect(url.replace("http", "ws") + "/ws"):
        pass


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/sessions", {"seed": -1}, 422, "greater than or equal to 0"),
        ("/sessions", {"sed": 1}, 422, "Extra inputs"),
        ("/sessions", {"task": "toy-99"}, 422, "no task of"),
        ("/sessions", [], 422, "valid dictionary"),
        ("/sessions/none/step", {"content": "x"}, 404, "there is no such session"),
    ],
)
def test_a_malformed_request_gets_one_sentence(url: str, path: str, body: Any, status: int, told: str) -> None:
    with ask(url) as client:
        found = client.post(path, json=body)
        assert found.status_code == status
        assert told in found.text


def test_a_refused_beginning_leaves_no_session() -> None:
    with running() as url, ask(url) as client:
        for body in ({"task": "toy-99"}, {"seed": "x"}):
            assert client.post("/sessions", json=body).status_code == 422
        assert "agentgym_sessions 0.0" in client.get("/metrics").text


def test_what_is_too_large_is_refused_and_the_session_lives(url: str) -> None:
    with ask(url) as client:
        session = client.post("/sessions", json={"task": "toy-0"}).json()["session_id"]
        assert client.post(f"/sessions/{session}/step", json={"content": "x" * (5 << 20)}).status_code == 413
        assert client.post(f"/sessions/{session}/step", json={"content": "x"}).status_code == 200
        assert client.get(f"/sessions/{session}").json()["step_count"] == 1
        assert client.delete(f"/sessions/{session}").status_code == 204
        assert client.delete(f"/sessions/{session}").status_code == 404


def test_an_unknown_task_is_told_as_such(url: str) -> None:
    with closing(RemoteEnv(url, token=TOKEN)) as env, pytest.raises(TaskError, match="no task of 'toy'"):
        env.reset(options={"task": "toy-99"})


def test_nobody_at_an_address_is_infrastructure() -> None:
    with closing(RemoteEnv("http://127.0.0.1:9")) as env, pytest.raises(InfrastructureError, match="does not answer"):
        env.reset()


def test_a_crash_of_an_environment_tells_clients_nothing_and_ends_nothing() -> None:
    with running(Slow) as url, ask(url) as client:
        session = client.post("/sessions", json={"task": "toy-0"}).json()["session_id"]
        found = client.post(f"/sessions/{session}/step", json={"tool_calls": [{"name": "crash"}]})
        assert found.status_code == 500
        assert SECRET not in found.text
        assert client.post(f"/sessions/{session}/step", json={"content": "x"}).status_code == 200


def test_silence_and_slowness_end_a_session_and_its_environment() -> None:
    Slow.closed.clear()
    with running(Slow, session_ttl_s=1.5, turn_timeout_s=3.0) as url, ask(url) as client:
        silent = client.post("/sessions", json={"task": "toy-0"}).json()["session_id"]
        slow = client.post("/sessions", json={"task": "toy-0"}).json()["session_id"]
        call = {"tool_calls": [{"name": "wait", "arguments": {"seconds": 8}}]}
        assert client.post(f"/sessions/{slow}/step", json=call).status_code == 504
        assert {client.get(f"/sessions/{one}").status_code for one in (silent, slow)} == {404}
        assert len(set(Slow.closed)) >= 2
        assert "agentgym_expired_total 2.0" in client.get("/metrics").text


def test_waiting_for_a_thread_is_no_part_of_a_turns_time() -> None:
    with running(Slow, threads=1, turn_timeout_s=2.0) as url, ask(url) as client, ThreadPoolExecutor(5) as pool:
        ids = [client.post("/sessions", json={"task": "toy-0"}).json()["session_id"] for _ in range(5)]
        call = {"tool_calls": [{"name": "wait", "arguments": {"seconds": 0.8}}]}
        made = [pool.submit(client.post, f"/sessions/{one}/step", json=call) for one in ids]
        assert [one.result(20).status_code for one in made] == [200] * 5


def test_a_turn_that_no_thread_is_ever_free_for_is_refused_and_its_session_stays() -> None:
    with running(Slow, threads=1, wait_s=0.5) as url, ask(url) as client, ThreadPoolExecutor(2) as pool:
        ids = [client.post("/sessions", json={"task": "toy-0"}).json()["session_id"] for _ in range(2)]
        call = {"tool_calls": [{"name": "wait", "arguments": {"seconds": 2}}]}
        Slow.waiting.clear()
        first = pool.submit(client.post, f"/sessions/{ids[0]}/step", json=call)
        assert Slow.waiting.wait(20)
        refused = client.post(f"/sessions/{ids[1]}/step", json=call)
        assert (refused.status_code, "waited 0.5 s for a thread" in refused.text) == (503, True)
        assert first.result(20).status_code == 200
        assert client.post(f"/sessions/{ids[1]}/step", json={"content": "x"}).status_code == 200


def test_a_turn_that_waits_does_not_begin_when_its_session_has_ended() -> None:
    with running(Slow, threads=1) as url, ask(url) as client, ThreadPoolExecutor(2) as pool:
        ids = [client.post("/sessions", json={"task": "toy-0"}).json()["session_id"] for _ in range(2)]
        call = {"tool_calls": [{"name": "wait", "arguments": {"seconds": 2}}]}
        Slow.waiting.clear()
        first = pool.submit(client.post, f"/sessions/{ids[0]}/step", json=call)
        assert Slow.waiting.wait(20)
        second = pool.submit(client.post, f"/sessions/{ids[1]}/reset", json={"task": "toy-1"})
        time.sleep(0.2)
        client.delete(f"/sessions/{ids[1]}")
        assert (first.result(20).status_code, second.result(20).status_code) == (200, 404)


class Hung(ToyEnv):
    """Steps that end only when the environment is closed, as one does whose sandbox hangs."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ended = threading.Event()

    @tool
    def wait(self) -> str:
        """Wait for the end."""
        self.ended.wait(60)
        return "ended"

    def close(self) -> None:
        self.ended.set()
        super().close()


def test_turns_that_hang_are_cut_off_even_if_they_hold_every_thread() -> None:
    with running(Hung, threads=2, turn_timeout_s=0.5) as url, ask(url) as client, ThreadPoolExecutor(2) as pool:
        ids = [client.post("/sessions", json={"task": "toy-0"}).json()["session_id"] for _ in range(2)]
        call = {"tool_calls": [{"name": "wait"}]}
        hung = [pool.submit(client.post, f"/sessions/{one}/step", json=call) for one in ids]
        assert [one.result(20).status_code for one in hung] == [504, 504]
        assert client.post("/sessions", json={"task": "toy-0"}).status_code == 201


class Stubborn(ToyEnv):
    """Cannot be closed, and times out by itself."""

    @tool
    def dial(self) -> str:
        """Time out."""
        raise TimeoutError("somebody else's")

    def close(self) -> None:
        raise OSError("stuck")


def test_one_that_cannot_be_closed_keeps_no_other_open() -> None:
    async def play() -> int:
        sessions = Sessions(Stubborn, Bounds(session_ttl_s=0.1))
        sweeping = asyncio.create_task(sessions.sweep())
        for _ in range(3):
            await sessions.begin()
            await asyncio.sleep(0.3)
        assert not sweeping.done()
        sweeping.cancel()
        return len(sessions)

    assert asyncio.run(play()) == 0


class Late(ToyEnv):
    """Is made only when the test says so, and counts what is made and closed."""

    made: list[int] = []
    closed: list[int] = []
    being_made, may_be_made = threading.Event(), threading.Event()

    def __init__(self, **options: Any) -> None:
        self.being_made.set()
        assert self.may_be_made.wait(20)
        super().__init__(**options)
        self.made.append(id(self))

    def close(self) -> None:
        self.closed.append(id(self))
        super().close()


@pytest.fixture
def late() -> type[Late]:
    for one in (Late.made, Late.closed):
        one.clear()
    for event in (Late.being_made, Late.may_be_made):
        event.clear()
    return Late


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 20)


def test_a_session_that_begins_while_the_server_ends_is_closed_and_its_client_told(late: type[Late]) -> None:
    async def play() -> list[Any]:
        sessions = Sessions(late, Bounds(threads=1))
        begins = [asyncio.create_task(sessions.begin()) for _ in range(2)]  # one is made, one waits for its thread
        await until(late.being_made)
        closing = asyncio.create_task(sessions.close())
        await asyncio.sleep(0.05)
        late.may_be_made.set()
        told = await asyncio.gather(*begins, return_exceptions=True)
        await closing
        told += await asyncio.gather(sessions.begin(), return_exceptions=True)
        assert len(sessions) == 0
        return told

    told = asyncio.run(play())
    assert [(type(one), str(one)) for one in told] == [(EndingError, "the server ends and begins no more sessions")] * 3
    assert len(late.made) == 1
    assert late.closed == late.made


def test_what_is_made_for_a_client_that_has_gone_is_closed(late: type[Late]) -> None:
    async def play() -> int:
        sessions = Sessions(late)
        begin = asyncio.create_task(sessions.begin())
        await until(late.being_made)
        begin.cancel()
        with pytest.raises(asyncio.CancelledError):
            await begin
        late.may_be_made.set()
        await sessions.close()
        return len(sessions)

    assert asyncio.run(play()) == 0
    assert len(late.made) == 1
    assert late.closed == late.made


def test_a_place_is_free_again_after_a_client_that_went_before_its_session_was_there(late: type[Late]) -> None:
    async def play() -> None:
        sessions = Sessions(late, Bounds(sessions=1))
        begin = asyncio.create_task(sessions.begin())
        await until(late.being_made)
        begin.cancel()
        late.may_be_made.set()
        async with asyncio.timeout(20):
            while not len(sessions):
                with suppress(FullError):
                    await sessions.begin()
                await asyncio.sleep(0.01)
        assert late.closed == late.made[:1]
        await sessions.close()

    asyncio.run(play())
    assert len(late.made) == 2
    assert late.closed == late.made


def test_an_environments_own_timeout_is_no_slow_turn() -> None:
    async def play() -> None:
        sessions = Sessions(Stubborn)
        one = await sessions.begin()
        await sessions.reset(one, Reset(task="toy-0"))
        with pytest.raises(CrashError):
            await sessions.step(one, Action.model_validate({"tool_calls": [{"name": "dial"}]}))
        assert (await sessions.step(one, Action(content="x"))).done is False

    asyncio.run(play())


def test_a_session_that_has_gone_is_begun_anew_by_the_next_reset() -> None:
    with running(session_ttl_s=2.0) as url, closing(RemoteEnv(url, token=TOKEN)) as env:
        env.reset(options={"task": "toy-0"})
        time.sleep(5.0)
        with pytest.raises(InfrastructureError, match="there is no such session"):
            env.step("x")
        env.reset(options={"task": "toy-0"})
        assert env.step("x")[2] is False
        with pytest.raises(TaskError, match="no task of"):
            env.reset(options={"task": "session-3"})


def test_a_full_server_refuses_and_recovers() -> None:
    with running(sessions=2) as url:
        first, second, third = (RemoteEnv(url, token=TOKEN) for _ in range(3))
        first.reset()
        second.reset()
        with pytest.raises(InfrastructureError, match="2 sessions, as many as it allows"):
            third.reset()
        first.close()
        third.reset()
        third.close()
        second.close()


def test_two_hundred_episodes_at_once_are_each_their_own() -> None:
    def play(seed: int, url: str) -> tuple[float, str]:
        env, task = RemoteEnv(url, token=TOKEN), toy_task(seed % 20)
        env.reset(seed=seed, options={"task": task.id})
        word = f"w{seed}"
        observation, *_ = env.step(
            Message(role="assistant", tool_calls=(ToolCall(name="reverse", arguments={"text": word}),))
        )
        for line in ToyEnv().oracle(task):
            _, reward, *_ = env.step(line)
        env.close()
        return reward, observation[0].content

    with running() as url, ThreadPoolExecutor(200) as pool:
        found = list(pool.map(play, range(200), [url] * 200))
        assert found == [(1.0, f"w{seed}"[::-1]) for seed in range(200)]
        with ask(url) as client:
            assert "agentgym_sessions 0.0" in client.get("/metrics").text


def test_the_socket_protocol_answers_everything_and_keeps_the_session(url: str) -> None:
    with connect(url.replace("http", "ws") + "/ws", additional_headers={"Authorization": f"Bearer {TOKEN}"}) as socket:

        def say(message: Any) -> dict[str, Any]:
            socket.send(message if isinstance(message, str) else json.dumps(message))
            answer: dict[str, Any] = json.loads(socket.recv(20))
            return answer

        assert say({"type": "step", "data": {"content": "x"}})["data"]["code"] == "EXECUTION_ERROR"
        assert say({"type": "reset", "data": {"task": "toy-0"}})["data"]["done"] is False
        for bad, code in (
            ("{", "INVALID_JSON"), ("[1]", "VALIDATION_ERROR"), ('{"type": "dance"}', "UNKNOWN_TYPE"),
            ("[" * 100_000, "INVALID_JSON"), ('{"type": "step", "data": {"content": 3}}', "VALIDATION_ERROR"),
            ('{"type": "step", "data": 3}', "VALIDATION_ERROR"), ('{"type": {"a": 1}}', "UNKNOWN_TYPE"),
        ):  # fmt: skip
            assert say(bad)["data"]["code"] == code
        answer = say({"type": "step", "data": {"tool_calls": [{"name": "reverse", "arguments": {"text": "ab"}}]}})
        assert answer["data"]["observation"]["messages"][0]["content"] == "ba"
        assert say({"type": "state"})["data"]["step_count"] == 1


def test_a_client_that_is_killed_loses_its_session_and_nobody_elses() -> None:
    script = (
        "import sys; from agentgym.serving.client import *; from websockets.sync.client import connect; import json\n"
        f"s = connect(sys.argv[1] + '/ws', additional_headers={{'Authorization': 'Bearer {TOKEN}'}})\n"
        "s.send(json.dumps({'type': 'reset', 'data': {}})); s.recv(); print('ready', flush=True); input()"
    )
    with running(Slow, session_ttl_s=30) as url, ask(url) as client:
        mine = RemoteEnv(url, token=TOKEN)
        mine.reset(options={"task": "toy-0"})
        command = [sys.executable, "-c", script, url.replace("http", "ws")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert "agentgym_sessions 2.0" in client.get("/metrics").text
            process.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 10
        while "agentgym_sessions 1.0" not in client.get("/metrics").text and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "agentgym_sessions 1.0" in client.get("/metrics").text
        assert mine.step("x")[2] is False
        mine.close()


def test_a_task_is_made_once_for_all_sessions_and_a_malformed_one_fails_each_time() -> None:
    made: list[int] = []

    def source() -> Iterator[Task]:
        for seed in range(6):
            made.append(seed)
            if seed == 5:
                raise TaskError("line 5 is malformed")
            yield toy_task(seed)

    with running(lambda: ToyEnv(TaskSet("toys", source))) as url, ask(url) as client:
        for _ in range(3):
            found = client.post("/sessions", json={"task": "toy-3"})
            assert found.json()["observation"]["info"]["task_id"] == "toy-3"
        assert made == [0, 1, 2, 3]
        for _ in range(2):
            assert "line 5 is malformed" in client.post("/sessions", json={"seed": 1}).text
        assert made == [0, 1, 2, 3, 4, 5]


def test_tasks_that_cannot_be_read_for_a_moment_are_there_for_the_next_session() -> None:
    failures = [InfrastructureError("the disk is away")]

    def source() -> Iterator[Task]:
        yield toy_task(0)
        if failures:
            raise failures.pop()
        yield toy_task(1)

    with running(lambda: ToyEnv(TaskSet("toys", source))) as url, ask(url) as client:
        assert client.post("/sessions", json={"task": "toy-1"}).status_code == 503
        found = client.post("/sessions", json={"task": "toy-1"})
        assert found.json()["observation"]["info"]["task_id"] == "toy-1"


def test_turns_of_one_session_never_overlap() -> None:
    async def play() -> tuple[float, int]:
        sessions = Sessions(Slow)
        one = await sessions.begin()
        await sessions.reset(one, Reset(task="toy-0"))
        wait = Action.model_validate({"tool_calls": [{"name": "wait", "arguments": {"seconds": 0.2}}]})
        began = time.monotonic()
        await asyncio.gather(sessions.step(one, wait), sessions.step(one, wait))
        took = time.monotonic() - began
        await sessions.close()
        return took, one.step_count

    took, steps = asyncio.run(play())
    assert steps == 2
    assert took >= 0.4


def test_a_full_house_is_an_error_of_its_own() -> None:
    async def fill() -> None:
        sessions = Sessions(ToyEnv, Bounds(sessions=1))
        await sessions.begin()
        with pytest.raises(FullError):
            await sessions.begin()
        await sessions.close()

    asyncio.run(fill())


def test_the_command_serves_until_a_signal(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from agentgym.cli import main; main()", "serve", "agentgym/Calculator-v0"]
    environment = {**os.environ, "AGENTGYM_ENV_TOKEN": TOKEN, "COLUMNS": "200"}
    with subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line
        oracle = registry.make("agentgym/Calculator-v0")
        with closing(RemoteEnv(found[0], token=TOKEN)) as env:
            _, info = env.reset(seed=3)
            for text in oracle.oracle(oracle.tasks[info["task_id"]]):
                _, reward, *_ = env.step(text)
        assert reward == 1.0
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert TOKEN not in process.stdout.read()


def test_bad_bounds_and_open_doors_are_refused() -> None:
    with pytest.raises(CapabilityError, match="bound session: there is no such bound; known: sessions"):
        serve(ToyEnv, name="toy", is_open=True, bounds={"session": 3}, say=print)
    with pytest.raises(CapabilityError, match="wants a token"):
        serve(ToyEnv, name="toy", host="0.0.0.0", expose=True, is_open=True, port=0, say=print)
    with pytest.raises(InfrastructureError, match="is not a loopback address"):
        serve(ToyEnv, name="toy", host="0.0.0.0", is_open=True, port=0, say=print)
