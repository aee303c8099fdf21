"""An engine at a server says clearly what is wrong with the server; no vLLM is needed to hear it."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import two_ranks
from engine_contract import PROMPTS, Subject, adapt, contract_model, stir
from safetensors.torch import load_file

from agentgym import registry
from agentgym.errors import AgentgymError, InfrastructureError, MissingExtraError, RecipeError
from agentgym.policy import BudgetExceeded, Sampling
from agentgym_trainers.build import build
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.engines.vllm_server import VLLMServerEngine
from agentgym_trainers.engines.weights import FileSync, Weights, WholeWeights, check_weights, copy_weights
from agentgym_trainers.models import export
from agentgym_trainers.settings import TrainerSettings

ROUTES: dict[str, Any] = {
    "/pause?mode=abort": {}, "/collective_rpc": {"results": [None]}, "/update_weight_version": {}, "/resume": {},
}  # fmt: skip


def answer(logprob: float, **changes: Any) -> dict[str, Any]:
    choice = {
        "token_ids": [7],
        "finish_reason": "length",
        "logprobs": {"content": [{"token_id": 7, "logprob": logprob}]},
    }
    return {"choices": [choice | changes]}


@contextmanager
def serving(routes: dict[str, Any]) -> Iterator[str]:
    """Answer routes with JSON, or with a status where the answer is a number."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            said = routes.get(self.path, 404)
            body = json.dumps(said).encode()
            self.send_response(said if isinstance(said, int) else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("routes", "error", "reason"),
    [
        ({}, RecipeError, "has no /pause; start it with VLLM_SERVER_DEV_MODE=1"),
        (ROUTES | {"/collective_rpc": 404}, RecipeError, "has no /collective_rpc; .*vllm_worker.WeightFiles"),
        (ROUTES | {"/collective_rpc": 500}, InfrastructureError, "did not take its weights of version 0: .*status 500"),
        (ROUTES | {"/inference/v1/generate": 403}, RecipeError, "start it with --enable-scale-out"),
        (ROUTES | {"/inference/v1/generate": {"choices": [{"text": "hi"}]}}, InfrastructureError, "without token ids"),
        (
            ROUTES | {"/inference/v1/generate": answer(0.0, token_ids=[8])},
            InfrastructureError,
            "not those of its token",
        ),
        (
            ROUTES | {"/inference/v1/generate": answer(0.0, token_ids=[], logprobs={"content": []})},
            InfrastructureError,
            "broke off the request that tries it out; is another run using it",
        ),
        (ROUTES | {"/inference/v1/generate": answer(-0.7)}, RecipeError, "--logprobs-mode processed_logprobs"),
        (ROUTES | {"/inference/v1/generate": answer(0.0)}, RecipeError, "runs another model than the learner"),
    ],
)
def test_an_unfit_server_is_refused_in_one_sentence(routes: Any, error: type[AgentgymError], reason: str) -> None:
    model = contract_model(tied=True)
    with serving(routes) as url:
        subject = Subject(VLLMServerEngine(model, url=url), model)
        with subject.runner:
            for _ in range(2):  # it stays refused
                with pytest.raises(AgentgymError, match=reason) as caught:
                    subject.run(subject.ask([3, 4]))
            assert isinstance(caught.value, error)
            subject.run(subject.engine.close())


def test_a_server_that_fails_the_process_that_speaks_to_it_fails_all_of_them(tmp_path: Path) -> None:
    two_ranks.together("update", str(tmp_path / "told"), "http://127.0.0.1:9")
    first, second = (tmp_path / "told").read_text().splitlines()
    assert first == second
    assert re.match(r"InfrastructureError: .* weights of version 1: http://127\.0\.0\.1:9 does not answer", first)


def test_who_cancels_the_first_request_does_not_break_the_engine_for_others() -> None:
    async def run(url: str) -> list[int]:
        engine = VLLMServerEngine(contract_model(tied=True), url=url, tolerance=1e9)
        first = asyncio.create_task(engine.generate(PROMPTS[0], Sampling(max_tokens=1), "first", ()))
        while not (engine._started or first.done()):  # noqa: ASYNC110 -- nobody tells when the first weights are on their way
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert first.cancelled()
        made = await engine.generate(PROMPTS[0], Sampling(max_tokens=1), "second", ())
        await engine.close()
        return list(made.ids)

    with serving(ROUTES | {"/inference/v1/generate": answer(0.0)}) as url:
        assert asyncio.run(run(url)) == [7]


