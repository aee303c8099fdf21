"""Puzzles that never run out: generated at any difficulty, judged by their rules, so that every solution counts."""

from agentgym_envs.puzzles.env import PuzzleEnv
from agentgym_envs.puzzles.tasks import FAMILIES, generate, puzzle_tasks

__all__ = ["FAMILIES", "PuzzleEnv", "generate", "puzzle_tasks"]
