"""Activation checkpointing that leaves training mode, and so dropout, as it is, and generation alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from inspect import getsource
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from agentgym.errors import AgentgymError


def check_recomputing(model: Any) -> None:
    """Refuse a model without layers that can keep their inputs only.

    Raises:
        AgentgymError: it has none.
    """
    if not layers_of(model):
        raise AgentgymError(
            f"{type(model).__name__} has no layers that can be computed anew; set trainer.compute.recompute to false"
        )


@contextmanager
def recomputing(model: Any) -> Iterator[None]:
    """Let forward passes keep the inputs of layers only; what backward needs is computed anew.

    Transformers' own way wants its layers in training mode, which turns on the dropout that some apply themselves.
    """
    layers = layers_of(model)
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def lean(model: Any) -> Iterator[None]:
    """Let forward passes keep what enters norms and gated products, and not what elementwise arithmetic makes of it.

    That is computed anew for gradients: the same bits, no product of matrices twice, and of a Llama-like layer's
    activations about a third less.
    """
    changed = [(one, partial(_again, one.forward)) for one in model.modules() if type(one).__name__.endswith("RMSNorm")]
    changed += [(one, partial(_gated, one)) for one in model.modules() if _is_gated(one)]
    for module, forward in changed:
        module.forward = forward
    try:
        yield
    finally:
        for module, _ in changed:
            del module.forward


def _again(function: Any, *given: Any) -> Any:
    return checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False, determinism_check="none")


def _gated(mlp: Any, x: Tensor) -> Any:
    return _again(partial(_down, mlp), mlp.gate_proj(x), mlp.up_proj(x))


def _down(mlp: Any, gate: Tensor, up: Tensor) -> Any:
    """The last product itself is not computed anew: what it keeps is asked for before it begins."""
    return mlp.down_proj(mlp.act_fn(gate) * up)


def _is_gated(module: Any) -> bool:
    """Say whether a module computes what `_gated` does, its last product at once: adapters would have it made twice."""
    return type(getattr(module, "down_proj", None)) is nn.Linear and _gates(type(module).forward)


@cache
def _gates(forward: Any) -> bool:
    """Say whether a method is written as `_gated` is, to the letter."""
    try:
        lines = getsource(forward).split("\n", 1)[1]
    except (OSError, TypeError):
        return False
    product = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
    return " ".join(lines.split()) in (f"return {product}", f"down_proj = {product} return down_proj")


def layers_of(model: Any) -> list[Any]:
    """Return the transformer layers of a model, and of whatever it holds."""
    return [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
