"""Settings of the whole suite."""

from hypothesis import settings

# A busy machine is no failure: pytest-timeout bounds each test, so hypothesis need not bound each example.
settings.register_profile("agentgym", deadline=None)
settings.load_profile("agentgym")
