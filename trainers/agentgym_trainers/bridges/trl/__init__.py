"""TRL's GRPOTrainer trains on our environments: `TrlBridge` makes what it is handed."""

from agentgym_trainers.bridges.trl.bridge import TrlBridge

__all__ = ["TrlBridge"]