def test_a_connection_that_the_server_may_close_at_any_moment_is_not_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As vLLM's closes what was idle for 5 seconds: here, where a request comes after 3, it has just done so."""
    used: dict[Any, float] = {}
    parse = BaseHTTPRequestHandler.parse_request

    def hang_up(handler: BaseHTTPRequestHandler) -> bool:
        now, handler.close_connection = time.monotonic(), True
        if now - used.get(handler.client_address, now) > 3:
            return False
        used[handler.client_address] = now
        return parse(handler)

    async def run(url: str) -> None:
        engine = VLLMServerEngine(contract_model(tied=True), url=url, tolerance=1e9)
        for _ in range(2):
            await engine.update_weights()
            await asyncio.sleep(3.2)
        assert engine.weight_version == 2
        await engine.close()

    monkeypatch.setattr(BaseHTTPRequestHandler, "protocol_version", "HTTP/1.1")
    monkeypatch.setattr(BaseHTTPRequestHandler, "parse_request", hang_up)
    with serving(ROUTES | {"/inference/v1/generate": answer(0.0)}) as url:
        asyncio.run(run(url))
    assert len(used) < 2 * len(ROUTES), "connections in use are kept"


class Slow(VLLMServerEngine):
    """Starts when it is told to, and notes what it does then; only the engine knows what it waits for."""

    def __init__(self) -> None:
        super().__init__(contract_model(tied=True), url="http://127.0.0.1:9")
        self.gates: list[weakref.ref[asyncio.Future[None]]] = []
        self.did: list[str] = []

    async def _start(self) -> None:
        gate = asyncio.get_running_loop().create_future()
        self.gates.append(weakref.ref(gate))
        await gate

    async def begun(self) -> asyncio.Task[Any]:
        """Ask for a token; return once the start is under way."""
        had = len(self.gates)
        asked = asyncio.create_task(self.generate(PROMPTS[0], Sampling(max_tokens=1), f"s{had}", ()))
        while len(self.gates) == had:  # noqa: ASYNC110 -- it takes a few turns of the loop
            await asyncio.sleep(0)
        return asked

    def open_gate(self, error: Exception | None = None) -> None:
        gc.collect()
        gate = self.gates[-1]()
        assert gate is not None, "the start was forgotten"
        if error is None:
            gate.set_result(None)
        else:
            gate.set_exception(error)

    async def _abort(self, names: Iterable[str]) -> None:
        assert not list(names)

    async def _pause(self) -> None:
        self.did.append("pause")

    async def _push(self, weights: Weights, version: int) -> None:
        del weights
        self.did.append(f"push {version}")

    async def _resume(self) -> None:
        self.did.append("resume")

    async def _stop(self) -> None:
        self.did.append("stop")


def test_a_start_outlives_who_asked_for_it_and_is_tried_again_after_a_failure() -> None:
    async def run(engine: Slow) -> None:
        first = await engine.begun()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        second = asyncio.create_task(engine.update_weights(version=3))
        await asyncio.sleep(0)
        engine.open_gate(InfrastructureError("no room"))
        with pytest.raises(InfrastructureError, match="no room"):
            await second
        third = await engine.begun()
        third.cancel()
        await asyncio.gather(third, return_exceptions=True)
        engine.open_gate()
        await engine.update_weights(version=4)
        await engine.close()

    engine = Slow()
    asyncio.run(run(engine))
    assert engine.did == ["pause", "push 0", "resume", "pause", "push 4", "resume", "stop"]


def test_an_engine_that_is_closed_while_it_starts_is_given_no_weights() -> None:
    async def run(engine: Slow) -> None:
        asked = await engine.begun()
        update = asyncio.create_task(engine.update_weights())
        closing = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        engine.open_gate()
        await closing
        made = await asked
        assert (made.ids, made.stop_reason) == ([], "abort")
        with pytest.raises(InfrastructureError, match="the engine is closed"):
            await update

    engine = Slow()
    asyncio.run(run(engine))
    assert engine.did == ["stop"]


def test_a_server_that_is_not_there_is_an_infrastructure_error() -> None:
    model = contract_model(tied=True)
    subject = Subject(VLLMServerEngine(model, url="http://127.0.0.1:9"), model)
    with subject.runner:
        with pytest.raises(InfrastructureError, match="127.0.0.1:9 does not answer: ConnectError".replace(".", r"\.")):
            subject.run(subject.ask([3, 4]))
        subject.run(subject.engine.close())


