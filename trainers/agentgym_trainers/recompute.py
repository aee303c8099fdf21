"""Activation checkpointing that leaves dropout off and generation alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from agentgym.errors import AgentgymError


def allow_recomputing(model: Any) -> None:
    """Let a model's layers keep their inputs only, within `recomputing`.

    Raises:
        AgentgymError: its layers cannot.
    """
    layers = layers_of(model)
    if not layers:
        raise AgentgymError(
            f"{type(model).__name__} has no layers that can be computed anew; set trainer.compute.recompute to false"
        )
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


@contextmanager
def recomputing(model: Any) -> Iterator[None]:
    """Let forward passes keep the inputs of layers only; what backward needs is computed anew."""
    layers = layers_of(model)
    # transformers checkpoints layers in training mode; what is inside them stays in evaluation mode, without dropout.
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def layers_of(model: Any) -> list[Any]:
    """Return the transformer layers of a model, and of whatever it holds."""
    return [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
