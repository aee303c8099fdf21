"""vLLM, in its own processes on this machine's CPU, keeps the contract of engines and trains."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from engine_contract import EngineContract, Subject, contract_model

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM; `make test-vllm` installs its CPU build"),
    pytest.mark.filterwarnings("default"),  # of vLLM and what it imports
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    from agentgym_trainers.engines.vllm import VLLMEngine

    model = contract_model(tied=True)  # where vLLM's CPU build keeps a stale packed head
    made = Subject(VLLMEngine(model, max_batch=32), model)
    with made.runner:
        yield made
        made.run(made.engine.close())


class TestVLLMEngine(EngineContract):
    pass
