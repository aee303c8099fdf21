"""Where a run's numbers go: always to its own metrics.jsonl, and to the trackers that the recipe names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Self

from agentgym import registry
from agentgym.recipe import Component
from agentgym.run import RunDirectory, Tracker


class Trackers:
    """Several trackers as one; the file of the run itself comes first."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)

    @classmethod
    def open(cls, run: RunDirectory, wanted: Sequence[Component], first_step: int) -> Self:
        """Open the run's own tracker and those that a recipe names.

        Args:
            run: where they write.
            wanted: names and options of the others.
            first_step: what was logged at this step and later, by a run that was killed, is void.
        """
        opened: list[Tracker] = [run.tracker()]
        try:
            for one in wanted:
                made = registry.create("trackers", one.name, folder=run.path, first_step=first_step, **one.options)
                opened.append(made)
        except BaseException:
            cls(opened).close()
            raise
        return cls(opened)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a step everywhere."""
        for one in self._trackers:
            one.log(step, metrics)

    def close(self) -> None:
        """Close all, even if one of them cannot be."""
        with ExitStack() as stack:
            for one in self._trackers:
                stack.enter_context(closing(one))
