"""Bundled environments; each registers under the agentgym/ namespace."""
