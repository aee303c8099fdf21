"""The native trainer: exact tokens, engines, GRPO, and a loop one can read."""