def test_a_turn_ends_with_the_context() -> None:
    model = contract_model(tied=True)
    routes = ROUTES | {"/inference/v1/generate": answer(0.0)}
    with serving(routes) as url:
        subject = Subject(VLLMServerEngine(model, url=url, context_length=20, tolerance=1e9), model)
        with subject.runner:
            made = subject.run(subject.ask([3] * 19))  # the server would be asked for one token and gives it
            assert (made.ids, made.stop_reason) == ([7], "length")
            with pytest.raises(BudgetExceeded):
                subject.run(subject.ask([3] * 20))
            subject.run(subject.engine.close())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vllm-server", {"url": "http://127.0.0.1:9"}),
        pytest.param("vllm", {}, marks=pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM")),
    ],
)
def test_engines_have_the_context_of_the_run_unless_their_options_say_another(
    lab: Any, tiny: tuple[Any, ChatFormat], tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    model, chat = tiny  # which reads 256 tokens
    export(model, chat.tokenizer, tmp_path / "model")

    def context(**more: Any) -> int:
        engine = {"name": name, "options": options | more}
        shape = {"path": str(tmp_path / "model"), "context_length": 100}
        chosen = lab.recipe(trainer={"model": shape, "engine": engine})
        parts = asyncio.run(build(chosen.prepare(), chosen.trainer_settings(), None, None, lambda *_: None))
        made: Any = parts.engine
        asyncio.run(made.close())
        return int(made._context)

    assert (context(), context(context_length=90)) == (100, 90)


def test_recipes_choose_engines_by_name_and_their_options_are_checked() -> None:
    chosen = TrainerSettings.model_validate(
        {"engine": {"name": "vllm-server", "options": {"url": "http://127.0.0.1:8000", "transport": "file"}}}
    )
    assert chosen.engine.name == "vllm-server"
    with pytest.raises(ValueError, match="the engine 'vllm' has no option 'port'; it takes: context_length, dtype"):
        TrainerSettings.model_validate({"engine": {"name": "vllm", "options": {"port": 1}}})


@pytest.mark.parametrize("name", ["logprobs_mode", "max_model_len", "weight_transfer_config"])
def test_what_the_engine_relies_on_is_not_set_by_a_recipe(name: str) -> None:
    with pytest.raises(RecipeError, match=f"the engine vllm sets vLLM's {name} itself, for .*; remove that option"):
        registry.create("engines", "vllm", model=contract_model(tied=True), options={"max_num_seqs": 3, name: None})


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_a_missing_vllm_is_one_sentence_with_the_command() -> None:
    with pytest.raises(MissingExtraError, match=r'vllm is not installed; .*pip install "agentgym-rlvr\[vllm\]"'):
        registry.create("engines", "vllm", model=contract_model(tied=True))


def test_adapters_travel_as_part_of_their_layers() -> None:
    pytest.importorskip("peft", reason="needs peft")
    model, plain = adapt(contract_model(tied=True)), contract_model(tied=True)
    stir(model, 1)
    copy_weights(plain, WholeWeights(model))
    ids = torch.tensor([PROMPTS[2]])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-5)
    check_weights(WholeWeights(plain), model)


def test_adapted_layers_are_added_up_one_at_a_time() -> None:
    pytest.importorskip("peft", reason="needs peft")

    class Reading(Slow):
        async def _start(self) -> None:
            """Be there at once."""

        async def _push(self, weights: Weights, version: int) -> None:
            own = {one.data_ptr() for one in self._model.state_dict().values()}
            made: list[weakref.ref[Any]] = []
            most = 0
            for _, tensor in weights:
                if tensor.data_ptr() not in own:
                    made.append(weakref.ref(tensor))
                most = max(most, sum(one() is not None for one in made))
            self.did.append(f"push {version}: {len(made)}, {most} at once")

    async def run(engine: Slow) -> None:
        adapt(engine._model)
        await engine._ready()  # as with the first request
        await engine.update_weights()
        await engine.close()

    engine = Reading()
    asyncio.run(run(engine))
    layers = 2 * 7  # in each layer four projections of attention, and three after it
    assert [one for one in engine.did if "push" in one] == [
        f"push {version}: {layers}, 1 at once" for version in (0, 1)
    ]


def test_weights_are_written_elsewhere_where_files_in_memory_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    async def load(path: Path) -> None:
        copy_weights(plain, load_file(path).items())
        read.append(path)

    model, plain = contract_model(tied=False), contract_model(tied=False)
    stir(model, 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("agentgym_trainers.engines.weights._SHARED", tmp_path / "nowhere")
    asyncio.run(FileSync(load).push(WholeWeights(model)))
    assert read[0].is_relative_to(tmp_path)
    assert not list(tmp_path.iterdir())
    for mine, its in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=0)
