"""`agentgym eval`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from agentgym import registry
from agentgym.cli.console import out, progress, say
from agentgym.cli.places import Place, find_policy, load_file, parse_options, read_sandbox
from agentgym.errors import AgentgymError
from agentgym.evaluate import Report, evaluate
from agentgym.policy import Sampling
from agentgym.rollout import Limits
from agentgym.run import RunDirectory
from agentgym.task import Task

if TYPE_CHECKING:
    from agentgym.env import AgentEnv
    from agentgym.types import Split


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the options of the command ask for; None leaves it to the recipe."""

    policy: str
    split: str | None
    attempts: int | None
    limit: int | None
    temperature: float | None
    seed: int | None
    run: Path | None
    sandbox: str | None = None
    profile: str | None = None
    bounds: Sequence[str] = ()
    """Fields of `Limits`, such as max_tokens_per_turn=2048."""


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is evaluated."""

    make_env: Callable[[], AgentEnv]
    tasks: list[Task]
    split: str
    attempts: int
    limits: Limits | None
    """None leaves them to the policy's own, if it has any."""
    sampling: Sampling | None
    seed: int
    record: dict[str, Any]
    """What the manifest says."""
    close: Callable[[], None]


def run(place: Place, wanted: Wanted) -> None:
    """Evaluate, print the report, keep the run."""
    subject = _of_recipe(place, wanted) if _names_recipe(place.name) else _of_environment(place, wanted)
    with closing(subject):
        bounds = _bounds(wanted.bounds)
        if not subject.tasks:
            raise AgentgymError(f"{place.name} has no task in the split {subject.split!r}; choose another with --split")
        policy = find_policy(wanted.policy, subject.make_env, subject.tasks, subject.sampling)
        limits = subject.limits or _limits(getattr(policy, "limits", None), bounds)
        where, name = (wanted.run.parent, wanted.run.name) if wanted.run else (Path("runs"), None)
        record = {**subject.record, "limits": limits.model_dump(mode="json")}
        kept = RunDirectory.create(where, record, name=name, kind="eval")
        with progress() as bars:
            bar = bars.add_task("evaluating", total=len(subject.tasks) * subject.attempts, note="")
            report = evaluate(
                subject.make_env,
                subject.tasks,
                policy,
                attempts=subject.attempts,
                limits=limits,
                seed=subject.seed,
                on_done=lambda _: bars.advance(bar),
                run=kept,
            )
    show_report(report)
    say(f"kept in {kept.path}; read it with: agentgym show {kept.path}")
    if not report.scored:
        raise typer.Exit(1)


def _names_recipe(name: str) -> bool:
    if name.endswith((".yaml", ".yml")):
        return True
    from agentgym.recipe import bundled

    is_file = Path(f"{name.replace('-', '_')}.py").is_file()  # as every other command takes it
    return name not in registry.names("envs") and not is_file and name in bundled()


def _bounds(words: Sequence[str]) -> dict[str, Any]:
    """Read fields of `Limits`.

    Raises:
        AgentgymError: with the one that is wrong.
    """
    found = parse_options(words)
    try:
        Limits.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise AgentgymError(
            f"--bound {'.'.join(map(str, first['loc']))}: {first['msg']}, found {str(first['input'])[:80]!r}; the "
            f"bounds are: {', '.join(Limits.model_fields)}"
        ) from error
    return found


def _limits(trained: object, bounds: Mapping[str, Any]) -> Limits:
    """Return an environment's limits: of tokens the policy's own, or no bound of a turn but the episode's."""
    of_policy = ("max_tokens_per_turn", "max_tokens")
    found = {name: getattr(trained, name) for name in of_policy} if isinstance(trained, Limits) else {}
    found |= bounds
    found.setdefault("max_tokens_per_turn", found.get("max_tokens", Limits().max_tokens))
    return Limits.model_validate(found)


