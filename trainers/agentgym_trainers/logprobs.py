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
    states_ND = predicting_states(model.base_model, ids_BL, mask_BL)
    head = model.get_output_embeddings()
    logp_N, entropy_N = score(head, states_ND, ids_BL[mask_BL], temperature=temperature, logit_budget=logit_budget)
    zeros_BL = torch.zeros(ids_BL.shape, device=ids_BL.device)
    return zeros_BL.masked_scatter(mask_BL, logp_N), zeros_BL.masked_scatter(mask_BL, entropy_N)


def predicting_states(trunk: Any, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Return [N, D] the hidden states from which the N masked tokens are predicted: those of the tokens before them.

    Args:
        trunk: a transformers base model.
        ids_BL: padded on the right.
        mask_BL: bool; the first column must be False.
    """
    hidden_BLD: Tensor = trunk(input_ids=ids_BL, use_cache=False).last_hidden_state
    return hidden_BLD[:, :-1][mask_BL[:, 1:]]


def score(
    head: Any, states_ND: Tensor, target_N: Tensor, *, temperature: float, logit_budget: int
) -> tuple[Tensor, Tensor]:
    """Return float32 [N] logprobs of targets, with gradient, and the entropies (nats) of their distributions, without.

    The vocabulary's logits exist for `logit_budget` of them at a time: backward computes each part anew.

    Args:
        head: the output layer.
        states_ND: what it reads.
        target_N: token ids.
        temperature: divides the logits.
        logit_budget: tokens x vocabulary.
    """
    size = max(1, logit_budget // head.weight.shape[0])
    if len(target_N) <= size or not torch.is_grad_enabled():
        parts = [
            _score(head, states, target, temperature)
            for states, target in zip(torch.split(states_ND, size), torch.split(target_N, size), strict=True)
        ]
    else:
        parts = [
            checkpoint(_score, head, states, target, temperature, use_reentrant=False)
            for states, target in zip(torch.split(states_ND, size), torch.split(target_N, size), strict=True)
        ]
    logp, entropy = zip(*parts, strict=True)
    return torch.cat(logp), torch.cat(entropy)


def _score(head: Any, states_ND: Tensor, target_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logp_NV = torch.log_softmax(head(states_ND).float() / temperature, dim=-1)
    with torch.no_grad():
        entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
    return logp_NV.gather(-1, target_N[:, None])[:, 0], entropy_N
