"""Endpoints are asked patiently, their failures are nobody's zero, and they are never trained on."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from openai_server import Body, Endpoint, Reply, call, calls, endpoint, refuse, say, script

from agentgym.errors import CapabilityError, RecipeError
from agentgym.evaluate import Report, evaluate
from agentgym.guidance import RolloutRequest
from agentgym.policy import Sampling
from agentgym.recipe import Recipe
from agentgym.rollout import Limits, Rollouts
from agentgym.testing import ToyEnv
from agentgym.types import Trajectory
from agentgym_trainers.engines.openai import OpenAIEngine, OpenAISettings, _retry_after
from agentgym_trainers.policies_openai import OpenAIPolicy, openai_policy

pytest.importorskip("httpx", reason="httpx is not installed")

AGENTGYM = [sys.executable, "-c", "from agentgym.cli import main; main()"]
QUICK = Limits(retries=1, retry_wait_s=0.01, concurrency=8)


def policy_of(server: Endpoint, sampling: Sampling | None = None, **options: Any) -> OpenAIPolicy:
    quick = {"retry_wait_s": 0.01, "timeout_s": 5.0}
    settings = OpenAISettings.model_validate({"model": "tiny", "url": server.url, **quick, **options})
    return OpenAIPolicy(OpenAIEngine(settings), sampling)


def attempt(policy: OpenAIPolicy, limits: Limits = QUICK, n: int = 1) -> list[Trajectory]:
    task = next(iter(ToyEnv.tasks))
    group = asyncio.run(Rollouts(ToyEnv, policy, limits).run([RolloutRequest(task, n, 0)]))[0]
    return group.trajectories


def clever(body: Body) -> Reply:
    """Reverse the word with the tool, then hand in what the tool said."""
    last = body["messages"][-1]
    if last["role"] == "tool":
        return call("answer", json.dumps({"text": last["content"]}), "c2")
    return call("reverse", json.dumps({"text": str(last["content"]).split("'")[1]}))


def test_tools_are_passed_natively_and_their_answers_carry_the_calls_ids() -> None:
    with endpoint(clever) as server:
        policy = policy_of(server)
        one = attempt(policy)[0]
    assert [turn.action.tool_calls[0].name for turn in one.turns] == ["reverse", "answer"]
    assert one.passed, one.error
    assert {tool["function"]["name"] for tool in server.bodies[0]["tools"]} == {"reverse", "answer"}
    roles = [message["role"] for message in server.bodies[1]["messages"]]
    assert roles == ["user", "assistant", "tool"]
    assert server.bodies[1]["messages"][2]["tool_call_id"] == "c1"
    assert server.bodies[0]["model"] == "tiny"
    assert (policy.engine.usage.requests, policy.engine.usage.prompt_tokens, policy.engine.usage.completion_tokens) == (
        2,
        20,
        6,
    )
    assert one.tokens is None
    assert one.extra == {"sampled_tokens": 6}


def test_calls_written_as_text_work_without_native_tools() -> None:
    word = str(next(iter(ToyEnv.tasks)).hidden.data["answer"])
    with endpoint(script(say(f"```reverse\n{word[::-1]}\n```"), say(f"```answer\n{word}\n```"))) as server:
        one = attempt(policy_of(server, native_tools=False))[0]
    assert one.passed
    assert all("tools" not in body for body in server.bodies)
    assert [message["role"] for message in server.bodies[1]["messages"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ('{"text": "a"', "reverse: the tool call is not valid JSON"),
        ('["a"]', "must be one JSON object"),
        ('{"text": "a"} or so', "must be one JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ('{"text": ' + "[" * 400 + "]" * 400 + "}", "error: "),
    ],
)
def test_a_malformed_call_is_answered_with_what_was_wrong(arguments: str, problem: str) -> None:
    good = ("reverse", '{"text": "ab"}', "good")
    with endpoint(script(calls(("reverse", arguments, "bad"), good), say("```answer\nx\n```"))) as server:
        one = attempt(policy_of(server))[0]
    assert one.end == "submitted"
    told = {message["tool_call_id"]: message["content"] for message in server.bodies[1]["messages"][2:]}
    assert problem in told["bad"]
    assert told["good"] == "ba"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param('{"text": NaN}', id="no-number"),
        pytest.param('{"text": [1e999]}', id="infinity"),
        pytest.param('{"text": ' + "9" * 400 + "}", id="huge-integer"),
        pytest.param('{"text": "\\ud800"}', id="half-a-character"),
        pytest.param('{"\\ud800": "a"}', id="half-a-character-in-a-name"),
        pytest.param('{"text": "ab"}', id="good"),
    ],
)
def test_arguments_that_a_server_sends_as_an_object_are_checked_as_their_text_is(arguments: str) -> None:
    told = []
    for given in (arguments, json.loads(arguments)):
        with endpoint(script(calls(("reverse", given, "c1")), say("```answer\nx\n```"))) as server:
            assert attempt(policy_of(server))[0].end == "submitted"
        told.append(server.bodies[1]["messages"][2]["content"])
    assert told[0] == told[1]
    assert told[0] == "ba" or told[0].startswith("error: reverse: the tool call is not valid JSON: ")


@pytest.mark.parametrize("depth", [400, 900])
def test_an_object_that_is_nested_too_deeply_is_told_as_such(depth: int) -> None:
    nested: dict[str, Any] = {}
    for _ in range(depth):
        nested = {"a": nested}
    with endpoint(script(calls(("reverse", nested, "c1")), say("```answer\nx\n```"))) as server:
        assert attempt(policy_of(server))[0].end == "submitted"
    assert server.bodies[1]["messages"][2]["content"] == "error: the arguments of 'reverse' are nested too deeply"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "assistant", "content": [1]},
        {"role": "assistant", "content": "x", "tool_calls": "y"},
        {"role": "assistant", "content": "x", "tool_calls": [None, {}, {"function": 3}, {"function": {"name": ""}}]},
        {"role": "assistant", "tool_calls": [{"id": "\ud800", "function": {"name": "\ud800", "arguments": "{}"}}]},
    ],
)
def test_an_odd_message_is_a_message(message: dict[str, Any]) -> None:
    with endpoint(script(Reply(message))) as server:
        one = attempt(policy_of(server))[0]
    assert one.end == "turns"
    assert one.verdict is not None
    assert one.verdict.value == 0.0


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(refuse(429), id="busy"),
        pytest.param(refuse(500), id="broken"),
        pytest.param(refuse(503), id="away"),
        pytest.param(Reply(raw=b"not json"), id="no-json"),
        pytest.param(Reply(raw=b'{"choices": []}'), id="no-choice"),
        pytest.param(Reply(raw=b'{"choices": [{"message": "x"}]}'), id="no-message"),
        pytest.param(say("slow", delay_s=4), id="slow"),
    ],
)
def test_a_failure_that_passes_is_waited_out(failure: Reply) -> None:
    with endpoint(script(failure, failure, say("```answer\nx\n```"))) as server:
        policy = policy_of(server, timeout_s=1.5 if failure.delay_s else 30)
        one = attempt(policy)[0]
    assert one.end == "submitted"
    assert policy.engine.usage.retries == 2
    assert policy.engine.usage.requests == 1
    assert len(server.bodies) == 3


@pytest.mark.parametrize("failure", [refuse(500), refuse(429), refuse(400), Reply(raw=b"{}")])
def test_an_endpoint_that_keeps_failing_leaves_the_attempt_unscored(failure: Reply) -> None:
    with endpoint(script(failure)) as server:
        one = attempt(policy_of(server, retries=1))[0]
    assert one.end == "infrastructure"
    assert one.verdict is not None
    assert one.verdict.value is None
    assert "/v1/chat/completions" in str(one.error)


def test_an_endpoint_that_is_not_there_is_infrastructure() -> None:
    with endpoint(clever) as server:
        policy = policy_of(server, retries=0)
    one = attempt(policy)[0]
    assert one.end == "infrastructure"
    assert "does not answer: ConnectError" in str(one.error)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_the_evaluation_at_once(status: int) -> None:
    with (
        endpoint(script(refuse(status, "wrong"))) as server,
        pytest.raises(RecipeError, match=f"status {status}.*the key"),
    ):
        attempt(policy_of(server))
    assert len(server.bodies) == 1


def test_the_same_status_later_costs_only_the_attempt() -> None:
    with endpoint(script(say("hm"), refuse(401))) as server:
        assert attempt(policy_of(server))[0].end == "infrastructure"


def test_a_conversation_longer_than_the_context_is_the_agents_failure() -> None:
    with endpoint(script(say("hm"), refuse(400, "context_length_exceeded"))) as server:
        one = attempt(policy_of(server))[0]
    assert (one.end, one.verdict and one.verdict.value) == ("context", 0.0)


def test_a_server_that_counts_wanted_tokens_into_its_context_is_asked_for_fewer() -> None:
    def narrow(body: Body) -> Reply:
        return clever(body) if body["max_tokens"] <= 600 else refuse(400, "context_length_exceeded")

    with endpoint(narrow) as server:
        one = attempt(policy_of(server), Limits(max_tokens=4096, max_tokens_per_turn=4096))[0]
    assert one.end == "submitted"
    assert [body["max_tokens"] for body in server.bodies][:4] == [4096, 2048, 1024, 512]


def test_tokens_are_counted_against_the_budget() -> None:
    with endpoint(script(say("hm", usage={"prompt_tokens": 5, "completion_tokens": 30}))) as server:
        one = attempt(policy_of(server), Limits(max_tokens=50, max_tokens_per_turn=40))[0]
    assert one.end == "tokens"
    assert [body["max_tokens"] for body in server.bodies] == [40, 20]


def test_a_cut_answer_is_known_as_such() -> None:
    with endpoint(script(say("hm", finish_reason="length"))) as server:
        assert attempt(policy_of(server))[0].turns[0].stop_reason == "length"


@pytest.mark.parametrize("wanted", [{"Retry_After": "1"}, {"Retry_After": "soon"}])
def test_retry_after_is_waited_for(wanted: dict[str, str]) -> None:
    with endpoint(script(refuse(429, **wanted), say("```answer\nx\n```"))) as server:
        attempt(policy_of(server))
    waited = server.times[1] - server.times[0]
    assert waited >= 1.0 if wanted["Retry_After"] == "1" else waited < 0.9


def test_retry_after_may_be_a_date_and_never_holds_longer_than_allowed() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=90))
    assert 80 < _retry_after({"Retry-After": later}) <= 90
    assert _retry_after({"Retry-After": format_datetime(datetime.now(UTC) - timedelta(seconds=90))}) == 0.0
    assert [_retry_after(one) for one in ({}, {"Retry-After": "nan"}, {"Retry-After": "-3"})] == [0.0] * 3
    with endpoint(script(refuse(429, Retry_After="3600"), say("```answer\nx\n```"))) as server:
        began = time.monotonic()
        attempt(policy_of(server, max_wait_s=0.2))
    assert time.monotonic() - began < 3


def test_no_more_requests_than_allowed_are_under_way_and_connections_are_shared() -> None:
    with endpoint(script(say("hm", delay_s=0.05))) as server:
        attempts = attempt(policy_of(server, concurrency=3), Limits(concurrency=12), n=12)
    assert len(attempts) == 12
    assert server.most_at_once == 3
    assert len(server.bodies) == 12 * 8
    assert server.connections <= 6


def test_a_cancelled_evaluation_leaves_no_request_behind() -> None:
    with endpoint(script(say("hm", delay_s=4))) as server:
        policy = policy_of(server)

        async def run() -> None:
            rollouts = Rollouts(ToyEnv, policy, QUICK)
            running = asyncio.create_task(rollouts.run([RolloutRequest(next(iter(ToyEnv.tasks)), 4, 0)]))
            async with asyncio.timeout(60):
                while len(server.bodies) < 4:  # noqa: ASYNC110 -- a server has no event for us
                    await asyncio.sleep(0.01)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        asyncio.run(run())
        time.sleep(0.3)
        assert len(server.bodies) == 4


def test_sampling_is_sent_only_if_it_is_chosen_and_seeds_differ_by_turn_and_attempt() -> None:
    with endpoint(script(say("hm"))) as server:
        attempt(policy_of(server, max_tokens_field="max_completion_tokens"))
        plain = list(server.bodies)
        attempt(policy_of(server, Sampling(temperature=0.3, top_p=0.9, max_tokens=7)), n=2)
        chosen = server.bodies[len(plain) :]
    assert all("temperature" not in body and body["max_completion_tokens"] == 256 for body in plain)
    assert all((body["temperature"], body["top_p"], body["max_tokens"]) == (0.3, 0.9, 7) for body in chosen)
    assert len({body["seed"] for body in chosen}) == len(chosen) == 16
    assert [body["seed"] for body in plain] == [
        body["seed"] for body in chosen if body["seed"] in {b["seed"] for b in plain}
    ]


def test_the_key_comes_from_the_named_variable_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with endpoint(clever) as server:
        with pytest.raises(RecipeError, match="environment variable THE_KEY, which is empty"):
            policy_of(server, api_key_variable="THE_KEY")
        monkeypatch.setenv("THE_KEY", "s3cret")
        policy = policy_of(server, api_key_variable="THE_KEY")
        attempt(policy)
    assert server.headers[0]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in f"{policy.engine.settings!r} {vars(policy)}"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("", "wanted an endpoint like openai:MODEL@http://"),
        ("gpt", "wanted an endpoint like openai:MODEL@http://"),
        ("gpt@localhost:8000", "wanted an endpoint like openai:MODEL@http://"),
        ("gpt@http://h/v1,fast", "wanted an option like concurrency=4 after the endpoint, found 'fast'"),
        ("gpt@http://h/v1,retries={", "a value after the sign in the endpoint's option 'retries={', found '{'"),
        ("gpt@http://h/v1,speed=3", "the endpoint's option 'speed': Extra inputs.*the options are: api_key_variable"),
        ("gpt@http://h/v1,retries=-1", "the endpoint's option 'retries'"),
    ],
)
def test_a_malformed_endpoint_is_refused_in_one_sentence(address: str, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        openai_policy(address)


def test_a_models_name_may_hold_signs() -> None:
    settings = openai_policy("org/model:8b@beta@http://h:1/v1,timeout_s=2.5").engine.settings
    assert (settings.model, settings.url, settings.timeout_s) == ("org/model:8b@beta", "http://h:1/v1", 2.5)


def test_an_endpoint_is_refused_for_training_when_the_recipe_is_read() -> None:
    recipe = {"name": "x", "environment": {"id": "agentgym/Code-v0"}, "trainer": {"engine": {"name": "openai"}}}
    with pytest.raises(RecipeError, match="the engine 'openai' cannot be trained with: it returns text and no tokens"):
        Recipe.parse(recipe)
    engine = OpenAIEngine(OpenAISettings(model="m", url="http://h/v1"))
    with pytest.raises(CapabilityError, match="no tokens"):
        asyncio.run(engine.generate([1], Sampling(max_tokens=1), "s", [2]))


def test_an_endpoints_trajectory_has_nothing_to_train_on() -> None:
    with endpoint(clever) as server:
        one = attempt(policy_of(server))[0]
    one.split = "train"
    with pytest.raises(ValueError, match="its engine speaks text only"):
        one.training_tokens()


def report_of(policy: OpenAIPolicy, make_env: Callable[[], ToyEnv] = ToyEnv) -> Report:
    return evaluate(make_env, list(ToyEnv.tasks.split("test")), policy, attempts=2, limits=QUICK)


def test_an_evaluation_counts_what_was_scored_and_what_was_sampled() -> None:
    failing: set[str] = set()

    def answer(body: Body) -> Reply:
        word = str(body["messages"][0]["content"])
        if not failing:
            failing.add(word)
        return refuse(500) if word in failing else clever(body)

    with endpoint(answer) as server:
        report = report_of(policy_of(server, retries=0))
    assert report.unscored == 2
    assert report.scored > 0
    assert report.pass_at[0].value == 1.0
    assert report.by_end["infrastructure"] == 2
    assert report.mean_sampled_tokens == 6.0


def test_the_command_line_evaluates_an_endpoint(tmp_path: Path) -> None:
    environment = tmp_path / "toy.py"
    environment.write_text("from agentgym.testing import ToyEnv\n\n\nclass Toy(ToyEnv):\n    pass\n")
    with endpoint(clever) as server:
        policy = f"openai:tiny@{server.url},concurrency=4"
        found = subprocess.run(
            [*AGENTGYM, "eval", str(environment), "--policy", policy, "--limit", "3"],
            capture_output=True, text=True, cwd=tmp_path, timeout=120,
        )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "pass@1" in found.stdout
    assert "100.0%" in found.stdout
    assert len(server.bodies) == 6


def test_a_broken_endpoint_is_told_as_one_sentence_on_the_command_line(tmp_path: Path) -> None:
    environment = tmp_path / "toy.py"
    environment.write_text("from agentgym.testing import ToyEnv\n\n\nclass Toy(ToyEnv):\n    pass\n")
    with endpoint(script(refuse(401, "a wrong key"))) as server:
        found = subprocess.run(
            [*AGENTGYM, "eval", str(environment), "--policy", f"openai:tiny@{server.url}"],
            capture_output=True, text=True, cwd=tmp_path, timeout=120,
        )  # fmt: skip
    assert found.returncode != 0
    assert "check the model, the URL and the key" in " ".join(found.stderr.split())
    assert "Traceback" not in found.stderr
