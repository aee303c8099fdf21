"""TRL's GRPOTrainer on our calculator, in an environment that has TRL; one JSON object on standard output.

Run as `python trl_runs.py FOLDER`: a tiny model is made and warmed up there, and trained on in every way. With torchrun
every process trains that model, and writes a file.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import get_json_schema
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_template

from agentgym import registry
from agentgym.errors import AgentgymError
from agentgym.recipe import Recipe
from agentgym.rollout import Limits
from agentgym.task import Task
from agentgym.types import Group, Submission, Trust, Verdict
from agentgym_envs.calculator import CalculatorEnv, calculator_tasks
from agentgym_trainers.bridges.trl import TrlBridge
from agentgym_trainers.chat import ChatFormat
from agentgym_trainers.demonstrations import demonstrate, tokenise
from agentgym_trainers.learner import Learner
from agentgym_trainers.settings import ComputeSettings, OptimSettings
from benchmarks.trainer_task import write_tokenizer

ENVIRONMENT = "tests/HermesCalculator-v0"
CONTEXT, GROUP, STEPS, WARM_STEPS = 256, 6, 3, 250
ARGUMENTS = {"calc": "expression", "answer": "value"}


class HermesCalculator(CalculatorEnv):
    """The calculator, whose demonstrations call its tools as Qwen's models do."""

    tasks = calculator_tasks(train=2, validation=2, test=2, difficulty=0)

    def demonstration(self, task: Task, rng: np.random.Generator) -> Sequence[str]:
        """Return a good one, or as often one that guesses."""
        lines = self.oracle(task) if rng.random() < 0.5 else ["```answer\n1"]
        named = [one.removeprefix("```").partition("\n") for one in lines]
        calls = [{"name": name, "arguments": {ARGUMENTS[name]: text}} for name, _, text in named]
        return [f"<tool_call>\n{json.dumps(one)}\n</tool_call>" for one in calls]


class Moody(HermesCalculator):
    """One whose grader cannot judge every third answer."""

    answers = count()

    def grade(self, task: Task, submission: Submission) -> Verdict | bool:  # type: ignore[override]
        """Judge, or not."""
        if next(self.answers) % 3 == 1:
            return Verdict(value=None, level="unscored", trust=Trust.RPC, error="the grader is moody")
        return super().grade(task, submission)


