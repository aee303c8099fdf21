"""Arithmetic with a two-operand calculator: the smallest multi-turn tool-use family."""

from agentgym_envs.calculator.env import CalculatorEnv
from agentgym_envs.calculator.tasks import calculator_tasks, generate

__all__ = ["CalculatorEnv", "calculator_tasks", "generate"]
