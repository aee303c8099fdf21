"""The calculator as both trainers see it: Hermes calls, a plain number as the last word, and slow tools."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from agentgym.env import tool
from agentgym.task import Task
from agentgym.types import Message, ToolCall
from agentgym_envs.calculator import CalculatorEnv, calculator_tasks
from benchmarks.trainer_chain import Chain

ENVIRONMENT = "agentgym/BenchmarkCalculator-v0"
HEAVY_SCALE_S, HEAVY_SHAPE, HEAVY_MOST_S = 0.02, 1.1, 3.0
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') }}"
    "{%- for call in message['tool_calls'] or [] -%}"
    "{%- set one = call['function'] if call['function'] else call -%}"
    "{{ '<tool_call>\\n{\"name\": \"' + one['name'] + '\", \"arguments\": ' }}"
    "{{ one['arguments'] | tojson }}{{ '}\\n</tool_call>' }}"
    "{%- endfor -%}{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
"""The Qwen family's marks, without the schemas of tools: the warm start shows how they are called."""


def wait(latency: str) -> None:
    """Sleep as long as a tool is to take: some seconds, or `heavy` for a draw from a Pareto distribution."""
    if latency == "heavy":
        time.sleep(min(HEAVY_MOST_S, HEAVY_SCALE_S * random.paretovariate(HEAVY_SHAPE)))
    elif float(latency):
        time.sleep(float(latency))


class BenchmarkCalculator(CalculatorEnv):
    """A slow calculator that tells the next operation with each result; a message without a call is the answer."""

    def __init__(self, *, latency: str = "0", operators: int = 2, **options: Any) -> None:
        tasks = calculator_tasks(difficulty=operators - 1)
        super().__init__(tasks, max_turns=Chain(operators).turns, **options)
        self._latency = latency
        self._later: list[str] = []

    def prompt(self) -> Sequence[Message]:
        """Show the first operation, and keep those that follow."""
        first, *self._later = operations(self.task.prompt)
        return [Message(role="user", content=first)]

    @tool
    def calc(self, expression: str) -> str:
        """Add or subtract two numbers, as in 38+47; the answer may be the next operation, as in 85-12."""
        value = super().calc(expression)
        return value + (self._later.pop(0) if self._later else "")

    def step(self, action: Message | str) -> Any:
        """Take a message, and a plain one as the answer."""
        message = Message(role="assistant", content=action) if isinstance(action, str) else action
        if not message.tool_calls and "<tool_call>" not in message.content:
            call = ToolCall(name="answer", arguments={"value": message.content.strip()})
            message = message.model_copy(update={"tool_calls": (call,)})
        else:
            wait(self._latency)
        return super().step(message)

    def demonstration(self, task: Task, rng: np.random.Generator) -> Sequence[str]:
        """Return the calculator's demonstration, good or bad, in this form."""
        lines = [one.removeprefix("```").partition("\n") for one in super().demonstration(task, rng)]
        calls = [{"name": name, "arguments": {"expression": text}} for name, _, text in lines[:-1]]
        return [*(f"<tool_call>\n{json.dumps(one)}\n</tool_call>" for one in calls), lines[-1][2]]


def operations(expression: str) -> list[str]:
    """Cut 38+47-12 into 38+47 and -12."""
    found: list[str] = re.findall(r"^\d+[+-]\d+|[+-]\d+", expression)
    return found


def write_tokenizer(folder: Path, context: int = Chain(2).context) -> Any:
    """Make a tokenizer of about 300 tokens, and write it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    shown = '<tool_call>\n{"name": "calc", "arguments": {"expression": "12+34-56"}}\n</tool_call> user assistant tool'
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([shown] * 3, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=specials[1:2],
        chat_template=TEMPLATE,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    made.save_pretrained(folder)
    return made
