"""Logprobs of given tokens under a model, without ever holding a whole batch of vocabulary logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from agentgym.errors import AgentgymError


def check_head(model: Any) -> None:
    """Refuse a model whose logits are not its output embedding applied to its last hidden state.

    Raises:
        AgentgymError: the chunked logprobs would not be the model's own.
    """
    ids_BL = torch.tensor([[1, 2, 3]], device=model.device)
    with torch.no_grad():
        own_BLV = model(input_ids=ids_BL, use_cache=False).logits
        ours_BLV = model.get_output_embeddings()(model.base_model(input_ids=ids_BL, use_cache=False).last_hidden_state)
    if not torch.allclose(own_BLV, ours_BLV, rtol=1e-4, atol=1e-4):
        raise AgentgymError(
            f"{type(model).__name__} transforms its logits after the output layer (soft-capping or scaling), "
            "which the native trainer does not compute; choose another model family"
        )


def token_logprobs(
    model: Any, ids_BL: Tensor, mask_BL: Tensor, *, temperature: float, logit_budget: int
) -> tuple[Tensor, Tensor]:
    """Return logprob and entropy (nats) of each masked token given the tokens before it; 0 elsewhere.

    Args:
        model: a transformers causal language model.
        ids_BL: padded on the right, so that causality alone keeps padding out of sight.
        mask_BL: bool; the first column must be False.
        temperature: the logprobs are those of the distribution sampled at this temperature.
        logit_budget: logits that may exist at once.

    Returns:
        float32 [B, L] with gradient, and float32 [B, L] without.
    """
    hidden_BLD = model.base_model(input_ids=ids_BL, use_cache=False).last_hidden_state
    hidden_ND = hidden_BLD[:, :-1][mask_BL[:, 1:]]
    target_N = ids_BL[mask_BL]
    head = model.get_output_embeddings()
    size = max(1, logit_budget // head.weight.shape[0])
    whole = len(target_N) <= size
    parts = [
        _score(head, hidden, target, temperature)
        if whole or not torch.is_grad_enabled()
        else checkpoint(_score, head, hidden, target, temperature, use_reentrant=False)
        for hidden, target in zip(torch.split(hidden_ND, size), torch.split(target_N, size), strict=True)
    ]
    logp_BL = hidden_BLD.new_zeros(ids_BL.shape, dtype=torch.float32)
    entropy_BL = torch.zeros_like(logp_BL)
    if parts:
        logp_BL = logp_BL.masked_scatter(mask_BL, torch.cat([logp for logp, _ in parts]))
        entropy_BL = entropy_BL.masked_scatter(mask_BL, torch.cat([entropy for _, entropy in parts]))
    return logp_BL, entropy_BL


def _score(head: Any, hidden_ND: Tensor, target_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logp_NV = torch.log_softmax(head(hidden_ND).float() / temperature, dim=-1)
    with torch.no_grad():
        entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
    return logp_NV.gather(-1, target_N[:, None])[:, 0], entropy_N
