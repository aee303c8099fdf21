"""Generate with vLLM in its own processes on this machine, started and stopped with the run."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from math import prod
from typing import Any, Literal

from agentgym.errors import InfrastructureError, MissingExtraError, RecipeError
from agentgym.policy import Sampling
from agentgym_trainers.engines.remote import Part, RemoteEngine
from agentgym_trainers.engines.transfer import (
    LoopClient,
    TransferSync,
    Transport,
    connect_vllm,
    pick_transport,
    process_count,
)
from agentgym_trainers.engines.weights import FileSync, Weights, WeightSync

logger = logging.getLogger(__name__)

# A prompt that is computed in chunks winds its request's random generator back, which CPU generators cannot do: the
# whole of vLLM 0.32 would end with an error.
_CPU_ARGUMENTS = {"enforce_eager": True, "enable_chunked_prefill": False}
_CPU_PREFILL = 4096
_GRACE_S = 20.0
_SPREAD = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
_EXTENSION = "agentgym_trainers.engines.vllm_worker.WeightFiles"
_OWN = {
    "model": "the model is the learner's",
    "load_format": "the weights are the learner's",
    "skip_tokenizer_init": "token ids go in and come out",
    "generation_config": "the recipe says how to sample",
    "logprobs_mode": "logprobs must be those of what is sampled from",
    "max_model_len": "its own option context_length says it",
    "worker_extension_cls": "weights arrive by its own",
    "weight_transfer_config": "its own option transport says how weights travel",
}
"""What `options` may not set, and why."""


class VLLMEngine(RemoteEngine):
    """An `AsyncLLM` with the learner's weights: continuous batching, paged and prefix-cached keys and values.

    It starts, which takes from seconds to a minute, with the first request or update, and takes the first of the
    visible GPUs. Batches are formed as requests come, so runs do not repeat bit for bit.
    """

    def __init__(
        self,
        model: Any,
        *,
        batching: Literal["lockstep", "eager"] = "eager",
        max_batch: int = 256,
        context_length: int | None = None,
        dtype: str | None = None,
        transport: Transport | Literal["auto"] = "auto",
        memory_share: float = 0.45,
        cpu_cache_gb: int = 1,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Take the learner's model; nothing is started yet.

        Args:
            model: a transformers causal language model, of a kind that vLLM knows.
            batching: taken for the trainer's sake; vLLM always batches continuously.
            max_batch: requests computed at once.
            context_length: tokens, prompt and answer together; by default what the model allows.
            dtype: of vLLM's weights and arithmetic, such as bfloat16; by default the model's own.
            transport: how weights travel. By default by CUDA IPC to the learner's own GPU, by NCCL to others, and by
                file on a CPU and where vLLM takes the learner's GPU and more.
            memory_share: of the GPU's memory, for weights and cache; the learner needs the rest.
            cpu_cache_gb: memory for keys and values where vLLM runs on a CPU.
            options: further fields of vLLM's AsyncEngineArgs, but none that the engine relies on.

        Raises:
            MissingExtraError: vLLM is not installed.
            RecipeError: an option is the engine's own to set, no weights would arrive that way, or several processes
                train.
        """
        _check_options(options or {})
        if find_spec("vllm") is None:
            raise MissingExtraError("vllm", "vllm")
        del batching
        super().__init__(model, context_length)
        self._workers = prod(int((options or {}).get(name, 1)) for name in _SPREAD)
        self._transport = pick_transport(transport, model.device, self._workers, process_count())
        on_cpu = model.device.type == "cpu"
        self._arguments: dict[str, Any] = {
            "dtype": dtype or str(model.dtype).removeprefix("torch."),
            "max_model_len": self._context,
            "max_num_seqs": max_batch,
            "gpu_memory_utilization": memory_share,
            "enable_prefix_caching": True,
            **(_CPU_ARGUMENTS | {"max_num_batched_tokens": max(_CPU_PREFILL, self._context)} if on_cpu else {}),
            **(options or {}),
        }
        if self._transport == "ipc":  # vLLM holds on to all that it was given until the last has arrived
            self._summed_as = _type_named(self._arguments["dtype"])
        self._cpu_cache_gb = cpu_cache_gb
        self.prefix_hits = 0
        """Prompt tokens that were not computed again."""
        self._llm: Any = None
        self._sync: WeightSync | None = None

    async def _start(self) -> None:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(self._cpu_cache_gb))
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        if self._transport == "ipc":
            # CUDA handles are Python objects. They travel over sockets that only this user can open.
            os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        if self._model.device.type == "cpu":
            _check_heads(self._model.config.get_text_config())
        logger.info("vLLM starts")
        with tempfile.TemporaryDirectory(prefix="agentgym-vllm-") as folder:
            self._model.config.save_pretrained(folder)
            given = {
                "model": folder,
                "skip_tokenizer_init": True,
                "load_format": "dummy",  # the learner's weights follow at once
                "generation_config": "vllm",
                "logprobs_mode": "processed_logprobs",
                "disable_log_stats": True,
                "worker_extension_cls": _EXTENSION,
                **self._arguments,
            }
            if self._transport != "file":
                given["weight_transfer_config"] = {"backend": self._transport}
            try:
                self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**given))
            except Exception as error:
                raise InfrastructureError(f"vLLM did not start: {error}") from error
        self._sync = self._make_sync()

    def _make_sync(self) -> WeightSync:
        if self._transport == "file":
            return FileSync(lambda path: self._llm.collective_rpc("load_weight_file", args=(str(path),)))
        client = LoopClient(self._llm, asyncio.get_running_loop())
        if self._transport == "ipc":
            return TransferSync(partial(connect_vllm, transport="ipc", client=client))
        from vllm.utils.network_utils import get_open_port

        place = {"master_address": "127.0.0.1", "master_port": get_open_port(), "world_size": self._workers + 1}
        return TransferSync(partial(connect_vllm, transport="nccl", client=client, options=place))

    async def _sample(self, name: str, prompt_ids: list[int], sampling: Sampling, stop_ids: Sequence[int]) -> Part:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.limit,
            min_tokens=0,  # more would forbid the stop tokens, and report logprobs of what is left
            seed=sampling.seed,
            stop_token_ids=list(stop_ids),
            ignore_eos=True,  # only the caller's stop tokens stop
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        final = None
        async for output in self._llm.generate(TokensPrompt(prompt_token_ids=prompt_ids), params, name):
            final = output
        if final is None:
            raise InfrastructureError(f"vLLM ended request {name} without an answer")
        self.prefix_hits += final.num_cached_tokens or 0
        made = final.outputs[0]
        ids = list(made.token_ids)
        logprobs = [one[token].logprob for token, one in zip(ids, made.logprobs or (), strict=True)]
        versions = made.weight_versions or ()
        return Part(ids, logprobs, made.finish_reason or "abort", versions[0].version if versions else None)

    async def _abort(self, names: Iterable[str]) -> None:
        await self._llm.abort(list(names))

    async def _pause(self) -> None:
        await self._llm.pause_generation(mode="abort", clear_cache=True)

    async def _push(self, weights: Weights, version: int) -> None:
        assert self._sync is not None
        await self._sync.push(weights)
        await self._llm.update_weight_version(str(version))

    async def _resume(self) -> None:
        await self._llm.resume_generation()

    async def _stop(self) -> None:
        llm, self._llm = self._llm, None
        if self._sync is not None:
            await self._sync.close()
        if llm is not None:
            await asyncio.to_thread(llm.shutdown, _GRACE_S)


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse what the engine relies on: with another value it would run, and train on what was not sampled."""
    for name in options:
        if name in _OWN:
            raise RecipeError(f"the engine vllm sets vLLM's {name} itself, for {_OWN[name]}; remove that option")


def _type_named(name: Any) -> Any:
    """Return the type of tensors that vLLM calls so; None if it chooses one itself."""
    import torch

    found = getattr(torch, str(name).removeprefix("torch."), None)
    return found if isinstance(found, torch.dtype) else None


def _check_heads(config: Any) -> None:
    """Refuse heads that vLLM's CPU kernels do not know: it would say so only in the log of another process."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    known = CPUAttentionBackend.get_supported_head_sizes()
    if size not in known:
        raise RecipeError(
            f"vLLM on a CPU wants attention heads of {', '.join(map(str, known))} numbers, found {size}: choose "
            "hidden and heads otherwise, or the engine hf"
        )
