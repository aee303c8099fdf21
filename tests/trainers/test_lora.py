"""Layers and their adapters add up to the same numbers whoever reads them, and however long the sums are held."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_contract import adapt, contract_model
from safetensors.torch import load_file
from torch import Tensor

from agentgym_trainers.engines.weights import FileSync, WholeWeights, check_weights, outlines
from agentgym_trainers.lora import add_lora, merged_state
from agentgym_trainers.settings import LoraSettings

pytest.importorskip("peft", reason="needs peft")


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def make(request: pytest.FixtureRequest) -> Callable[[], Any]:
    return partial(contract_model, tied=request.param)


def added_up(model: Any) -> dict[str, Tensor]:
    """All sums at once, by hand."""
    state = {name: one.clone() for name, one in model.state_dict().items() if ".lora_" not in name}
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            state[f"{name}.base_layer.weight"] += (up @ down).detach() * layer.scaling["default"]
    return {name.replace(".base_layer", ""): one for name, one in state.items()}


def test_whoever_holds_no_sum_reads_every_tensor_and_the_same_bits(make: Callable[[], Any]) -> None:
    """The memory of a sum that nobody holds is the next one's: by where they lie they would be one and the same."""
    model, plain = adapt(make()), make()
    weights, expected = WholeWeights(model), added_up(model)
    for _ in range(2):
        equal = {name: torch.equal(one, expected[name]) for name, one in weights}
        assert all(equal.values())
        assert sorted(equal) == sorted(name for name, _ in WholeWeights(plain))
    assert ("lm_head.weight" in equal) is not plain.config.tie_word_embeddings


@pytest.mark.parametrize("summed_as", [None, torch.bfloat16])
def test_what_will_be_read_is_known_before(make: Callable[[], Any], summed_as: torch.dtype | None) -> None:
    model = adapt(make())
    weights, expected = WholeWeights(model, summed_as), added_up(model)
    assert outlines(weights) == [(name, one.dtype, tuple(one.shape)) for name, one in weights]
    for name, one in weights:
        summed = "_proj.weight" in name
        assert one.dtype == ((summed and summed_as) or torch.float32)
        assert torch.equal(one, expected[name].to(one.dtype))
    assert outlines(list(weights)) == outlines(weights)


def test_adapted_layers_go_by_file_as_they_are_read(make: Callable[[], Any]) -> None:
    files: list[dict[str, Tensor]] = []

    async def load(path: Path) -> None:
        files.append(load_file(path))

    model = adapt(make())
    asyncio.run(FileSync(load).push(WholeWeights(model)))
    (found,), expected = files, added_up(model)
    assert sorted(found) == sorted(name for name, _ in WholeWeights(make()))
    assert all(torch.equal(one, expected[name]) for name, one in found.items())


def test_a_saved_state_is_whole_and_what_was_tied_stays_so(make: Callable[[], Any]) -> None:
    model, plain = adapt(make()), make()
    state, expected = merged_state(model), added_up(model)
    assert state.keys() == expected.keys() == plain.state_dict().keys()
    assert all(torch.equal(one, expected[name]) for name, one in state.items())
    tied = state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    assert tied is plain.config.tie_word_embeddings


@pytest.mark.filterwarnings("ignore")  # of peft, about just this
def test_an_adapted_output_layer_is_no_longer_its_embedding() -> None:
    model = contract_model(tied=True)
    add_lora(model, LoraSettings(rank=2, targets=["lm_head"]), seed=0)
    torch.nn.init.ones_(model.lm_head.lora_B["default"].weight)
    read = dict(WholeWeights(model))
    assert not torch.equal(read["lm_head.weight"], read["model.embed_tokens.weight"])
    with pytest.raises(ValueError, match=r"lm_head\.weight is missing"):
        check_weights([(name, one) for name, one in read.items() if name != "lm_head.weight"], model)


def test_weights_are_checked_without_adding_anything_up(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = adapt(make()), list(WholeWeights(make()))
    monkeypatch.setattr("agentgym_trainers.lora.added_up", None)
    assert check_weights(given, model) == given
