"""What a recipe may say about training, each section a typed record that refuses unknown fields."""

from __future__ import annotations

from inspect import signature
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from agentgym import registry
from agentgym.errors import UnknownNameError
from agentgym.toolcalls import FORMATS
from agentgym.types import Record
from agentgym_trainers.metrics import ENDS, METRICS, is_metric
from agentgym_trainers.options import checked_options

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]

_DECIDED = {
    "model": "it is the learner's",
    "batching": "it is lock-step where sampling and learning take turns, and continuous elsewhere",
    "max_batch": "trainer.compute.max_batch says it",
}
"""What the trainer tells every engine, so that no recipe may, and why."""


class ModelSettings(Record):
    """A pretrained model's folder, or the shape of a small Qwen2 made from nothing."""

    path: str | None = None
    """A Hugging Face folder or name, or a run or a checkpoint of one; None makes a new model of the shape below, and a
    tokenizer from the tasks. Beside a path the shape says nothing: so a recipe goes on from a run that it made."""
    vocab_size: Annotated[int, Field(ge=262)] = 512
    hidden: Positive = 96
    layers: Positive = 3
    heads: Positive = 4
    kv_heads: Positive = 2
    intermediate: Positive = 256
    context_length: Positive = 1024
    """Tokens, prompt and answers together; also an upper limit for a pretrained model."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelSettings:
        if self.hidden % self.heads or (self.hidden // self.heads) % 2 or self.heads % self.kv_heads:
            raise ValueError(
                f"wanted hidden / heads even and heads / kv_heads whole, found {self.hidden} / {self.heads} and "
                f"{self.heads} / {self.kv_heads}"
            )
        return self


class ChatSettings(Record):
    """How messages become tokens."""

    thinking: Literal["fork", "keep"] = "fork"
    """Where the chat template drops earlier thoughts or moves the tools: read its rewritten context anew, or keep all
    in one context."""
    calls: str | None = None
    """How the model writes tool calls, such as hermes or mistral; null asks the chat template."""

    @field_validator("calls")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in FORMATS:
            raise UnknownNameError("tool-call format", name, FORMATS)
        return name


class EngineSettings(Record):
    """What samples tokens: a registered engine."""

    name: str = "hf"
    options: dict[str, Any] = {}
    """Its own arguments; `model`, `batching` and `max_batch` come from the trainer."""

    @model_validator(mode="after")
    def _trains(self) -> EngineSettings:
        if self.name not in registry.names("engines"):
            raise UnknownNameError("engine", self.name, registry.names("engines"))
        if self.name == "hf" and not self.options:
            return self  # known to be right, and importing it takes seconds
        target = registry.lookup("engines", self.name)
        reason = getattr(target, "not_for_training", None)
        if reason is not None:
            raise ValueError(f"the engine {self.name!r} cannot be trained with: {reason}")
        decided = next((one for one in self.options if one in _DECIDED), None)
        if decided is not None:
            raise ValueError(f"the trainer sets the engine's {decided} itself: {_DECIDED[decided]}; remove that option")
        accepted = [one for one in signature(target).parameters if one not in _DECIDED]
        unknown = next((one for one in self.options if one not in accepted), None)
        if unknown is not None:
            takes = ", ".join(accepted) or "none"
            of_hf = unknown in signature(registry.lookup("engines", "hf")).parameters
            hint = f"; another engine's go with trainer.engine={{name: {self.name}}}" if of_hf else ""
            raise ValueError(f"the engine {self.name!r} has no option {unknown!r}; it takes: {takes}{hint}")
        checked_options("options", self.name, target, self.options)
        return self


class OptimSettings(Record):
    """AdamW and its learning rate over one phase of training."""

    lr: Annotated[float, Field(gt=0)] = 2e-4
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: stay, or fall towards 0 over as many optimizer steps as the phase has at most; a step that
    teaches nothing takes none."""
    warmup_steps: Count = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    """Upper limit of the gradient's norm."""


