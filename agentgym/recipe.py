"""Recipes: one typed YAML file that fully describes a training or an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Self, cast

import yaml
from pydantic import Field, ValidationError, field_validator

from agentgym import registry
from agentgym.contamination import refuse_twins
from agentgym.env import AgentEnv
from agentgym.errors import RecipeError, UnknownNameError
from agentgym.guidance import Guidance
from agentgym.noise import Appeals, FlipNoise, Review
from agentgym.policy import Sampling
from agentgym.rewards import RewardScheme, check_appeals
from agentgym.rollout import Limits
from agentgym.sandbox import SandboxBackend
from agentgym.task import Task
from agentgym.types import Record, Split


class Component(Record):
    """Something selected by its registered name, with its own options."""

    name: str
    options: dict[str, Any] = {}


class EnvironmentSection(Record):
    """Which environment, built how."""

    id: str
    options: dict[str, Any] = {}
    """Arguments of the environment's constructor, such as max_turns."""


class SandboxSection(Record):
    """Where agent code runs."""

    name: str = "process"
    options: dict[str, Any] = {}
    """Arguments of the backend, such as trusted: true for the process sandbox on a machine without bubblewrap."""


class TasksSection(Record):
    """How many tasks of each split to use; null means all."""

    train: Annotated[int, Field(ge=1)] | None = None
    validation: Annotated[int, Field(ge=1)] | None = None
    test: Annotated[int, Field(ge=1)] | None = None
    near_duplicate: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Jaccard index of word 5-grams from which a held-out task counts as a training task's twin."""


class EvaluationSection(Record):
    """How held-out tasks are attempted."""

    split: Split = "test"
    attempts: Annotated[int, Field(ge=1)] = 1
    """Attempts per task; pass@k is reported for every k up to this number that is a power of two."""
    every: Annotated[int, Field(ge=0)] = 0
    """Evaluate after every so many training steps; 0 means before and after only."""
    sampling: Sampling = Sampling()
    """Of held-out attempts; `limits` holds for them as well."""

    @field_validator("sampling")
    @classmethod
    def _drawn_with_the_recipes_seed(cls, sampling: Sampling) -> Sampling:
        if sampling.seed:
            raise ValueError("held-out attempts draw with seeds of the recipe's own; set seed, and leave this one out")
        return sampling

    @field_validator("split")
    @classmethod
    def _held_out(cls, split: Split) -> Split:
        if split == "train":
            raise ValueError("evaluation runs on held-out tasks; choose validation or test")
        return split


class Recipe(Record):
    """A training or an evaluation."""

    name: Annotated[str, Field(pattern=r"^[\w-]+$")]
    seed: Annotated[int, Field(ge=0)] = 0
    environment: EnvironmentSection
    sandbox: SandboxSection = SandboxSection()
    tasks: TasksSection = TasksSection()
    limits: Limits = Limits()
    reward: Component = Component(name="outcome")
    guidance: Component = Component(name="none")
    noise: FlipNoise | None = None
    """Flips training verdicts at given rates, to study training under imperfect graders."""
    appeals: Appeals | None = None
    """Has a share of the training verdicts judged again, to estimate how often the grader errs."""
    evaluation: EvaluationSection = EvaluationSection()
    trackers: tuple[Component, ...] = ()
    """Where training's metrics go beside the run's metrics.jsonl: names such as tensorboard, or names with options."""
    trainer: dict[str, Any] = {"name": "native"}
    """`name` selects a registered trainer; the rest is that trainer's own settings."""

    @field_validator("trackers", mode="before")
    @classmethod
    def _named(cls, trackers: Any) -> Any:
        each = [{"name": one} if isinstance(one, str) else one for one in trackers or ()]
        if any(isinstance(one, Mapping) and one.get("name") == "jsonl" for one in each):
            raise ValueError("metrics.jsonl is always written; leave jsonl out")
        return each

    @classmethod
    def load(
        cls, path: str | Path, overrides: Sequence[str] = (), profile: str | None = None, backend: str | None = None
    ) -> Self:
        """Read a YAML file, or the bundled recipe of that name, and apply overrides such as `trainer.policy.steps=5`.

        Args:
            path: the file, or the name of a bundled recipe.
            overrides: dotted fields and their values.
            profile: one of the file's `profiles`, whose sections are laid over the others before the overrides: a
                section's fields one by one, anything else as a whole.
            backend: a trainer in place of the recipe's. The file's `backends` may hold sections for each trainer that
                it is prepared for, which are laid over the profile's.

        Raises:
            RecipeError: one sentence with the field that is wrong.
            UnknownNameError: there is no such recipe or profile.
        """
        file = _find(path)
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"no recipe can be read at {file}: {error.strerror}; wanted a YAML file") from error
        except yaml.YAMLError as error:
            raise RecipeError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
        if not isinstance(found, dict):
            raise RecipeError(f"{file} holds {type(found).__name__}, wanted a mapping of recipe sections")
        profiles = found.pop("profiles", None) or {}
        if profile is not None:
            if profile not in profiles:
                raise UnknownNameError(f"profile of {file.stem}", profile, profiles)
            found = _laid_over(found, profiles[profile])
        if backend is not None:
            found = _laid_over(found, {"trainer": {"name": backend}})
        backends = found.pop("backends", None) or {}
        for name in backends:
            if name not in registry.names("trainers"):
                raise UnknownNameError(f"trainer in the backends of {file.stem}", name, registry.names("trainers"))
        found = _laid_over(found, backends.get((found.get("trainer") or {}).get("name", "native"), {}))
        return cls.parse(found, str(file), overrides)

    @classmethod
    def parse(cls, data: Mapping[str, Any], where: str = "the recipe", overrides: Sequence[str] = ()) -> Self:
        """Apply overrides to plain data and validate it, the trainer's settings included.

        Raises:
            RecipeError: one sentence with the field that is wrong.
        """
        found = deepcopy(dict(data))
        for override in overrides:
            _apply(found, override)
        try:
            recipe = cls.model_validate(found)
            recipe.trainer_settings()
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "recipe"
            raise RecipeError(f"{where}: {field}: {first['msg']}, found {str(first['input'])[:80]!r}") from error
        return recipe

    def trainer_settings(self) -> Any:
        """Return the trainer's own settings record, validated."""
        options = dict(self.trainer)
        name = options.pop("name", "native")
        trainer = registry.lookup("trainers", name)
        return trainer.Settings.model_validate(options)  # type: ignore[attr-defined]

    def prepare(self) -> Prepared:
        """Build everything that the recipe names, and check that it fits together, before anything starts.

        Raises:
            ContaminationError: if a held-out task duplicates a training task.
            VerifierError: if a task cannot be judged by its grader.
            RecipeError, UnknownNameError, CapabilityError, SandboxError: each one sentence.
        """
        scheme = cast(RewardScheme, create(self.reward, "schemes"))
        guidance = cast(Guidance, create(self.guidance, "guidance"))
        backend = cast(SandboxBackend, create(self.sandbox, "sandboxes"))
        make_env = partial(
            registry.make, self.environment.id, **self.environment.options, sandbox=backend, scheme=scheme
        )
        probe: AgentEnv = make_env()
        if self.noise is not None:
            self.noise.check_levels(probe.levels)
        if self.appeals is not None:
            self.appeals.check()
        check_appeals(scheme, self.appeals)
        for tracker in self.trackers:
            _check_tracker(tracker)
        review = Review(self.noise, self.appeals) if self.noise or self.appeals else None
        train = list(probe.tasks.split("train").take(self.tasks.train))
        held_out = {
            "validation": list(probe.tasks.split("validation").take(self.tasks.validation)),
            "test": list(probe.tasks.split("test").take(self.tasks.test)),
        }
        refuse_twins(
            train, [task for tasks in held_out.values() for task in tasks], threshold=self.tasks.near_duplicate
        )
        evaluated = held_out[self.evaluation.split]
        for task in (*train, *evaluated):
            probe.check_task(task)
        if probe.sandboxed:
            backend.check()
            for spec in {one.sandbox.model_dump_json(): one.sandbox for one in (*train, *evaluated)}.values():
                backend.accept(spec)
        return Prepared(self, make_env, backend, scheme, guidance, train, held_out[self.evaluation.split], review)


