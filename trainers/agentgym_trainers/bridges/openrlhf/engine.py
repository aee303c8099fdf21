"""OpenRLHF's rollout worker as an engine: tokens in, tokens out, with sampling parameters of our own making."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentgym.errors import InfrastructureError
from agentgym.policy import Generation, Sampling, StopReason


class RolloutEngine:
    """Samples with the worker that called the executor; its weights are OpenRLHF's business.

    All samples of a prompt are given one parameters object. It is only read here: every turn gets an object of its
    own, made anew, because vLLM derives more from the arguments than their fields.
    """

    weight_version = 0

    def __init__(self, worker: Any, given: Any, *, seeded: bool = True) -> None:
        """Take what OpenRLHF passes to an executor.

        Args:
            worker: has an async `generate(prompt_token_ids, sampling_params, multi_modal_data=None)`.
            given: vLLM's SamplingParams, or anything of that shape that is built with keywords.
            seeded: draw each turn with its own seed.
        """
        self._worker = worker
        self._given = given
        self._seeded = seeded
        self.records_logprobs = given.logprobs is not None
        """Whether OpenRLHF wants the behaviour's logprobs; without them all are 0."""

    def open(self, session: str) -> None:
        """Batches are formed as requests come."""

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        session: str,  # noqa: ARG002 -- the worker names requests itself
        stop_ids: Sequence[int],
    ) -> Generation:
        """Sample until a stop id or the token limit.

        Raises:
            InfrastructureError: the worker failed.
        """
        try:
            output = await self._worker.generate(list(prompt_ids), self._params(sampling, stop_ids))
        except Exception as error:
            raise InfrastructureError(f"the rollout worker failed: {type(error).__name__}: {error}") from error
        if output is None:
            raise InfrastructureError("the rollout worker ended a request without an answer")
        made = output.outputs[0]
        ids = list(made.token_ids)
        return Generation(ids, self._logprobs(ids, made.logprobs), _stop_reason(made.finish_reason))

    def release(self, session: str) -> None:
        """The worker keeps nothing for an episode."""

    async def close(self) -> None:
        """The worker belongs to OpenRLHF."""

    def _params(self, sampling: Sampling, stop_ids: Sequence[int]) -> Any:
        return type(self._given)(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=self._given.top_k,
            max_tokens=sampling.limit,
            min_tokens=0,  # more would forbid the stop tokens, and report logprobs of what is left
            seed=sampling.seed if self._seeded else None,
            stop_token_ids=list(stop_ids),
            ignore_eos=True,  # only the chat format's stop tokens stop
            logprobs=0 if self.records_logprobs else None,
            detokenize=False,
        )

    def _logprobs(self, ids: list[int], found: Sequence[Any] | None) -> list[float]:
        if not self.records_logprobs:
            return [0.0] * len(ids)
        if found is None or len(found) != len(ids):
            raise InfrastructureError(
                f"wanted a logprob for each of {len(ids)} sampled tokens, found {0 if found is None else len(found)}"
            )
        return [float(one[token].logprob) for token, one in zip(ids, found, strict=True)]


def _stop_reason(finish_reason: str | None) -> StopReason:
    if finish_reason == "stop":
        return "stop"
    return "length" if finish_reason == "length" else "abort"