class SftSettings(Record):
    """The supervised warm start on scripted demonstrations; loss on their assistant tokens only."""

    steps: Count = 500
    """0 skips the warm start."""
    batch_size: Positive = 64
    demonstrations: Positive = 1000
    """Train tasks to take a demonstration of."""
    hinted_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the tasks with hints whose demonstration shows the strongest hint, and is trained with it."""
    optim: OptimSettings = OptimSettings(lr=1e-3, schedule="cosine", warmup_steps=20)


class CriticSettings(Record):
    """What estimates values, for advantages that need them."""

    trunk: Literal["own", "policy"] = "own"
    """Hidden states of a model of its own, or of the policy's."""
    path: str | None = None
    """A Hugging Face folder or name for its own trunk; None copies the policy's as the phase begins."""
    trunk_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the value loss's gradient that shapes the policy's trunk; 0 leaves it to the policy loss."""
    clip: Annotated[float, Field(gt=0)] | None = 0.2
    """Values are not followed further away from those before the update; in units of reward."""
    lam: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Of the returns that it is fitted to; 1 takes the rewards as they came."""
    warmup_steps: Count = 0
    """Steps of the policy phase that train the critic alone."""
    optim: OptimSettings = OptimSettings(lr=1e-3)

    @model_validator(mode="after")
    def _consistent(self) -> CriticSettings:
        if self.trunk == "policy" and self.path is not None:
            raise ValueError(f"a critic on the policy's trunk loads no model, found path {self.path!r}; say trunk: own")
        if self.trunk == "own" and self.trunk_weight:
            raise ValueError("trunk_weight shapes the policy's trunk; say trunk: policy, or leave it out")
        return self


class PolicySettings(Record):
    """The policy-gradient phase."""

    steps: Count = 150
    tasks_per_step: Positive = 16
    attempts: Positive = 8
    """Per task: the group. Advantages that compare siblings need two at least."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of sampling and of the trained logprobs. There is no top_p: its distribution is not the one that is trained."""
    advantage: str = "grpo"
    """A registered advantage estimator."""
    advantage_options: dict[str, Any] = {}
    loss: str = "clip"
    """A registered policy loss."""
    loss_options: dict[str, Any] = {}
    """Such as clip_low, clip_high, kl_weight."""
    epochs: Positive = 1
    """Passes over the same attempts."""
    minibatches: Positive = 1
    """Optimizer steps per pass."""
    optim: OptimSettings = OptimSettings()


class LoraSettings(Record):
    """Train low-rank adapters beside frozen weights."""

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The adapters' product is scaled by alpha / rank."""
    targets: str | list[str] = "all-linear"
    """Names of the layers that get adapters; all-linear takes all but the output layer."""


