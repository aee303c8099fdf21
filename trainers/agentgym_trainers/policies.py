"""A trained model as a policy, from what a run left behind."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, ValidationError

from agentgym import registry
from agentgym.errors import RecipeError
from agentgym.policy import Sampling
from agentgym.rollout import Limits
from agentgym.types import Record
from agentgym_trainers.addresses import read_options
from agentgym_trainers.checkpoint import Checkpoint, find
from agentgym_trainers.engines.hf import HFEngine
from agentgym_trainers.models import chat_of, load_model, longest_context
from agentgym_trainers.policy import TokenPolicy
from agentgym_trainers.settings import ChatSettings, ComputeSettings, ModelSettings, TrainerSettings

_ADDRESS = re.compile(r"(?P<path>.*?)(?:,(?P<options>\w+=.*))?", re.DOTALL)


class CheckpointOptions(Record):
    """How a checkpoint plays; None leaves it to the recipe of its run."""

    which: str = "latest"
    """Of a run's checkpoints: latest, best, or a step."""
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] | None = None
    """Where to compute; by default the recipe's device where this machine has it, and else the CPU."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of weights and arithmetic; by default the recipe's on the recipe's device, and else float32."""
    context_length: Annotated[int, Field(ge=1)] | None = None
    """Tokens, prompt and answers together; without a recipe, what the model allows."""
    max_batch: Annotated[int, Field(ge=1)] = 256
    """Requests computed at once."""


def named_checkpoint(address: str, *, sampling: Sampling | None = None) -> TokenPolicy:
    """Return the policy that a path names, with options after commas: `runs/first,which=best,device=cuda`.

    Raises:
        RecipeError: an option is none, or as `checkpoint_policy` does.
        CheckpointError: the run has no such checkpoint.
    """
    found = None if Path(address).exists() else _ADDRESS.fullmatch(address)
    path, text = (found["path"], found["options"]) if found else (address, None)
    options = read_options(
        text or "",
        CheckpointOptions,
        list(CheckpointOptions.model_fields),
        owner="checkpoint",
        example="which=best",
        words={"which"},
    )
    return checkpoint_policy(path, sampling=sampling, options=options)


def checkpoint_policy(
    path: str | Path, *, sampling: Sampling | None = None, options: CheckpointOptions | None = None
) -> TokenPolicy:
    """Return a policy that plays with a model, as its run did: with its recipe's chat format, context and limits.

    Args:
        path: a run's folder, a checkpoint's folder, or a Hugging Face folder or name.
        sampling: how to draw; by default at temperature 1.
        options: which model, and where and how it computes.

    Raises:
        RecipeError: no model can be loaded from there, or it reads no such context or other tokens; or there is no
            such device.
        CheckpointError: the run has no such checkpoint.
    """
    wanted = options or CheckpointOptions()
    if wanted.which != "latest" and not (Path(path) / "checkpoints").is_dir():
        raise RecipeError(
            f"which={wanted.which} chooses among a run's checkpoints, and {str(path)!r} is no run's folder"
        )
    checkpoint = find(Path(path), wanted.which)
    said = _Trained() if checkpoint is None else _Trained.of(checkpoint)
    device = wanted.device or said.device
    if not _is_here(device):
        raise RecipeError(f"wanted {device}, found {torch.cuda.device_count()} GPUs that torch can use; set device=cpu")
    model, tokenizer = load_model(path if checkpoint is None else checkpoint.model_path, device)
    if (wanted.dtype or (said.dtype if device == said.device else None)) == "bfloat16":
        for one in model.parameters():  # and no buffer: positions need their float32
            one.data = one.data.to(torch.bfloat16)
    asked = wanted.context_length
    limit = longest_context(model.config, asked or said.context_length or ModelSettings().context_length)
    if asked is not None and asked > limit:
        raise RecipeError(f"wanted a context of at most the {limit} tokens that the model reads, found {asked}")
    chat = chat_of(model, tokenizer, said.chat)
    context = min(asked or said.context_length or limit, limit)
    engine = HFEngine(model, max_batch=wanted.max_batch)
    return TokenPolicy(engine, chat, sampling or Sampling(), context, limits=said.limits)


@dataclass(frozen=True, slots=True)
class _Trained:
    """What a checkpoint's recipe says, where its trainer's settings have it."""

    chat: ChatSettings = field(default_factory=ChatSettings)
    context_length: int | None = None
    device: str = "cpu"
    """The recipe's, if this machine has it."""
    dtype: str = "float32"
    """There."""
    limits: Limits | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Trained:
        """Read it.

        Raises:
            RecipeError: it has fields that this version does not know.
        """
        try:
            return cls._of(checkpoint)
        except ValidationError as error:
            first = error.errors()[0]
            raise RecipeError(
                f"the recipe of {checkpoint.path} cannot be read: {'.'.join(map(str, first['loc']))}: {first['msg']}; "
                "name its model folder, or install the version that wrote it"
            ) from error

    @classmethod
    def _of(cls, checkpoint: Checkpoint) -> _Trained:
        limits = Limits.model_validate(checkpoint.recipe.get("limits") or {})
        section = checkpoint.recipe.get("trainer") or {}
        name = section.get("name", "native")
        known = name in registry.names("trainers")
        kind = getattr(registry.lookup("trainers", name), "Settings", None) if known else None
        if not (section and isinstance(kind, type) and issubclass(kind, TrainerSettings)):
            return cls(limits=limits)
        chat = ChatSettings.model_validate(section.get("chat") or {})
        context = ModelSettings.model_validate(section.get("model") or {}).context_length
        compute = ComputeSettings.model_validate(section.get("compute") or {})
        if not _is_here(compute.device):
            return cls(chat, context, limits=limits)
        return cls(chat, context, compute.device, compute.dtype, limits)


def _is_here(device: str) -> bool:
    return device == "cpu" or (torch.device(device).index or 0) < torch.cuda.device_count()