@dataclass(slots=True)
class Clock:
    """Tells environments how far training has come."""

    progress: float = 0.0
    """From 0 to 1; the trainer sets it."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A recipe's parts, built and checked."""

    recipe: Recipe
    make_env: Callable[[], AgentEnv]
    backend: SandboxBackend
    scheme: RewardScheme
    guidance: Guidance
    train: list[Task]
    held_out: list[Task]
    """The tasks of the split that the recipe evaluates on."""
    review: Review | None = None
    """What happens to training verdicts; evaluations never use it."""
    clock: Clock = field(default_factory=Clock)

    def make_training_env(self) -> AgentEnv:
        """Build an environment whose verdicts are those that training sees, with noise and appeals if there are any."""
        env = self.make_env()
        env.review = self.review
        env.progress = self.clock.progress
        return env


def create(component: Component | SandboxSection, kind: registry.Kind) -> Any:
    """Build a component, its option errors told as the recipe's.

    Raises:
        RecipeError: naming the option that is wrong.
    """
    try:
        return registry.create(kind, component.name, **component.options)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "options"
        raise RecipeError(f"{kind} {component.name!r}: {field}: {first['msg']}") from error


def _check_tracker(tracker: Component) -> None:
    """Refuse a tracker that is unknown, not installed, or does not take its options."""
    target = registry.lookup("trackers", tracker.name)
    try:
        signature(target).bind(folder="", first_step=0, **tracker.options)
    except TypeError as error:
        raise RecipeError(
            f"trackers: {tracker.name!r} {error}; it takes: {', '.join(signature(target).parameters)}"
        ) from error
    check = getattr(target, "check", None)
    if check is not None:
        check()


def bundled() -> dict[str, Path]:
    """Return the recipes that installed packages bring, by name (entry points of the group `agentgym.recipes`)."""
    packages = {point.value for point in entry_points(group="agentgym.recipes")}
    folders = [Path(place) for package in packages for place in _search_path(package)]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def _search_path(package: str) -> Sequence[str]:
    found = find_spec(package)
    return list(found.submodule_search_locations or ()) if found else []


def _find(path: str | Path) -> Path:
    file = Path(path)
    if file.exists() or file.suffix or len(file.parts) != 1:
        return file
    known = bundled()
    if file.name not in known:
        raise UnknownNameError("recipe", file.name, known)
    return known[file.name]


def _laid_over(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return {**below, **{name: _laid_over(below.get(name), one) for name, one in above.items()}}


def _apply(recipe: dict[str, Any], override: str) -> None:
    path, sign, text = override.partition("=")
    if not sign or not path:
        raise RecipeError(f"wanted an override like trainer.policy.steps=5, found {override!r}")
    place: Any = recipe
    *sections, field = path.split(".")
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise RecipeError(f"{override!r}: {section!r} is {type(place).__name__}, not a section")
    try:
        place[field] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{override!r}: {text!r} is not a YAML value") from error
