"""Every exception that agentgym raises on purpose, in one tree, by who is to blame.

AgentgymError
├── InfrastructureError      ours: the episode is retried, then unscored (never a zero)
│   └── SandboxError         the place where agent code runs failed
├── VerifierError            the grader failed or broke its contract: unscored
├── AgentFault               the agent's doing: the episode counts, and it lost
├── HeldOutError             a task that is not for training came near a loss
├── ContaminationError       a held-out task has a twin in the training split
├── UnknownNameError         a name that no registry knows
├── CapabilityError          a backend is asked for what it cannot do
├── MissingExtraError        an optional package is not installed
├── TaskError                a task or a task file is malformed
└── RecipeError              a recipe is malformed
"""

from collections.abc import Iterable
from difflib import get_close_matches


class AgentgymError(Exception):
    """Base of all errors raised on purpose."""


class InfrastructureError(AgentgymError):
    """The machinery failed, not the agent: retry the episode, then leave it unscored."""


class SandboxError(InfrastructureError):
    """A sandbox could not start, vanished, or stopped answering."""


class VerifierError(AgentgymError):
    """A grader failed or returned something out of its contract."""


class AgentFault(AgentgymError):  # noqa: N818 -- not an error of ours
    """The agent caused the failure, by host evidence: the episode ends and scores zero."""


class HeldOutError(AgentgymError, ValueError):
    """A trajectory of a task outside the train split was offered as a training sample."""


class ContaminationError(AgentgymError, ValueError):
    """A held-out task duplicates, exactly or nearly, a training task."""


class CapabilityError(AgentgymError, ValueError):
    """A backend was asked for something that it declares it cannot do."""


class TaskError(AgentgymError, ValueError):
    """A task, or a file of tasks, is malformed."""


class RecipeError(AgentgymError, ValueError):
    """A recipe is malformed or asks for the impossible."""


class MissingExtraError(AgentgymError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f'{package} is not installed; add it with: pip install "agentgym-rlvr[{extra}]"')


class UnknownNameError(AgentgymError, KeyError):
    """A name is not registered; the message suggests the nearest one that is."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=1, cutoff=0.5)
        if near:
            hint = f"did you mean {near[0]!r}?"
        else:
            more = f" and {len(names) - 12} more" if len(names) > 12 else ""
            hint = f"known: {', '.join(names[:12])}{more}" if names else "nothing of that kind is installed"
        self.sentence = f"no {kind} is registered as {name!r}; {hint}"
        super().__init__(self.sentence)

    def __str__(self) -> str:  # KeyError would print the repr
        return self.sentence
