"""`agentgym swe`: what the command line says and shows; the work is done elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(no_args_is_help=True, help="Make software engineering tasks.\n\nExample: `agentgym swe mine ./toolz`")


@app.callback()
def _group() -> None:
    """Make software engineering tasks."""


@app.command()
def mine(
    repository: Annotated[
        Path, typer.Argument(help="A clone with its whole history, bare or not.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Where the task folders go; several repositories may share it.")] = Path(
        "mined"
    ),
    since: Annotated[str, typer.Option(help="Leave out older commits.")] = "2016-01-01",
    revision: Annotated[str, typer.Option(help="Where the history begins.")] = "HEAD",
    limit: Annotated[Optional[int], typer.Option(min=1, help="Stop at so many tasks.")] = None,  # noqa: UP045
    jobs: Annotated[int, typer.Option(min=1, help="How many commits are tried at once.")] = 2,
    image: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A YAML file with base, apt, pip, files, run or env: what the tests need to run."),
    ] = None,
    module: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="PLACE=CLONE", help="Where a submodule's clone is; else it is an empty folder."),
    ] = None,
    loose: Annotated[
        bool, typer.Option("--loose", help="Keep commits whose tests cannot be collected before, or fail after, too.")
    ] = False,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    writer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--issues", help="openai:MODEL@URL writes the issues; by default the commit's message does."),
    ] = None,
    key: Annotated[Optional[str], typer.Option(help="The environment variable with that model's key.")] = None,  # noqa: UP045
    sandbox: Annotated[str, typer.Option(help="Where tests run, such as docker:warm=4.")] = "docker",
) -> None:
    """Mine a repository's history for commits whose tests fail before and pass after; see what was refused and why.

    Each is run three times, in another order each time, without network, and judged by the real grader: the commit's
    change must score 1 and an idle one 0. Ctrl-C or a kill loses nothing: the same command goes on.

    Example: `agentgym swe mine ./toolz --out tasks --since 2019-01-01 --jobs 2`
    """
    from agentgym_envs.swe.mining.run import Wanted, run

    wanted = Wanted(repository, out, since, revision, limit, jobs, image, tuple(module or ()), loose, split, sandbox)
    run(wanted, writer, key)
