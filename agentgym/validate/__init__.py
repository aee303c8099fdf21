"""Tell an environment that can be trusted from one that cannot, task by task, without any model."""

from agentgym.validate.report import Finding, Validation
from agentgym.validate.run import Plan, rounds, validate

__all__ = ["Finding", "Plan", "Validation", "rounds", "validate"]
