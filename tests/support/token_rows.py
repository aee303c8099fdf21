"""Random conversations as token buffers, for tests of what trains on them."""

from __future__ import annotations

import torch

from agentgym.tokens import TokenBuffer
from agentgym_trainers.batch import TokenBatch
from agentgym_trainers.losses import off_policy_codes


def conversation(seed: int, turns: int = 2) -> TokenBuffer:
    """A buffer of random tokens of a length that depends on the seed."""
    draw = torch.Generator().manual_seed(seed)
    buffer = TokenBuffer()
    for turn in range(turns):
        length = int(torch.randint(2, 9, (1,), generator=draw))
        ids = torch.randint(6, 260, (2 * length,), generator=draw).tolist()
        buffer.append_text(ids[:length], turn)
        buffer.append_sampled(ids[length:], [-5.5] * length, turn)
    buffer.append_text([7, 8, 9], turns - 1)
    return buffer


BUFFERS = [conversation(seed) for seed in range(12)]
BATCH = TokenBatch.of(BUFFERS)
ADVANTAGE = torch.randn(BATCH.ids_BL.shape, generator=torch.Generator().manual_seed(0)) * BATCH.sampled_BL
ON_POLICY = off_policy_codes(["none"] * len(BUFFERS))