class Watched(GRPOTrainer):  # type: ignore[misc]
    """Keeps what TRL makes of a rollout."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.made: list[dict[str, Any]] = []

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        found = super()._generate_and_score_completions(inputs)
        rewards = [None if value != value else value for value in self._logs["rewards"][self.reward_func_names[0]]]
        said = {"rewards": rewards[-len(inputs) :], "tasks": [one["task"] for one in inputs]}
        kept = ("advantages", "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask")
        self.made.append({**said, **{name: found[name].tolist() for name in kept if name in found}})
        return found


def bridge_of(env_id: str = ENVIRONMENT, on_groups: Any = None, **sections: Any) -> TrlBridge:
    """Return the bridge of a recipe."""
    limits = {"max_tokens_per_turn": 48, "max_tokens": 160}
    environment = {"id": env_id, "options": {"max_turns": 6}}
    recipe = Recipe.parse({"name": "trl", "environment": environment, "limits": limits, **sections})
    return TrlBridge(recipe.prepare(), on_groups=on_groups)


def config(folder: Path, **named: Any) -> GRPOConfig:
    """Return how TRL trains here."""
    shown: dict[str, Any] = {
        "output_dir": str(folder / "out"), "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no",
        "logging_steps": 1, "max_steps": STEPS, "per_device_train_batch_size": 2 * GROUP, "num_generations": GROUP,
        "gradient_accumulation_steps": 1, "max_completion_length": 200, "learning_rate": 1e-3, "disable_tqdm": True,
    }  # fmt: skip
    return GRPOConfig(**{**shown, **named})


def warm_start(folder: Path, bridge: TrlBridge) -> dict[str, Any]:
    """Write a tiny model that imitates demonstrations, shown the tools as we render them and as TRL does."""
    env = bridge.prepared.make_env()
    make_env, tasks = bridge.prepared.make_env, bridge.prepared.train
    played = [asyncio.run(demonstrate(make_env, tasks, Limits(), hinted_share=0.0, seed=seed)) for seed in range(12)]
    shown = [one for part in played for one in part]
    ours = [one.schema for one in env.tools.values()]
    theirs = [get_json_schema(getattr(bridge.environment, name)) for name in sorted(env.tools)]
    tokenizer = write_tokenizer(folder / "model")
    tokenizer.response_template = qwen3_template
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **shape,
        )
    )  # fmt: skip
    chat = ChatFormat(tokenizer)
    rows = [one.training_tokens() for one in asyncio.run(tokenise(shown, chat, CONTEXT))]
    learner = Learner(model, ComputeSettings())
    learner.begin(OptimSettings(lr=3e-3), WARM_STEPS)
    losses = []
    for step in range(WARM_STEPS):
        order = torch.Generator().manual_seed(step)
        picked = torch.randint(len(rows), (16,), generator=order).tolist()
        losses.append(learner.sft_step([rows[index] for index in picked])["loss"])
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return {"losses": [losses[0], losses[-1]], "ours": ours, "theirs": theirs}


def with_rollouts(folder: Path, env_id: str = ENVIRONMENT, lora: Any = None, **named: Any) -> dict[str, Any]:
    """Train with `rollout_func`; tell what was sampled, what it was worth, and what TRL made of it."""
    groups: list[Group] = []
    bridge = bridge_of(env_id, on_groups=groups.extend)
    calls: list[dict[str, Any]] = []

    def rollout(prompts: Sequence[Any], trainer: Any) -> dict[str, Any]:
        found = bridge.rollout(prompts, trainer)
        calls.append({**found, "fresh": fresh_logprobs(trainer.model, found), "training": trainer.model.training})
        return found

    trainer = Watched(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        args=config(folder, **named), rollout_func=rollout, reward_funcs=bridge.reward, train_dataset=bridge.dataset(),
        peft_config=lora,
    )  # fmt: skip
    before = {name: one.detach().clone() for name, one in trainer.model.named_parameters()}
    trainer.train()
    played = [one for group in groups for one in group.trajectories]
    return {
        "calls": calls,
        "made": trainer.made,
        "changed": changed(trainer.model, before),
        "sum": sum(float(one.detach().double().sum()) for one in trainer.model.parameters()),
        "steps": trainer.state.global_step,
        "log": [{key: value for key, value in one.items() if value == value} for one in trainer.state.log_history],
        "played": [
            {
                "task": one.task_id, "value": one.verdict.value if one.verdict else None, "end": one.end,
                "ids": one.tokens.ids if one.tokens else [], "kinds": one.tokens.kinds if one.tokens else [],
                "turns": len(one.turns),
            }
            for one in played
        ],
    }  # fmt: skip


def with_environments(folder: Path, env_id: str = ENVIRONMENT, **named: Any) -> dict[str, Any]:
    """Train with `environment_factory`."""
    bridge = bridge_of(env_id)
    graded: list[Any] = []

    class Noted(bridge.environment):  # type: ignore[misc, name-defined]
        """Notes what was said of each episode."""

        def get_reward(self) -> float | None:
            episode = self._episode
            found: float | None = super().get_reward()
            graded.append({"reward": found, "open": episode is not None})
            return found

    Noted.__name__ = bridge.environment.__name__
    trainer = Watched(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        args=config(folder, max_tool_calling_iterations=6, **named), environment_factory=Noted,
        train_dataset=bridge.dataset(),
    )  # fmt: skip
    before = {name: one.detach().clone() for name, one in trainer.model.named_parameters()}
    trainer.train()
    texts = [trainer.processing_class.batch_decode(one["completion_ids"]) for one in trainer.made]
    prompts = [trainer.processing_class.decode(one["prompt_ids"][0]) for one in trainer.made]
    return {
        "made": trainer.made, "graded": graded, "changed": changed(trainer.model, before), "texts": texts,
        "steps": trainer.state.global_step, "prompts": prompts, "names": trainer.reward_func_names,
    }  # fmt: skip


def refusals(folder: Path) -> dict[str, str]:
    """Return what is said of everything that cannot work."""
    bridge = bridge_of()
    held_out = [{"prompt": [{"role": "user", "content": "", "task": bridge.prepared.held_out[0].id}]}] * 4
    plain = [{"prompt": [{"role": "user", "content": "38+47"}]}] * 4
    rates = {"by": "grader", "rates": {"grade": {"rho0": 0.25, "rho1": 0.25}}, "learn_after": None}
    forward = bridge_of(reward={"name": "forward", "options": {**rates, "rescale": False}})
    backward = bridge_of(reward={"name": "backward", "options": rates})
    tries: Mapping[str, tuple[TrlBridge, dict[str, Any], Any]] = {
        "held out": (bridge, {}, Dataset.from_list(held_out)),
        "no task": (bridge, {}, Dataset.from_list(plain)),
        "top_k": (bridge, {"top_k": 5}, bridge.dataset()),
        "template": (bridge, {"chat_template_kwargs": {"enable_thinking": False}}, bridge.dataset()),
        "shift": (forward, {"scale_rewards": "none"}, bridge.dataset()),
        "scale": (backward, {}, bridge.dataset()),
    }
    said = {}
    for name, (bridge, settings, dataset) in tries.items():
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(folder / "model"), args=config(folder, **settings),
            rollout_func=bridge.rollout, reward_funcs=bridge.reward, train_dataset=dataset,
        )  # fmt: skip
        try:
            trainer.train()
        except AgentgymError as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def fresh_logprobs(model: Any, found: Mapping[str, Any]) -> list[list[float]]:
    """Return what a plain forward pass says of each completion's tokens."""
    said = []
    training = model.training
    model.eval()
    with torch.no_grad():
        for prompt, completion in zip(found["prompt_ids"], found["completion_ids"], strict=True):
            logits_LV = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
            logp_LV = torch.log_softmax(logits_LV.float(), dim=-1)
            said.append(logp_LV.gather(1, torch.tensor(completion)[:, None])[:, 0].tolist())
    model.train(training)
    return said


def changed(model: Any, before: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the parameters that are not what they were."""
    return [name for name, one in model.named_parameters() if not torch.equal(one, before[name])]


def in_ranks(folder: Path) -> None:
    """Train with rollouts in each process of torchrun, and write what this one saw."""
    found = with_rollouts(folder, per_device_train_batch_size=GROUP, max_steps=2)
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))


def main(folder: Path) -> dict[str, Any]:
    """Run everything."""
    return {
        "warm": warm_start(folder, bridge_of()),
        "rollouts": with_rollouts(folder),
        "moody": with_rollouts(folder, "tests/Moody-v0", max_steps=2),
        "lora": with_rollouts(folder, lora=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), max_steps=2),
        "environments": with_environments(folder),
        "moody environments": with_environments(folder, "tests/Moody-v0", max_steps=2),
        "stopping": with_environments(folder, max_steps=1, max_completion_length=8),
        "refused": refusals(folder),
    }


if __name__ == "__main__":
    out, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(1)
    registry.register(ENVIRONMENT, HermesCalculator)
    registry.register("tests/Moody-v0", Moody)
    if "RANK" in os.environ:
        in_ranks(Path(sys.argv[1]))
    else:
        out.write(json.dumps(main(Path(sys.argv[1]))) + "\n")
