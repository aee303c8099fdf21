"""A vLLM server of its own process keeps the contract of engines over HTTP."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from engine_contract import PROMPTS, EngineContract, Subject, contract_model
from transformers import Qwen2Config, Qwen2ForCausalLM
from vllm_process import vllm_server

from agentgym.errors import InfrastructureError, RecipeError
from agentgym_trainers.engines.vllm_server import VLLMServerEngine

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM; `make test-vllm` installs its CPU build"),
    pytest.mark.timeout(600),
]


BLOCK = 128
"""Tokens that vLLM's CPU build keeps together."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with vllm_server(contract_model(tied=False), folder, "--logprobs-mode", "processed_logprobs") as found:
        yield found


def metric(url: str, *names: str) -> int:
    """Add up what the server says of itself under some names."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = [float(line.rsplit(" ", 1)[1]) for line in lines if line.partition("{")[0] in names]
    assert len(found) == len(names)
    return int(sum(found))


@pytest.fixture(scope="module")
def subject(url: str) -> Iterator[Subject]:
    model = contract_model(tied=False)
    running = partial(metric, url, "vllm:num_requests_running", "vllm:num_requests_waiting")
    made = Subject(VLLMServerEngine(model, url=url, max_batch=32), model, running=running)
    with made.runner:
        yield made
        made.run(made.engine.close())


def test_a_turn_computes_only_what_is_new_until_weights_change(subject: Subject, url: str) -> None:
    prompt = PROMPTS[2] * 40

    def hits(prompt: list[int]) -> tuple[int, list[int]]:
        before = metric(url, "vllm:prefix_cache_hits_total")
        made = subject.run(subject.ask(prompt))
        subject.exact(prompt, made)
        return metric(url, "vllm:prefix_cache_hits_total") - before, [*prompt, *made.ids, 5, 6, 7]

    first, context = hits([9, *prompt])
    second, context = hits(context)
    subject.run(subject.engine.update_weights())
    third, _ = hits(context)
    assert (first, third) == (0, 0)
    assert len(prompt) - BLOCK < second <= len(prompt) + 13


class TestVLLMServerEngine(EngineContract):
    pass


def test_a_learner_that_computes_otherwise_is_refused(url: str) -> None:
    model = contract_model(tied=False)
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.Identity()  # the same tensors, another function
    other = Subject(VLLMServerEngine(model, url=url), model)
    with other.runner:
        with pytest.raises(RecipeError, match="runs another model than the learner: its logprobs lie"):
            other.run(other.ask([3, 4, 5]))
        other.run(other.engine.close())


def test_a_server_of_another_model_is_refused(url: str) -> None:
    shape = contract_model(tied=False).config.to_dict() | {"hidden_size": 32, "intermediate_size": 64}
    model = Qwen2ForCausalLM(Qwen2Config(**shape)).eval()
    other = Subject(VLLMServerEngine(model, url=url), model)
    with other.runner:
        with pytest.raises(InfrastructureError, match="did not take its weights of version 0"):
            other.run(other.ask([3, 4, 5]))
        other.run(other.engine.close())
