"""The commands and what they say about themselves; each does its work in a module of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from agentgym.cli import sandboxes
from agentgym.cli.console import errors
from agentgym.cli.plugins import PluginGroup

app = typer.Typer(
    name="agentgym",
    cls=PluginGroup,
    help="Train and evaluate language-model agents on tasks with verifiable rewards.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(sandboxes.group, name="sandbox")

Env = Annotated[str, typer.Argument(help="A registered id, a Python file, or FILE.py:Class.", show_default=False)]
Options = Annotated[
    Optional[list[str]],  # noqa: UP045 -- read by typer at run time
    typer.Argument(metavar="[KEY=VALUE]…", help="Options of the environment, or overrides of the recipe."),
]
Load = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option("--load", help="A Python file to run first, such as one that registers an environment."),
]
SandboxName = Annotated[str, typer.Option("--sandbox", help="Where agent code runs, such as docker or docker:warm=8.")]
Trusted = Annotated[bool, typer.Option("--trusted", help="Run trusted code without isolation if there is none.")]
Jobs = Annotated[int, typer.Option(min=1, help="How much is done at once.")]
RunFolder = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--run", help="The run's folder; by default a new one below runs/.", show_default=False),
]
Seed = Annotated[int, typer.Option(help="What all random draws derive from.")]


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show all warnings and what happens below.")] = False,
) -> None:
    errors.debug = debug
    errors.log("DEBUG" if debug else "INFO" if verbose else "WARNING")


@app.command()
def envs(load: Load = None) -> None:
    """List the environments that are installed.

    Example: `agentgym envs`
    """
    from agentgym.cli import environments

    environments.run(load or [])


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Such as my-env.", show_default=False)],
    folder: Annotated[Path, typer.Option("--in", help="Where to write.")] = Path(),
    sandbox: Annotated[bool, typer.Option("--sandbox", help="Begin with a shell in a sandbox.")] = False,
) -> None:
    """Write a new environment of at most 30 lines, and its test.

    Example: `agentgym new my-env`
    """
    from agentgym.cli import author

    author.new(name, folder, sandbox)


@app.command()
def play(
    env: Env,
    options: Options = None,
    task: Annotated[Optional[str], typer.Option(help="A task's id; by default the seed picks.")] = None,  # noqa: UP045
    hint: Annotated[bool, typer.Option("--hint", help="Show the task's strongest hint.")] = False,
    seed: Seed = 0,
    load: Load = None,
    sandbox: SandboxName = "process",
    trusted: Trusted = False,
) -> None:
    """Be the agent: type messages, see what the environment answers.

    A message is a line, or a fenced block from its opening to its closing fence.

    Example: `agentgym play agentgym/Calculator-v0`
    """
    from agentgym.cli import terminal
    from agentgym.cli.places import Place

    terminal.play(Place(env, options or [], load or [], sandbox, trusted), task, hint, seed)


@app.command()
def validate(
    env: Env,
    options: Options = None,
    sample: Annotated[Optional[int], typer.Option(min=1, help="Check so many tasks, drawn by --seed.")] = None,  # noqa: UP045
    limit: Annotated[Optional[int], typer.Option(min=1, help="Check the first so many tasks.")] = None,  # noqa: UP045
    split: Annotated[Optional[str], typer.Option(help="Check one split only.")] = None,  # noqa: UP045
    json: Annotated[Optional[Path], typer.Option(help="Write the findings to this file too.")] = None,  # noqa: UP045
    quarantine: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write the tasks that fail, with reasons, for the environment's option quarantine=FILE."),
    ] = None,
    attacks: Annotated[int, typer.Option(min=0, help="Attacks on each task, other ones each time.")] = 5,
    jobs: Jobs = 4,
    seed: Seed = 0,
    load: Load = None,
    sandbox: SandboxName = "process",
    trusted: Trusted = False,
) -> None:
    """Check every task: the expert scores 1, ignorance and attacks score 0, nothing hidden shows. Exit code 1 if not.

    Ctrl-C ends it early; what was found until then is shown and written.

    Example: `agentgym validate agentgym/Code-v0 --sample 20`
    """
    from agentgym.cli import author
    from agentgym.cli.places import Place

    place = Place(env, options or [], load or [], sandbox, trusted)
    chosen, files = author.Chosen(sample, limit, split, seed), author.Written(json, quarantine)
    author.validate(place, chosen, files, jobs=jobs, attacks=attacks)


@app.command()
def redteam(
    env: Env,
    options: Options = None,
    task: Annotated[Optional[str], typer.Option(help="Attack this task only.")] = None,  # noqa: UP045
    attack: Annotated[Optional[str], typer.Option(help="Run this attack only.")] = None,  # noqa: UP045
    harmful: Annotated[
        bool, typer.Option("--harmful", help="Run what may end everything on this machine too, if nothing isolates it.")
    ] = False,
    sample: Annotated[int, typer.Option(min=1, help="Attack so many tasks, drawn by --seed.")] = 3,
    split: Annotated[Optional[str], typer.Option(help="Of one split only.")] = None,  # noqa: UP045
    json: Annotated[Optional[Path], typer.Option(help="Write the outcomes to this file too.")] = None,  # noqa: UP045
    jobs: Jobs = 4,
    seed: Seed = 0,
    load: Load = None,
    sandbox: SandboxName = "process",
    trusted: Trusted = False,
) -> None:
    """Attack an environment in every way that fits its graders, and its author's own. Exit code 1 if one succeeds.

    Example: `agentgym redteam agentgym/Code-v0 --sample 1`
    """
    from agentgym.cli import attacking, author
    from agentgym.cli.places import Place

    place = Place(env, options or [], load or [], sandbox, trusted)
    wanted = attacking.Wanted(attack, harmful, jobs, json)
    attacking.run(place, author.Chosen(sample, None, split, seed, task), wanted)


@app.command()
def train(
    recipe: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="A YAML file, or a bundled recipe's name.", show_default=False),
    ] = None,
    options: Options = None,
    run: RunFolder = None,
    resume: Annotated[Optional[Path], typer.Option(help="Go on with this run.", show_default=False)] = None,  # noqa: UP045
    profile: Annotated[Optional[str], typer.Option(help="One of the recipe's, such as tiny.")] = None,  # noqa: UP045
    backend: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="What trains, in place of the recipe's trainer.name, such as openrlhf.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write what a backend reads, and start nothing.")] = False,
    load: Load = None,
) -> None:
    """Train an agent as a recipe says; overrides come after it. `--resume RUN` needs no recipe and takes overrides too.

    Example: `agentgym train recipe.yaml trainer.policy.steps=50 seed=1 --run runs/first`

    Example: `agentgym train code-grpo --profile tiny`

    Example: `agentgym train code-grpo --backend openrlhf --dry-run`
    """
    from agentgym.cli import training

    chosen = training.Chosen(recipe, options or [], profile, backend)
    if dry_run:
        training.plan(chosen, run, resume, load or [])
    else:
        training.run(chosen, run, resume, load or [])


@app.command(name="eval")
def evaluate(
    env: Annotated[str, typer.Argument(help="A recipe, an environment's id, or FILE.py.", show_default=False)],
    options: Options = None,
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            "-p",
            help="oracle, noop, hasty, spam[:TOOL], recital, random, replay:FILE, checkpoint:PATH, openai:MODEL@URL.",
        ),
    ] = "oracle",
    split: Annotated[Optional[str], typer.Option(help="Which tasks; by default the recipe's, or test.")] = None,  # noqa: UP045
    attempts: Annotated[Optional[int], typer.Option("--attempts", "-k", min=1, help="Per task.")] = None,  # noqa: UP045
    limit: Annotated[Optional[int], typer.Option(min=1, help="Only so many tasks.")] = None,  # noqa: UP045
    temperature: Annotated[Optional[float], typer.Option(min=0.0, help="Of sampling; 0 is greedy.")] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option(min=0, help="By default the recipe's, or 0.")] = None,  # noqa: UP045
    run: RunFolder = None,
    load: Load = None,
    sandbox: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Where agent code runs, such as docker:warm=8; by default the recipe's, or process."),
    ] = None,
    trusted: Trusted = False,
    profile: Annotated[Optional[str], typer.Option(help="One of the recipe's profiles, such as tiny.")] = None,  # noqa: UP045
    bound: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="KEY=VALUE", help="A limit of episodes, such as max_tokens_per_turn=2048; repeatable."),
    ] = None,
) -> None:
    """Evaluate a policy on held-out tasks: pass@1 and pass@k with 95% intervals, kept in a run folder.

    Without a recipe, tokens are bounded as those of the checkpoint's training, or 4096 an episode however many turns.

    Example: `agentgym eval agentgym/Code-v0 --policy checkpoint:runs/first,which=best --attempts 4`
    """
    from agentgym.cli import evaluation
    from agentgym.cli.places import Place

    wanted = evaluation.Wanted(policy, split, attempts, limit, temperature, seed, run, sandbox, profile, bound or [])
    evaluation.run(Place(env, options or [], load or [], sandbox or "process", trusted), wanted)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a checkpoint's.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="Where to; it must not exist yet.", show_default=False)],
    which: Annotated[str, typer.Option("--checkpoint", help="Of a run: latest, best, or a step.")] = "latest",
    dtype: Annotated[Optional[str], typer.Option(help="Such as bfloat16; by default as it was trained.")] = None,  # noqa: UP045
) -> None:
    """Write a run's model as a Hugging Face folder, which transformers and vLLM load.

    Example: `agentgym export runs/first models/first --checkpoint best --dtype bfloat16`
    """
    from agentgym.cli import exporting

    exporting.run(run, folder, which, dtype)


@app.command()
def serve(
    env: Annotated[str, typer.Argument(help="A registered id, a Python file, or FILE.py:Class.", show_default=False)],
    options: Options = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    token_file: Annotated[Optional[Path], typer.Option(help="A file with the token that clients need.")] = None,  # noqa: UP045
    is_open: Annotated[bool, typer.Option("--open", help="Ask no token of clients on this machine.")] = False,
    expose: Annotated[bool, typer.Option("--expose", help="Let other machines reach this one.")] = False,
    bound: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="KEY=VALUE", help="A bound, such as sessions=64; may be repeated."),
    ] = None,
    load: Load = None,
    sandbox: SandboxName = "process",
    trusted: Trusted = False,
) -> None:
    """Serve an environment over HTTP, and over WebSocket to OpenEnv's clients.

    Example: `agentgym serve agentgym/Code-v0 --sandbox docker:warm=8 --bound sessions=64`
    """
    from agentgym.cli import serving
    from agentgym.cli.places import Place

    serving.serve_environment(
        Place(env, options or [], load or [], sandbox, trusted),
        host=host,
        port=port,
        token_file=token_file,
        is_open=is_open,
        expose=expose,
        bounds=bound or [],
    )


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="A run's folder.", show_default=False)],
    task: Annotated[Optional[str], typer.Option(help="Show the transcripts of this task.")] = None,  # noqa: UP045
    step: Annotated[Optional[int], typer.Option(help="Of this step; by default the last.")] = None,  # noqa: UP045
    attempt: Annotated[Optional[int], typer.Option(help="Only this attempt.")] = None,  # noqa: UP045
) -> None:
    """Show what a run did: where it came from, its curves, its best and worst attempts, or a task's transcripts.

    Example: `agentgym show runs/first --task repair-12`
    """
    from agentgym.cli import showing

    showing.run(run, task, step, attempt)