class ComputeSettings(Record):
    """Where and in what portions to compute."""

    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    """cpu, cuda, or one of several GPUs, such as cuda:1."""
    threads: Count = 1
    """CPU threads; 0 leaves PyTorch's choice. A run repeats bit for bit only with the same number."""
    token_budget: Positive = 4096
    """Tokens per micro-batch, padding included; small ones suit CPUs, large ones GPUs."""
    packing: Literal["none", "rows", "prefixes"] = "none"
    """Pad rows; lay them end to end; or do so and compute once what several rows begin with."""
    logit_budget: Positive = 1 << 24
    """Logits (tokens x vocabulary) that may exist at once in the trainer."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic of training and of sampling. The learner's weights, gradients and moments stay float32; an
    engine's own weights are of this type, unless its option `dtype` says otherwise. The server of `vllm-server` knows
    nothing of it: its own `--dtype` says. bfloat16 is for GPUs."""
    recompute: bool = False
    """Keep only the layers' inputs, and compute the rest anew for gradients: less memory, a third more arithmetic.
    Without it, what elementwise arithmetic makes in norms and gated products of Llama's kind is not kept either."""
    max_batch: Positive = 256
    """Requests generated together."""
    peak_tflops: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Of one device, in 10^12 operations per second: what `speed/mfu` is a share of. Null takes that of dense bfloat16
    on a GPU whose name is known, and else reports no share."""


class ScheduleSettings(Record):
    """How sampling and learning share time."""

    max_staleness: Count = 0
    """Weight updates that may lie between a group's oldest token and the weights that train on it. 0 samples and
    learns in turns, on-policy and reproducibly; from 1 on, episodes are sampled while the learner works."""
    in_flight: Positive | None = None
    """Groups sampled, ready or being trained at once; null: as many as the bound on staleness lets."""
    redo: Count = 1
    """How often a task is begun anew whose group became too stale, before it is let go; in turns none does."""
    spare_attempts: Count = 0
    """Attempts started per group beyond `policy.attempts`; the first to end are trained, the others cancelled.
    This prefers what is quick: `schedule/attempts_cut` says how much was cut."""

    @model_validator(mode="after")
    def _needs_overlap(self) -> ScheduleSettings:
        for name in ("in_flight", "spare_attempts"):
            if getattr(self, name) != type(self).model_fields[name].default and not self.max_staleness:
                raise ValueError(
                    f"{name} has a meaning only where sampling overlaps learning; set max_staleness to 1, or leave "
                    f"{name} out"
                )
        return self


class CheckpointSettings(Record):
    """When to write checkpoints and how many to keep."""

    every: Positive = 10
    """Steps of the policy phase; the end of each phase is always written."""
    sft_every: Positive = 200
    """Steps of the warm start."""
    keep: Positive = 2
    """How many of the newest stay; the newest that breaks no rule of `watch.stop` stays in any case."""
    best: Annotated[str, Field(pattern="^eval/")] | None = None
    """An evaluation's metric, such as eval/pass@1: the checkpoint of its highest value is written and stays as well."""

    @field_validator("best")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and not is_metric(name):
            raise UnknownNameError("metric", name, [one for one in METRICS if one.startswith("eval/")])
        return name


class StopRule(Record):
    """Ends a run when a metric stays beyond a bound."""

    metric: str
    """A metric of a step or of an evaluation, such as train/entropy; docs/trainer.md lists them."""
    below: float | None = None
    above: float | None = None
    steps: Positive = 1
    """How many times in a row. From the first on, only the end of a phase writes a checkpoint, marked as suspicious,
    and the last one from before stays."""

    @model_validator(mode="after")
    def _bounded(self) -> StopRule:
        if (self.below is None) == (self.above is None):
            found = "none" if self.below is None else "both"
            raise ValueError(f"wanted one of below and above for {self.metric!r}, found {found}")
        if not is_metric(self.metric):
            raise UnknownNameError("metric", self.metric, [*METRICS, *ENDS])
        return self


class WatchSettings(Record):
    """What a run watches itself for. A loss or a gradient that is no number always ends it."""

    window: Annotated[int, Field(ge=4)] = 20
    """Steps over which the trends of outcome and step reward are compared."""
    stop: tuple[StopRule, ...] = ()


class TrainerSettings(Record):
    """All of the native trainer's sections."""

    model: ModelSettings = ModelSettings()
    chat: ChatSettings = ChatSettings()
    engine: EngineSettings = EngineSettings()
    sft: SftSettings = SftSettings()
    policy: PolicySettings = PolicySettings()
    critic: CriticSettings | None = None
    lora: LoraSettings | None = None
    compute: ComputeSettings = ComputeSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    watch: WatchSettings = WatchSettings()

    @model_validator(mode="after")
    def _enough_in_flight(self) -> TrainerSettings:
        wanted, found = self.policy.tasks_per_step, self.schedule.in_flight
        if found is not None and found < wanted:
            raise ValueError(
                f"wanted schedule.in_flight of at least policy.tasks_per_step, {wanted}, or a step would never have "
                f"its groups; found {found}"
            )
        return self

    @model_validator(mode="after")
    def _policy_learns(self) -> TrainerSettings:
        if self.critic is not None and self.critic.warmup_steps >= self.policy.steps:
            raise ValueError(
                f"wanted critic.warmup_steps below policy.steps, {self.policy.steps}, or the policy would never learn; "
                f"found {self.critic.warmup_steps}"
            )
        return self
