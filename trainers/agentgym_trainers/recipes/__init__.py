"""Bundled recipes: `agentgym train NAME`."""
