"""What a recipe may say about OpenRLHF beside the sections that it shares with the native trainer."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from agentgym.types import Record
from agentgym_trainers.settings import TrainerSettings

PACKAGE = "openrlhf"
VERSION = "0.11.2"
"""The release whose options and contracts this bridge was written for and is tested with."""

Positive = Annotated[int, Field(ge=1)]


class Options(Record):
    """Machines and parallelism; by default one machine with eight GPUs, shared as suits the schedule."""

    address: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """Where a Ray cluster takes jobs, such as http://HEAD:8265; null runs on the cluster of this machine. The run's
    folder must then be the same files on all machines."""
    nodes: Positive = 1
    gpus_per_node: Positive = 8
    """That the training may use, for all that it does."""
    colocate: bool | None = None
    """Whether learning and sampling take turns on the same GPUs; null says yes unless `schedule.max_staleness` lets
    them overlap, which needs GPUs for each."""
    learner_gpus_per_node: Positive | None = None
    """GPUs that learn; null takes all where sampling shares them, else half, or a quarter beside a critic."""
    critic_gpus_per_node: Positive | None = None
    """GPUs of a critic, where there is one and it does not share; null takes as many as the policy's learner."""
    engines: Positive | None = None
    """vLLM engines; null takes as many as the other GPUs hold."""
    tensor_parallel: Positive = 1
    """GPUs per engine."""
    memory_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of a GPU, for an engine; null takes 0.6 where it shares the GPU with learning, else 0.9."""
    prefix_cache: bool = True
    """Engines keep what later turns read again; dropped at every update of the weights."""
    cuda_graphs: bool = True
    """False starts engines sooner and samples slower."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed shards: nothing, moments, gradients too, weights too."""
    offload: bool = False
    """Keep the optimizer's moments in the machine's memory."""
    attention: str = "flash_attention_2"
    """Implementation in the learner, by transformers' name; packing needs a flash attention."""
    ring: Positive = 1
    """GPUs over which one long sequence is laid (ring attention); needs packing."""
    dynamic_batch: bool | None = None
    """Fill micro-batches up to `compute.token_budget`; null says yes where rows are packed, which it needs."""
    correction: Literal["none", "clip", "mask", "sequence"] = "clip"
    """What becomes of tokens that vLLM and the learner rate differently: nothing, weights clipped to the bounds (TIS),
    tokens beyond the bounds masked (IcePop), whole attempts masked."""
    correction_bounds: tuple[float, float] = (0.0, 2.0)
    """Of the ratio of the learner's probability to vLLM's."""
    partial: bool = False
    """Go on with unfinished answers over an update of the weights, where sampling overlaps learning."""
    seeded: bool = True
    """Give vLLM a seed for every turn. On a CPU it cannot take one for prompts that it computes in chunks."""
    deterministic: bool = False
    """Slower kernels that repeat."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.correction_bounds
        if not 0 <= low < high:
            raise ValueError(f"wanted correction_bounds of a lower and a higher ratio, found {low:g} and {high:g}")
        gpus = self.nodes * self.gpus_per_node
        if self.tensor_parallel > gpus:
            raise ValueError(f"wanted tensor_parallel of at most the {gpus} GPUs, found {self.tensor_parallel}")
        return self


class Settings(TrainerSettings):
    """The native trainer's sections, and one for what only OpenRLHF has."""

    openrlhf: Options = Options()