def _of_environment(place: Place, wanted: Wanted) -> _Subject:
    if wanted.profile is not None:
        raise AgentgymError(f"--profile is one of a recipe's, and {place.name!r} is an environment; leave it out")
    split: Any = wanted.split or "test"
    make_env = place.maker()
    tasks = _tasks(make_env(), split, wanted.limit)
    sampling = Sampling(temperature=wanted.temperature) if wanted.temperature is not None else None
    name = "".join(one if one.isalnum() else "-" for one in Path(place.name.partition(":")[0]).stem)
    seed, attempts = wanted.seed or 0, wanted.attempts or 1
    record = {
        "name": f"eval-{name}",
        "seed": seed,
        "environment": {"id": place.name, "options": list(place.options)},
        "policy": wanted.policy,
        "evaluation": {"split": split, "attempts": attempts, "limit": wanted.limit},
    }
    return _Subject(make_env, tasks, split, attempts, None, sampling, seed, record, place.close)


def _of_recipe(place: Place, wanted: Wanted) -> _Subject:
    from agentgym.recipe import Recipe

    for file in place.load:
        load_file(file)
    overrides = [*place.options, *(f"limits.{one}" for one in wanted.bounds)]
    if wanted.sandbox is not None:
        name, options = read_sandbox(wanted.sandbox)
        overrides.append(f"sandbox={json.dumps({'name': name, 'options': options})}")
    if place.trusted:
        overrides.append("sandbox.options.trusted=true")
    asked = {
        "evaluation.split": wanted.split,
        "evaluation.attempts": wanted.attempts,
        "evaluation.sampling.temperature": wanted.temperature,
        "seed": wanted.seed,
    }
    overrides += [f"{name}={value}" for name, value in asked.items() if value is not None]
    recipe = Recipe.load(place.name, overrides, wanted.profile)
    prepared = recipe.prepare()
    section = recipe.evaluation
    record = {**recipe.model_dump(mode="json"), "name": f"eval-{recipe.name}", "policy": wanted.policy}
    tasks = list(islice(prepared.held_out, wanted.limit))
    return _Subject(
        prepared.make_env, tasks, section.split, section.attempts, recipe.limits, section.sampling, recipe.seed, record,
        prepared.backend.close,
    )  # fmt: skip


def _tasks(env: AgentEnv, split: Split, limit: int | None) -> list[Task]:
    return list(env.tasks.split(split).take(limit))


def show_report(report: Report) -> None:
    """Print what an evaluation found."""
    splits = ", ".join(f"{count} {split}" for split, count in report.splits.items())
    say(f"{report.tasks} tasks ({splits}), {report.attempts} attempts each", "bold")
    table = Table("", "estimate [95% interval]", "tasks", box=None, header_style="bold", pad_edge=False)
    for one in report.pass_at:
        table.add_row(f"pass@{one.k}", str(one).replace("[", "\\["), str(one.tasks))
    for difficulty, one in report.by_difficulty.items() if len(report.by_difficulty) > 1 else ():
        table.add_row(f"pass@1, difficulty {difficulty}", str(one).replace("[", "\\["), str(one.tasks))
    out.print(table)
    tokens = "" if report.mean_sampled_tokens is None else f", {report.mean_sampled_tokens:.0f} sampled tokens"
    say(f"mean of {report.mean_turns:.1f} turns{tokens}, {report.mean_seconds:.2f} s")
    say(f"ended by: {_counts(report.by_end)}; verdicts: {_counts(report.by_level)}; trust: {report.trust or 'unknown'}")
    if not report.held_out:
        say("these tasks include the train split: this is no held-out result", "yellow")
    if report.unscored:
        say(f"{report.unscored} of {report.scored + report.unscored} attempts are unscored and left out:", "yellow")
        for reason, count in report.errors.items():
            say(f"  {count} x {_first_line(reason)}")


def _counts(counts: dict[str, int]) -> str:
    items: Iterable[tuple[str, int]] = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count}" for name, count in items) or "none"


def _first_line(text: str) -> str:
    lines: Sequence[str] = text.splitlines()
    return lines[0][:200] if lines else ""
