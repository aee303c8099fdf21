"""Trains a recipe with OpenRLHF: writes what it reads, starts it, follows it, and keeps what it made as a run."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from agentgym.errors import RecipeError
from agentgym_trainers.bridges.openrlhf import parser
from agentgym_trainers.bridges.openrlhf.agent import agent_file
from agentgym_trainers.bridges.openrlhf.argv import Files, arguments
from agentgym_trainers.bridges.openrlhf.dataset import evaluation_rows, training_rows, write
from agentgym_trainers.bridges.openrlhf.events import Events
from agentgym_trainers.bridges.openrlhf.options import PACKAGE, VERSION, Settings
from agentgym_trainers.bridges.openrlhf.refusals import refuse, refuse_parts
from agentgym_trainers.bridges.openrlhf.rows import AgentSettings
from agentgym_trainers.bridges.openrlhf.start import context_of, located, make, needs_start, refuse_template
from agentgym_trainers.bridges.openrlhf.submit import Job, lines

if TYPE_CHECKING:
    from agentgym.recipe import Prepared
    from agentgym.run import RunDirectory
    from agentgym_trainers.native import Progress

logger = logging.getLogger(__name__)
_POLL_S = 2.0


class OpenRLHFTrainer:
    """Multi-turn policy gradients in OpenRLHF's Ray workers, DeepSpeed and vLLM."""

    Settings: ClassVar[type[Settings]] = Settings

    def plan(self, prepared: Prepared, run: RunDirectory) -> list[str]:
        """Write what a training reads, start nothing, and return what a person would type.

        Raises:
            RecipeError: OpenRLHF cannot train this recipe, or its option parser refuses it.
            ChatFormatError: nobody can, with the model's chat template.
        """
        launch = Launch.of(prepared, run)
        unseen = refuse_template(launch.settings, download=False)
        words = launch.write()
        if parser.installed() is None:
            told = f"# not checked: {PACKAGE} {VERSION} is not installed here"
        else:
            parser.check(words)
            told = f"# checked by the option parser of {PACKAGE} {VERSION}"
        if unseen:
            told += f"\n# not checked, as it will be at the start: the chat template; {unseen}"
        if needs_start(launch.settings):
            told += (
                f"\n# the native trainer makes {launch.files.model} first: leave --dry-run out, or name a model with "
                "trainer.model.path=FOLDER trainer.sft.steps=0"
            )
        return [told, *lines(launch.settings.openrlhf, words, launch.resources)]

    def train(self, prepared: Prepared, run: RunDirectory, *, resume: bool, progress: Progress | None = None) -> None:
        """Train to the recipe's last step, from OpenRLHF's newest checkpoint if `resume`.

        Raises:
            RecipeError: OpenRLHF cannot train this recipe, or is not installed here.
            ChatFormatError: nobody can, with the model's chat template.
            TrainingFailedError: it ended before its last step.
            CollapseError: a rule of `trainer.watch.stop` was broken.
            CheckpointError: the run was begun with another recipe.
        """
        from agentgym_trainers.checkpoint import refuse_other_recipe

        if resume:
            refuse_other_recipe(run, prepared.recipe, "trainer.openrlhf")
        launch = Launch.of(prepared, run)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RecipeError("OpenRLHF starts its processes itself: start agentgym once, without torchrun")
        Events.check()
        if unseen := refuse_template(launch.settings, download=True):
            logger.warning("the chat template is first looked at where episodes are rolled out: %s", unseen)
        parser.check(launch.write())  # before the warm start, which takes a while
        launch.train(resume=resume, progress=progress)

    def export(self, source: Path, folder: Path, *, which: str = "latest", dtype: str | None = None) -> str:
        """Write a checkpoint's model as a Hugging Face folder; see the native trainer's."""
        from agentgym_trainers.export import export

        return export(source, folder, which=which, dtype=dtype)


@dataclass(frozen=True, slots=True)
class Launch:
    """One run."""

    prepared: Prepared
    run: RunDirectory
    settings: Settings
    files: Files

    @classmethod
    def of(cls, prepared: Prepared, run: RunDirectory) -> Launch:
        """Refuse what cannot be, and say where things will be.

        Raises:
            RecipeError: naming the field.
        """
        settings: Settings = prepared.recipe.trainer_settings()
        refuse(prepared.recipe, settings)
        refuse_parts(prepared, settings)
        _refuse_local_names(prepared)
        folder = (run.path / "openrlhf").resolve()
        critic = settings.critic.path if settings.critic else None
        model = str(folder / "model") if needs_start(settings) else located(str(settings.model.path))
        return cls(prepared, run, settings, Files(folder, model, critic and located(critic)))

    @property
    def resources(self) -> dict[str, int]:
        """What a node of Ray must offer beside GPUs: room for the sandboxes that its engine may need at once."""
        recipe = self.prepared.recipe
        return {"agentgym_sandboxes": recipe.limits.concurrency} if recipe.sandbox.name == "ray" else {}

    def write(self, *, resume: bool = False) -> list[str]:
        """Write the datasets, the agent and the options, and return these."""
        self.files.folder.mkdir(exist_ok=True)
        recipe, settings, files = self.prepared.recipe, self.settings, self.files
        context = context_of(settings, files)
        words = arguments(recipe, settings, files, context, resume=resume)
        write(files.dataset, training_rows(self.prepared, settings))
        write(files.held_out, evaluation_rows(self.prepared))
        agent = AgentSettings(
            recipe=recipe.model_dump(mode="json"),
            seeded=settings.openrlhf.seeded,
        )
        files.agent.write_text(agent_file(agent), encoding="utf-8")
        script = "\n".join(lines(settings.openrlhf, words, self.resources))
        (files.folder / "launch.sh").write_text(f"{script}\n", encoding="utf-8")
        return words

    def train(self, *, resume: bool, progress: Progress | None) -> None:
        """Make the model, start OpenRLHF, and follow it to its end."""
        from agentgym_trainers.bridges.openrlhf.follow import Follower

        if needs_start(self.settings) and not Path(self.files.model).is_dir():
            make(self.prepared, self.run, Path(self.files.model), resume=resume, progress=progress)
        follower = Follower(self.prepared, self.run, self.settings, self.files, progress)
        done = follower.steps_saved() if resume else 0
        if done >= self.settings.policy.steps:  # all that may be left is to keep what it saved
            with follower.begin(done):
                return
        words = self.write(resume=bool(done))
        parser.check(words)
        with follower.begin(done), self._job(words, done).running() as process:
            while process.poll() is None:
                follower.look()
                time.sleep(_POLL_S)
            follower.look(ended=True)
            self._job(words, done).check(process)
            follower.finish()

    def _job(self, words: Sequence[str], done: int) -> Job:
        name = f"{self.run.path.name}-{done}-{os.getpid()}"
        return Job(words, self.settings.openrlhf.address, name, self.files.folder / "log.txt")


def _refuse_local_names(prepared: Prepared) -> None:
    """Refuse what only this process knows, because a file that `--load` ran registered it."""
    recipe = prepared.recipe
    for group, name in (
        ("envs", recipe.environment.id),
        ("sandboxes", recipe.sandbox.name),
        ("schemes", recipe.reward.name),
        ("guidance", recipe.guidance.name),
    ):
        if name not in {point.name for point in entry_points(group=f"agentgym.{group}")}:
            raise RecipeError(
                f"{name!r} is known to this process alone, and OpenRLHF rolls out in others: install it as a package "
                f"with an entry point in agentgym.{group}"
            )
