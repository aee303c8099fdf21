"""What OpenRLHF cannot do is refused, with the reason, before anything starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import lcm
from pathlib import Path
from typing import Any

from agentgym.errors import RecipeError
from agentgym.recipe import Prepared, Recipe
from agentgym_trainers.bridges.openrlhf.events import reported
from agentgym_trainers.bridges.openrlhf.expressible import refuse as refuse_rollouts
from agentgym_trainers.bridges.openrlhf.options import Settings
from agentgym_trainers.bridges.openrlhf.start import needs_start
from agentgym_trainers.metrics import evaluated, why_not_best
from agentgym_trainers.update import Update

_CANNOT = "OpenRLHF cannot train this recipe"
_ONE_NUMBER = "OpenRLHF takes one number per attempt and computes advantages itself"
_CLIP_OPTIONS = {"clip_low", "clip_high", "kl_weight", "level"}
_TRUNCATED_OPTIONS = {"cap", "kl_weight"}


def refuse(recipe: Recipe, settings: Settings) -> None:
    """Refuse the first thing that OpenRLHF cannot do.

    Raises:
        RecipeError: naming the field, the reason and what would work.
    """
    for reason in (
        *_advantage(settings),
        *_loss(settings),
        *_critic(settings),
        *_machines(settings),
        *_steps(recipe, settings),
        *_places(recipe),
        *_figures(recipe, settings),
    ):
        raise RecipeError(f"{_CANNOT}: {reason}")


def refuse_parts(prepared: Prepared, settings: Settings) -> None:
    """Refuse what only the built parts of a recipe show.

    Raises:
        RecipeError: a part learns beside the policy, or pays turns where they cannot be paid, or hinted attempts would
            be trained in another way than the recipe says, or the advantage undoes what the rewards correct.
    """
    refuse_rollouts(prepared, settings)
    Update(settings, prepared.scheme)  # what its estimators cancel, OpenRLHF's of the same name cancel too
    signals = tuple(getattr(prepared.scheme, "signals", ()))
    if settings.policy.advantage == "gae" and signals:
        raise RecipeError(
            f"{_CANNOT}: reward: {_ONE_NUMBER}, so what {', '.join(signals)} earned in a turn would be paid at the "
            "attempt's end, and gae would credit later turns with it; leave the step rewards out, or choose grpo"
        )
    # The correction would weigh tokens by the hinted context's probabilities, as if the ratio were true.
    if getattr(prepared.guidance, "ratio", None) == "reset" and settings.openrlhf.correction != "none":
        raise RecipeError(
            f"{_CANNOT}: guidance: hinted attempts with ratio: reset are trained as if on-policy, and "
            f"trainer.openrlhf.correction {settings.openrlhf.correction!r} weighs them; say correction: none"
        )


def _advantage(settings: Settings) -> Iterator[str]:
    policy = settings.policy
    name, options = policy.advantage, dict(policy.advantage_options)
    where = "trainer.policy.advantage"
    if name == "gae":
        if options.get("level", "token") != "token":
            yield f"{where}_options.level is {options['level']!r}: it has no credit of turns; say level: token"
        # Its recursion decays over observations too: at lam 0.95 a hundred tokens of them can turn an advantage's sign.
        for option, default in (("lam", 0.95), ("gamma", 1.0)):
            if options.get(option, default) != 1:
                yield (
                    f"{where}_options.{option} is {options.get(option, default):g}: it discounts over what the "
                    f"environment printed as well; say {option}: 1"
                )
        if not options.get("whiten", True):
            yield f"{where}_options.whiten is false: it always centres the advantages of gae"
    elif name == "grpo":
        if options.get("std", "group") == "batch":
            yield f"{where}_options.std is 'batch': it whitens over tokens, not attempts; say group or none"
        if options.get("per_turn", "return") != "return":
            yield f"{where}_options.per_turn is {options['per_turn']!r}: {_ONE_NUMBER}; say per_turn: return"
    elif name == "reinforce":
        yield f"{where} is 'reinforce': its own subtracts the batch's mean, ours nothing; choose rloo"
    elif name != "rloo":
        yield f"{where} is {name!r}: {_ONE_NUMBER}; of ours it has grpo, rloo and gae with lam 1"
    known = {"gae": {"lam", "gamma", "level", "whiten"}, "grpo": {"std", "per_turn"}}.get(name, set())
    yield from _unknown(f"{where}_options", set(options) - known)


def _loss(settings: Settings) -> Iterator[str]:
    policy, name = settings.policy, settings.policy.loss
    if name not in ("clip", "truncated"):
        yield f"trainer.policy.loss is {name!r}: it has none like it; of ours it has clip and truncated"
        return
    known = _CLIP_OPTIONS if name == "clip" else _TRUNCATED_OPTIONS
    yield from _unknown("trainer.policy.loss_options", set(policy.loss_options) - known)
    if name == "truncated" and policy.epochs * policy.minibatches > 1:
        yield (
            "trainer.policy.loss is 'truncated' and a batch is learned from in several updates, after the first of "
            "which it clips the ratios; set epochs and minibatches to 1"
        )
    if name == "truncated" and settings.openrlhf.correction != "clip":
        yield "trainer.policy.loss is 'truncated', which needs trainer.openrlhf.correction: clip"


def _critic(settings: Settings) -> Iterator[str]:
    critic = settings.critic
    if settings.policy.advantage == "gae" and critic is None:
        yield "trainer.policy.advantage is 'gae', which needs the section trainer.critic, such as {}"
    if critic is None:
        return
    if settings.policy.advantage != "gae":
        yield f"trainer.critic is there and {settings.policy.advantage!r} uses none; remove it, or choose gae"
    if critic.trunk != "own":
        yield "trainer.critic.trunk is 'policy': its critic is a model of its own; say trunk: own"
    if critic.lam != 1:
        yield f"trainer.critic.lam is {critic.lam:g}: it discounts over what the environment printed; say lam: 1"
    if critic.warmup_steps:
        yield (
            f"trainer.critic.warmup_steps is {critic.warmup_steps}: it would keep those steps' attempts and train the "
            "policy on all of them afterwards; say 0"
        )


def _machines(settings: Settings) -> Iterator[str]:
    options, schedule, compute = settings.openrlhf, settings.schedule, settings.compute
    if settings.lora is not None:
        yield "trainer.lora: it trains adapters but does not hand them to vLLM; leave the section out"
    if settings.engine.options:
        yield "trainer.engine.options: it samples with engines of its own, see trainer.openrlhf; leave them out"
    if schedule.in_flight:
        yield "trainer.schedule.in_flight: it holds max_staleness steps ready, no groups; say null"
    if schedule.spare_attempts:
        yield "trainer.schedule.spare_attempts: it waits for every attempt; say 0"
    if options.partial and not schedule.max_staleness:
        yield "trainer.openrlhf.partial needs sampling that overlaps learning; set trainer.schedule.max_staleness to 1"
    if compute.packing != "none" and "flash" not in options.attention:
        yield f"trainer.compute.packing is {compute.packing!r}, and {options.attention!r} attention cannot pack"
    for name, wanted in (("dynamic_batch", bool(options.dynamic_batch)), ("ring", options.ring > 1)):
        if wanted and compute.packing == "none":
            yield f"trainer.openrlhf.{name} needs packed rows; set trainer.compute.packing to rows"


def _steps(recipe: Recipe, settings: Settings) -> Iterator[str]:
    policy, checkpoint, evaluated = settings.policy, settings.checkpoint, recipe.evaluation.every
    if not policy.steps:
        yield "trainer.policy.steps is 0, which leaves nothing to it; set it, or train natively"
    updates = policy.steps * policy.epochs * policy.minibatches
    for name, section in (("policy", policy), ("critic", settings.critic)):
        if section is not None and section.optim.warmup_steps > updates:
            yield (
                f"trainer.{name}.optim.warmup_steps is {section.optim.warmup_steps}, and it warms up within the "
                f"training's {updates} updates; lower it"
            )
    # Its evaluation after the last step is left out there.
    if checkpoint.best and settings.schedule.max_staleness and not 0 < lcm(evaluated, checkpoint.every) < policy.steps:
        yield (
            f"trainer.checkpoint.best is chosen among the steps that have a checkpoint, every {checkpoint.every}, and "
            f"an evaluation, every {evaluated}, where sampling overlaps learning; choose numbers that meet before the "
            f"last step, {policy.steps}"
        )


def _places(recipe: Recipe) -> Iterator[str]:
    sections = {"environment.options": recipe.environment.options, "sandbox.options": recipe.sandbox.options}
    for name, text in _texts(sections):
        if (os.sep in text or Path(text).suffix) and _seen_from_here(text):
            yield f"{name} is {text!r}, seen from here, and it rolls out elsewhere; say {str(Path(text).resolve())!r}"


def _seen_from_here(text: str) -> bool:
    try:
        return not Path(text).is_absolute() and Path(text).exists()
    except OSError:  # too long for a file's name
        return False


def _texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts in plain data, each with the dotted name of its place."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from _texts(one, f"{where}.{name}" if where else name)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one, where)


def _figures(recipe: Recipe, settings: Settings) -> Iterator[str]:
    if recipe.evaluation.sampling.top_p != 1:
        yield "evaluation.sampling.top_p: it evaluates with training's, which is 1"
    for rule in settings.watch.stop:
        if not reported(rule.metric):
            yield f"trainer.watch.stop: it does not report {rule.metric}; take the rule out"
    known = dict.fromkeys(["eval/pass@1", f"eval/pass@{recipe.evaluation.attempts}"])
    if needs_start(settings):  # whose evaluation is the native trainer's
        known = dict.fromkeys(one for one in known if one in evaluated(recipe.evaluation.attempts))
    if (reason := why_not_best(settings.checkpoint.best, known)) is not None:
        yield reason


def _unknown(where: str, names: set[str]) -> Iterator[str]:
    if names:
        yield f"{where} has {', '.join(sorted(names))}, which it cannot be told"
