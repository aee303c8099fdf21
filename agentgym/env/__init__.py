"""The base of every environment: one episode of one task, as a synchronous `gymnasium.Env`."""

from agentgym.env.agent_env import AgentEnv
from agentgym.env.contract import Guard
from agentgym.env.messages import Observation, as_messages, info_signals
from agentgym.tools import Submit, tool

__all__ = ["AgentEnv", "Guard", "Observation", "Submit", "as_messages", "info_signals", "tool"]
