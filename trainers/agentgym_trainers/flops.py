"""Floating-point operations of training, counted as PaLM's appendix B does, and how many a device can do at most.

https://arxiv.org/abs/2204.02311 counts what the mathematics asks for: two operations forwards per token and weight, and
four more for gradients. What only costs is left out there and here: padding, and layers computed anew. Left out here is
attention between tokens too, so that long contexts seem to make less of a device than they do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from agentgym_trainers.settings import ComputeSettings

_TERA = 1e12
_PEAK_TFLOPS: Mapping[str, float] = {
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA GeForce RTX 4090": 165.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H200": 989.0,
    "NVIDIA L4": 121.0,
    "NVIDIA L40S": 362.0,
}
"""Of dense matrices in bfloat16, by the whole name: a laptop's chip, or a part of a GPU, has another peak."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Operations per token that is multiplied with some weights."""

    forward: float
    backward: float

    @classmethod
    def of(cls, weights: Iterable[nn.Parameter]) -> Self:
        """Count two per weight forwards, two for the gradient of what comes in, and two for a trained weight's own."""
        sizes = [(one.numel(), one.requires_grad) for one in weights]
        return cls(2.0 * sum(size for size, _ in sizes), 2.0 * sum(size * (1 + trained) for size, trained in sizes))

    @classmethod
    def of_trunk(cls, trunk: Any) -> Self:
        """Count a base model's, whose embeddings are looked up for nothing.

        NaN for a mixture of experts: it is not known how many of its weights a token takes.
        """
        config = trunk.config.get_text_config().to_dict()
        if any("expert" in name and value for name, value in config.items()):
            return cls(math.nan, math.nan)
        embeddings = [one for one in trunk.modules() if isinstance(one, nn.Embedding)]
        looked_up = {id(weight) for one in embeddings for weight in one.parameters()}
        return cls.of(one for one in trunk.parameters() if id(one) not in looked_up)

    def times(self, tokens: int, *, gradient: bool) -> float:
        """Return the operations of a pass, and of the backward pass if one follows."""
        return tokens * (self.forward + self.backward * gradient)


def peak_flops(compute: ComputeSettings, devices: int) -> float | None:
    """Return the operations per second of which devices are capable: as the recipe says, or as a GPU's name tells."""
    stated = compute.peak_tflops
    if stated is None and compute.device.startswith("cuda"):
        stated = _PEAK_TFLOPS.get(torch.cuda.get_device_name(compute.device))
    return None if stated is None else stated * _TERA * devices
