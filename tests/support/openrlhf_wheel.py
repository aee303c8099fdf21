"""OpenRLHF's own rollout worker and experience maker, in one process: without Ray, models or a cluster."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_players import PlayerWorker
from torch import Tensor

from agentgym_trainers.bridges.openrlhf.agent import agent_file
from agentgym_trainers.bridges.openrlhf.rows import AgentSettings

if find_spec("flash_attn") is None:  # which OpenRLHF imports, and which cannot be installed without CUDA
    sys.path.append(str(Path(__file__).parent / "openrlhf_cpu"))


class WheelWorker:
    """OpenRLHF's rollout worker outside of Ray: its methods, an engine of the test's, and the agent file it loads."""

    def __init__(self, settings: AgentSettings, folder: Path, llm: Any) -> None:
        from openrlhf.trainer.ray.vllm_engine import RolloutRayActor, _load_agent_executor

        self._methods = RolloutRayActor.__ray_metadata__.modified_class
        file = folder / "agent.py"
        file.write_text(agent_file(settings))
        self.executor = _load_agent_executor(str(file))
        self.llm = llm
        self._mm_pad_token_ids = None

    async def generate(self, prompt_token_ids: list[int], sampling_params: Any, multi_modal_data: Any = None) -> Any:
        """Ask the engine: OpenRLHF's way where it is vLLM."""
        if isinstance(self.llm, PlayerWorker):
            return await self.llm.generate(prompt_token_ids, sampling_params, multi_modal_data)
        return await self._methods.generate(self, prompt_token_ids, sampling_params, multi_modal_data)

    async def generate_responses(self, **given: Any) -> list[dict[str, Any]]:
        """Gather the samples of a prompt, OpenRLHF's way."""
        found: list[dict[str, Any]] = await self._methods.generate_responses(self, **given)
        return found


def maker(estimator: str, samples: int, **advantage: Any) -> Any:
    """Return an experience maker for groups of so many samples."""
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

    chosen = {"estimator": estimator, "gamma": 1.0, "lambd": 1.0, "no_std_norm": False} | advantage
    args = SimpleNamespace(
        algo=SimpleNamespace(advantage=SimpleNamespace(**chosen)),
        rollout=SimpleNamespace(n_samples_per_prompt=samples, micro_batch_size=samples, max_new_tokens=None),
        reward=SimpleNamespace(clip_range=(-10.0, 10.0), overlong_buffer_len=None, stop_properly_penalty_coef=None),
        train=SimpleNamespace(dynamic_batch_enable=False),
        data=SimpleNamespace(max_len=1024),
    )
    kl, tokenizer = SimpleNamespace(value=0.0), SimpleNamespace(pad_token_id=0)
    return RemoteExperienceMaker(None, None, None, None, kl, SimpleNamespace(args=args), tokenizer)


def experience(reward_B: Tensor, mask_BA: Tensor, value_BA: Tensor | None = None) -> Any:
    """Return the samples of one prompt; A = L - 1 places that a token may be sampled at."""
    from openrlhf.trainer.ppo_utils.experience import Experience

    return Experience(
        rewards=reward_B.clone(),
        action_mask=mask_BA.long(),
        values=value_BA,
        kl=mask_BA * 0.0,
        index=list(range(len(reward_B))),
        info={},
    )


def advantages(
    estimator: str, reward_GN: Tensor, masks: Sequence[Tensor], values: Sequence[Tensor] | None = None, **options: Any
) -> list[Tensor]:
    """Return [N, A] per group: the advantages that OpenRLHF computes for G groups of N samples."""
    groups = [
        experience(reward_N, mask_NA, values[index] if values else None)
        for index, (reward_N, mask_NA) in enumerate(zip(reward_GN, masks, strict=True))
    ]
    for number, one in enumerate(groups):
        one.index = [number * reward_GN.shape[1] + index for index in one.index]
    made = maker(estimator, reward_GN.shape[1], **options).compute_advantages_and_returns(groups)
    return [one.advantages * one.action_mask for one in made]
