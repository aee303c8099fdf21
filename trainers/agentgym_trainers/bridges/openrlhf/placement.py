"""Which GPUs learn, which sample, and how a batch is cut for them."""

from __future__ import annotations

from dataclasses import dataclass

from agentgym.errors import RecipeError
from agentgym_trainers.bridges.openrlhf.options import Options, Settings


@dataclass(frozen=True, slots=True)
class Placement:
    """GPUs and portions, all decided."""

    colocate: bool
    """Learning and sampling take turns on the same GPUs."""
    learner: int
    """GPUs per node that hold the policy."""
    critic: int
    """GPUs per node that hold the critic; 0 without one."""
    engines: int
    samples: int
    """Attempts per step."""
    batch: int
    """Attempts per optimizer step."""
    rollout_portion: int
    """Attempts per forward pass on one GPU, where batches are not filled by tokens."""
    train_portion: int
    """The same with gradients."""

    @classmethod
    def of(cls, settings: Settings, context: int) -> Placement:
        """Decide what the recipe leaves open.

        Args:
            settings: of the recipe.
            context: tokens of an attempt at most.

        Raises:
            RecipeError: the GPUs do not suffice, or the batch cannot be cut evenly for them.
        """
        options, policy = settings.openrlhf, settings.policy
        colocate = not settings.schedule.max_staleness if options.colocate is None else options.colocate
        if colocate and settings.schedule.max_staleness:
            raise RecipeError(
                f"trainer.openrlhf.colocate is true, trainer.schedule.max_staleness {settings.schedule.max_staleness}: "
                "GPUs that sample and learn in turns cannot do both at once; set one of them to null or 0"
            )
        learner, critic = _learners(options, colocate=colocate, valued=settings.critic is not None)
        engines = _engines(options, learner, critic, colocate=colocate)
        samples = policy.tasks_per_step * policy.attempts
        batch = _whole(samples, policy.minibatches, "attempts of a step", "trainer.policy.minibatches")
        ranks = _whole(options.nodes * learner, options.ring, "GPUs that learn", "trainer.openrlhf.ring")
        # Every rank must hold as many attempts, or those with fewer would wait for the others forever.
        _whole(samples, ranks, "attempts of a step", "GPUs that learn, over trainer.openrlhf.ring")
        own = _whole(batch, ranks, "attempts of an optimizer step", "GPUs that learn, over trainer.openrlhf.ring")
        limit = max(1, settings.compute.token_budget // context)
        return cls(
            colocate, learner, critic, engines, samples, batch,
            rollout_portion=_divisor(samples // ranks, limit), train_portion=_divisor(own, limit),
        )  # fmt: skip


def _learners(options: Options, *, colocate: bool, valued: bool) -> tuple[int, int]:
    """Return the GPUs per node of the policy and of the critic."""
    share = 1 if colocate else 4 if valued else 2
    learner = options.learner_gpus_per_node or max(1, options.gpus_per_node // share)
    critic = (options.critic_gpus_per_node or learner) if valued else 0
    if colocate and critic not in (0, learner):
        raise RecipeError(
            f"trainer.openrlhf.critic_gpus_per_node is {critic} and the policy has {learner}: what takes turns on the "
            "same GPUs has equally many; leave it out, or set colocate to false"
        )
    return learner, critic


def _engines(options: Options, learner: int, critic: int, *, colocate: bool) -> int:
    """Return how many engines there are.

    Raises:
        RecipeError: they have no GPUs.
    """
    gpus, each = options.nodes * options.gpus_per_node, options.tensor_parallel
    free = options.nodes * learner if colocate else gpus - options.nodes * (learner + critic)
    engines = options.engines or free // each
    taken = engines * each
    if colocate and (taken != free or free > gpus):
        raise RecipeError(
            "engines that share the learner's GPUs must fill them: wanted trainer.openrlhf.engines x tensor_parallel = "
            f"nodes x learner_gpus_per_node of at most {gpus}, found {engines} x {each} and {options.nodes} x {learner}"
        )
    if not colocate and (taken > free or not taken):
        raise RecipeError(
            f"of {gpus} GPUs, learning takes {gpus - free}, and {max(free, 0)} are left for engines of {each}, found "
            f"trainer.openrlhf.engines {options.engines}; raise gpus_per_node, or lower learner_gpus_per_node"
        )
    return engines


def _whole(number: int, parts: int, what: str, by: str) -> int:
    if number % parts:
        raise RecipeError(f"OpenRLHF cuts the {what} evenly: {number} cannot be divided by {parts}, the {by}")
    return number // parts


def _divisor(number: int, limit: int) -> int:
    """Return the largest divisor up to a limit.

    >>> _divisor(16, 5)
    4
    """
    return max(one for one in range(1, min(number, limit) + 1) if number % one == 0)
