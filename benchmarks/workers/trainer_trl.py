"""TRL's GRPOTrainer in its environment mode, for a while; one JSON object on standard output."""

from __future__ import annotations

import itertools
import json
import random
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_template

from agentgym_trainers.engines.vllm_worker import WeightFiles


def wait(latency: str) -> None:
    """Sleep as `benchmarks.trainer_task.wait` does."""
    if latency == "heavy":
        time.sleep(min(3.0, 0.02 * random.paretovariate(1.1)))
    elif float(latency):
        time.sleep(float(latency))


class Calculator:
    """One episode's calculator."""

    latency = "0"

    def reset(self, **row: Any) -> None:
        """Begin with what follows the first operation."""
        self._later = list(row["later"])

    def calc(self, expression: str) -> str:
        """Add or subtract two numbers.

        Args:
            expression: such as 38+47.

        Returns:
            The result, and the next operation if there is one.
        """
        wait(self.latency)
        found = re.fullmatch(r"(\d{1,6})([+-])(\d{1,6})", expression.strip())
        if not found:
            return "error: wanted a+b or a-b"
        left, sign, right = found.groups()
        value = str(int(left) + int(right) if sign == "+" else int(left) - int(right))
        return value + (self._later.pop(0) if self._later else "")


class Measured(GRPOTrainer):  # type: ignore[misc]
    """Notes how long sampling takes, without the scoring of what was sampled, and how many tokens the model wrote."""

    rollout, cpu, sampled = 0.0, 0.0, 0
    scoring = (0.0, 0.0)

    def _generate_and_score_completions(self, *given: Any, **named: Any) -> Any:
        began, cpu = time.monotonic(), time.process_time()
        self.scoring = (0.0, 0.0)
        found = super()._generate_and_score_completions(*given, **named)
        self.rollout = time.monotonic() - began - self.scoring[0]
        self.cpu = time.process_time() - cpu - self.scoring[1]
        mask = found["tool_mask"] if "tool_mask" in found else found["completion_mask"]
        self.sampled = int((mask * found["completion_mask"]).sum())
        return found

    def _get_per_token_logps_and_entropies(self, *given: Any, **named: Any) -> Any:
        began, cpu = time.monotonic(), time.process_time()
        found = super()._get_per_token_logps_and_entropies(*given, **named)
        wall, spent = self.scoring
        self.scoring = (wall + time.monotonic() - began, spent + time.process_time() - cpu)
        return found


class Clock(TrainerCallback):  # type: ignore[misc]
    """Notes what each step cost, and ends in time."""

    def __init__(self, seconds: float, fewest: int) -> None:
        self.steps: list[dict[str, float]] = []
        self.trainer: Any = None
        self._seconds = seconds
        self._fewest = fewest
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self._wall = time.monotonic()
        self._began = self._began or self._wall

    def on_step_end(self, *given: Any, **_: Any) -> Any:
        """Stop the clock."""
        wall = time.monotonic() - self._wall
        self.steps.append(
            {
                "seconds": wall,
                "cpu": self.trainer.cpu,
                "rollout": self.trainer.rollout,
                "learn": wall - self.trainer.rollout,
                "sampled": self.trainer.sampled,
                "trained": self.trainer.sampled,
            }
        )
        control = given[2]
        if time.monotonic() - self._began > self._seconds and len(self.steps) >= self._fewest:
            control.should_training_stop = True
        return control


def expressions(operators: int, seed: int) -> Iterator[dict[str, Any]]:
    """Generate rows of expressions with their values, as `agentgym_envs.calculator.generate` does."""
    draw = random.Random(seed)
    while True:
        total = draw.randint(10, 99)
        begin, terms = str(total), []
        for _ in range(operators):
            operand = draw.randint(10, 99)
            sign = "-" if operand <= total and draw.random() < 0.5 else "+"
            total += operand if sign == "+" else -operand
            terms.append(f"{sign}{operand}")
        prompt = [{"role": "user", "content": begin + terms[0]}]
        yield {"prompt": prompt, "later": terms[1:], "answer": str(total)}


def exact(completions: list[list[dict[str, Any]]], answer: list[str], **_: Any) -> list[float]:
    """Reward 1 for a last message that is the value."""
    return [
        float((one[-1].get("content") or "").strip() == wanted and one[-1]["role"] == "assistant")
        for one, wanted in zip(completions, answer, strict=True)
    ]


def hand_over(sampler: Any) -> None:
    """Give vLLM the new weights: its CPU build cannot `load_weights` in a worker, which is what TRL does."""
    worker = sampler.llm.llm_engine.model_executor.driver_worker.worker
    worker.reload_weights(weights_iterator=sampler._iter_named_params())
    WeightFiles.repack_tied_head(worker)
    sampler.llm.reset_prefix_cache()


def train(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Train for so many seconds, and return what each step cost."""
    Calculator.latency = asked["latency"]
    torch.set_num_threads(asked["threads"] or torch.get_num_threads())
    tokenizer = AutoTokenizer.from_pretrained(asked["model"])
    tokenizer.response_template = qwen3_template
    rows = list(itertools.islice(expressions(asked["operators"], seed=0), 4000))
    clock, batch = Clock(asked["seconds"], asked["fewest"]), asked["tasks"] * asked["attempts"]
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=False, report_to=[], save_strategy="no", logging_steps=1,
            max_steps=10**6, per_device_train_batch_size=asked["rows"],
            gradient_accumulation_steps=batch // asked["rows"],
            num_generations=asked["attempts"], max_completion_length=asked["completion"],
            max_tool_calling_iterations=asked["turns"] - 1,
            learning_rate=asked["policy_lr"], lr_scheduler_type="constant",
            adam_beta2=0.95, beta=0.0, epsilon=0.2, epsilon_high=0.28, temperature=1.0, gradient_checkpointing=False,
            disable_tqdm=True,
            **({"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": asked["context"],
                "generation_kwargs": {"max_tokens": asked["turn"]}} if asked["vllm"]
               else {"generation_kwargs": {"max_length": None, "max_new_tokens": asked["turn"]}}),
        )  # fmt: skip
        trainer = Measured(
            model=AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32),
            args=config, processing_class=tokenizer, train_dataset=Dataset.from_list(rows), reward_funcs=exact,
            environment_factory=Calculator, callbacks=[clock],
        )  # fmt: skip
        clock.trainer = trainer
        if asked["vllm"]:
            trainer.vllm_generation.sync_weights = partial(hand_over, trainer.vllm_generation)
        trainer.train()
        rewards = [one["reward"] for one in trainer.state.log_history if "reward" in one]
    steps = [{**one, "reward": reward} for one, reward in zip(clock.steps, rewards, strict=False)]
    return {"steps": steps, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


if __name__ == "__main__":
    out, sys.stdout = sys.stdout, sys.stderr
    out.write(json.dumps(train(json.loads(sys.argv[1]))) + "\n")
