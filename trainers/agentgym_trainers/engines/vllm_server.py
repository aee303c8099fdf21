"""Generate with a vLLM server over HTTP: token ids there and back, on this machine or another."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agentgym.errors import InfrastructureError, MissingExtraError, RecipeError
from agentgym.policy import Sampling
from agentgym_trainers.engines.remote import Part, RemoteEngine
from agentgym_trainers.engines.transfer import (
    TransferSync,
    Transport,
    check_transport,
    connect_vllm,
    once_for_all,
    process_count,
)
from agentgym_trainers.engines.weights import FileSync, Weights, WeightSync

if TYPE_CHECKING:
    import httpx

_GENERATE = "/inference/v1/generate"
_ABORT = "/inference/v1/abort_requests"
_ADVICE = {
    _GENERATE: "start it with --enable-scale-out, which opens its token routes",
    _ABORT: "start it with --enable-scale-out, which opens its token routes",
    "/collective_rpc": (
        "start it with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls "
        "agentgym_trainers.engines.vllm_worker.WeightFiles, which let it take weights"
    ),
}
_DEV_ADVICE = "start it with VLLM_SERVER_DEV_MODE=1, which opens its routes for weight updates"
_PROBE_TOKENS = 4
_IDLE_S = 2.0  # vLLM hangs up after 5 idle seconds: a request sent just then is lost, though nothing is wrong


class VLLMServerEngine(RemoteEngine):
    """A `vllm serve` that somebody else started, for this run alone: its weights become the learner's.

    The server must run with `--enable-scale-out`, `--logprobs-mode processed_logprobs`, and VLLM_SERVER_DEV_MODE=1 for
    updates; the last opens routes that execute code, so let it listen on the loopback interface only. All of it is
    tried out before the first request.
    """

    def __init__(
        self,
        model: Any,
        *,
        url: str,
        batching: Literal["lockstep", "eager"] = "eager",
        max_batch: int = 256,
        context_length: int | None = None,
        timeout_s: float = 600.0,
        transport: Transport = "file",
        weights_folder: str | None = None,
        transport_options: dict[str, Any] | None = None,
        tolerance: float = 0.5,
    ) -> None:
        """Take the learner's model; the server is not asked yet.

        Args:
            model: a transformers causal language model of the shape that the server runs.
            url: the server's base, such as `http://127.0.0.1:8000`.
            batching: taken for the trainer's sake; vLLM always batches continuously.
            max_batch: requests sent at once; the others wait here.
            context_length: tokens, prompt and answer together; by default what the model allows.
            timeout_s: of one request, from its beginning to the whole answer.
            transport: how weights travel: through a file that the server can read too, or `ipc` or `nccl` of a server
                that was started with the same `--weight-transfer-config`.
            weights_folder: where weights are written for the server; by default in this machine's memory.
            transport_options: for nccl: master_address, master_port and world_size (the server's GPUs and one more).
            tolerance: how far, on average, the server's logprobs may lie from the learner's own when they are tried
                out; arithmetic in another precision is within it, another model is not.

        Raises:
            MissingExtraError: httpx is not installed, or for ipc and nccl vLLM is not.
            RecipeError: no weights would arrive that way.
        """
        if find_spec("httpx") is None:
            raise MissingExtraError("httpx", "openai")
        check_transport(transport, model.device, process_count())
        del batching
        super().__init__(model, context_length)
        self._url = url.rstrip("/")
        self._max_batch = max_batch
        self._timeout_s = timeout_s
        self._tolerance = tolerance
        self._http: httpx.AsyncClient | None = None
        self._gate = asyncio.Semaphore(max_batch)
        self._tried = False
        self._sync: WeightSync
        if transport == "file":
            self._sync = FileSync(self._load_file, weights_folder)
        else:
            if find_spec("vllm") is None:
                raise MissingExtraError("vllm", "vllm")
            from vllm.distributed.weight_transfer.clients import HTTPVLLMWeightSyncClient

            client = HTTPVLLMWeightSyncClient(self._url)
            self._sync = TransferSync(
                partial(connect_vllm, transport=transport, client=client, options=transport_options)
            )

    async def _start(self) -> None:
        import httpx

        limits = httpx.Limits(max_connections=self._max_batch + 8, keepalive_expiry=_IDLE_S)
        self._http = httpx.AsyncClient(timeout=self._timeout_s, limits=limits, trust_env=False)

    async def _sample(self, name: str, prompt_ids: list[int], sampling: Sampling, stop_ids: Sequence[int]) -> Part:
        async with self._gate:
            return await self._ask(name, prompt_ids, sampling, stop_ids)

    async def _ask(
        self, name: str, prompt_ids: list[int], sampling: Sampling, stop_ids: Sequence[int], **more: Any
    ) -> Part:
        params = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.limit,
            "min_tokens": 0,
            "seed": sampling.seed,
            "stop_token_ids": list(stop_ids),
            "ignore_eos": True,
            "logprobs": 0,
            "detokenize": False,
            **more,
        }
        body = {"request_id": name, "token_ids": prompt_ids, "sampling_params": params, "stream": False}
        answer = await self._post(_GENERATE, body)
        try:
            (choice,) = answer["choices"]
            ids, told = list(choice["token_ids"]), list((choice["logprobs"] or {}).get("content") or ())
            if [one["token_id"] for one in told] != ids:
                raise ValueError("its logprobs are not those of its token ids")
            versions = choice.get("weight_versions") or ()
            version = versions[0]["version"] if versions else None
            reason = str(choice["finish_reason"])
            return Part(ids, [float(one["logprob"]) for one in told], reason, version if self._tried else None)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise InfrastructureError(
                f"{self._url} answered without token ids and logprobs ({error!r}); wanted vLLM 0.32 or newer"
            ) from error

    async def _abort(self, names: Iterable[str]) -> None:
        await self._post(_ABORT, {"request_ids": [f"generate-tokens-{name}" for name in names]})

    async def _exchange(self, weights: Weights, version: int) -> None:
        # What one of several processes pauses would cut off what another one tries out.
        await once_for_all(partial(super()._exchange, weights, version))
        self._tried = True

    async def _pause(self) -> None:
        await self._post("/pause?mode=abort")

    async def _push(self, weights: Weights, version: int) -> None:
        await self._sync.push(weights)
        await self._post("/update_weight_version", {"new_version": str(version)})

    async def _resume(self) -> None:
        await self._post("/resume")
        if not self._tried:
            await self._try_out()

    async def _load_file(self, path: Path) -> None:
        await self._post("/collective_rpc", {"method": "load_weight_file", "args": [str(path)]})

    async def _stop(self) -> None:
        await self._sync.close()
        if self._http is not None:
            await self._http.aclose()

    async def _try_out(self) -> None:
        """Refuse a server that reports other logprobs than those it samples from, or that runs another model."""
        prompt = [1, 2, 3]
        sure = await self._ask("probe-0", prompt, Sampling(max_tokens=1), (), top_k=1)
        if not sure.ids:
            raise InfrastructureError(f"{self._url} broke off the request that tries it out; is another run using it?")
        if abs(sure.logprobs[0]) > 1e-3:
            raise RecipeError(
                f"{self._url} reports logprobs of another distribution than it samples from; start it with "
                "--logprobs-mode processed_logprobs"
            )
        if any(hasattr(tensor, "full_tensor") for tensor in self._model.state_dict().values()):
            return  # a sharded learner cannot be asked by one process alone
        free = await self._ask("probe-1", prompt, Sampling(max_tokens=_PROBE_TOKENS), ())
        drift = await asyncio.to_thread(_drift, self._model, prompt, free)
        if not drift <= self._tolerance:
            raise RecipeError(
                f"{self._url} runs another model than the learner: its logprobs lie {drift:.2f} from the learner's; "
                "serve the learner's model there"
            )

    async def _post(self, route: str, body: Any = None) -> Any:
        import httpx

        assert self._http is not None
        try:
            found = await self._http.post(self._url + route, json=body)
        except httpx.HTTPError as error:
            raise InfrastructureError(f"{self._url} does not answer: {type(error).__name__}: {error}") from error
        bare = route.split("?")[0]
        if found.status_code in (403, 404):
            raise RecipeError(f"{self._url} has no {bare}; {_ADVICE.get(bare, _DEV_ADVICE)}")
        if found.status_code != 200:
            said = " ".join(found.text.split())[:300]
            raise InfrastructureError(f"{self._url}{bare} answers with status {found.status_code}: {said}")
        try:
            return found.json() if found.content else None
        except ValueError as error:
            raise InfrastructureError(f"{self._url}{bare} answers with something else than JSON") from error


def _drift(model: Any, prompt: list[int], made: Part) -> float:
    """Return the mean distance between a part's logprobs and the model's own."""
    import torch

    whole = torch.tensor([[*prompt, *made.ids]], device=model.device)
    with torch.no_grad():
        logp = torch.log_softmax(model(whole).logits.float()[0, len(prompt) - 1 : -1], -1).cpu()
    own = logp.gather(-1, torch.tensor(made.ids)[:, None])[:, 0]
    return float((own - torch.tensor(made.logprobs)).abs().mean())
