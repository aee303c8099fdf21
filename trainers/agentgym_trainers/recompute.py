"""Activation checkpointing that leaves training mode, and so dropout, as it is, and generation alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

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


def layers_of(model: Any) -> list[Any]:
    """Return the transformer layers of a model, and of whatever it holds."""
    return [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
