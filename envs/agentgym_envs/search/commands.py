"""`agentgym search`: index a corpus, search it, serve it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_HELP = """Index corpora, search them, lend them over HTTP.

Example: `agentgym search index corpus.jsonl`
"""
group = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode="markdown")

Index = Annotated[Path, typer.Argument(help="An index file.", show_default=False)]


@group.command()
def index(
    corpus: Annotated[
        Path, typer.Argument(help="A JSON Lines file of passages, or a folder of documents.", show_default=False)
    ],
    to: Annotated[Path | None, typer.Option(help="The index file; by default the corpus's name and .idx.")] = None,
    dense: Annotated[str | None, typer.Option(help="Make vectors too, with this sentence-transformers model.")] = None,
    opensearch: Annotated[str | None, typer.Option(help="Load a new index of this cluster instead of a file.")] = None,
    name: Annotated[str, typer.Option(help="The index's name in the cluster.")] = "agentgym",
) -> None:
    """Make a corpus searchable.

    Passages are objects with `id`, `title`, `text` and maybe `links`, one a line. Documents are Markdown,
    reStructuredText, HTML and text files, which may be gzipped; each is cut at its headings.

    Example: `agentgym search index /usr/share/doc/debian-policy --to policy.idx`
    """
    from agentgym_envs.search import cli

    if opensearch is not None:
        cli.load(corpus, opensearch, name)
    else:
        cli.index(corpus, to, dense)


@group.command()
def find(
    index: Index,
    query: Annotated[str, typer.Argument(help="Any text.", show_default=False)],
    k: Annotated[int, typer.Option("-k", min=1, max=100, help="How many passages.")] = 5,
    dense: Annotated[str | None, typer.Option(help="Fuse with vectors of this model.")] = None,
) -> None:
    """Show what an agent would find.

    Example: `agentgym search find policy.idx "virtual packages"`
    """
    from agentgym_envs.search import cli

    cli.find(index, query, k, dense)


@group.command()
def questions(
    index: Index,
    to: Annotated[Path, typer.Option(help="The JSON Lines file to write.")] = Path("questions.jsonl"),
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    hops: Annotated[int, typer.Option(min=1, max=6, help="How many passages lead to each answer.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="What is drawn.")] = 0,
) -> None:
    """Make multi-hop questions from a corpus whose passages name or link each other.

    Each answer is derived again from the question and the corpus alone. What cannot be is dropped, and counted.

    Example: `agentgym search questions corpus.idx --hops 3 --to questions.jsonl`
    """
    from agentgym_envs.search import cli

    cli.questions(index, to, count, hops, seed)


@group.command()
def serve(
    index: Index,
    dense: Annotated[str | None, typer.Option(help="Fuse with vectors of this model.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
) -> None:
    """Answer Search-R1's `POST /retrieve`, for trainers elsewhere or many environments at once.

    Example: `agentgym search serve policy.idx --port 8000`
    """
    from agentgym_envs.search import cli

    cli.serve(index, dense, host, port)
