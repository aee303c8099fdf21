"""What the commands of `agentgym search` do."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from agentgym.cli.console import progress, say
from agentgym.errors import AgentgymError, MissingExtraError
from agentgym_envs.search.embedded import EmbeddedRetriever
from agentgym_envs.search.index import build
from agentgym_envs.search.passages import Corpus
from agentgym_envs.search.retriever import Retriever, open_retriever

logger = logging.getLogger(__name__)


def index(path: Path, to: Path | None, dense: str | None) -> None:
    """Build an index file, and vectors if a model is named."""
    corpus = Corpus(path)
    name = path.resolve().name.removesuffix(".gz").removesuffix(".jsonl")
    target = to or path.resolve().with_name(f"{name}.idx")
    began = time.monotonic()
    with _bar("indexing", corpus) as on_progress:
        built = build(corpus, target, on_progress)
    seconds = max(time.monotonic() - began, 1e-3)
    say(f"{built.path}: {built.passages} passages, {built.passages / seconds:.0f} a second, digest {built.digest[:16]}")
    for file, reason in corpus.skipped.items():
        say(f"left out {file}: {reason}")
    if dense is not None:
        _encode(target, dense)


def load(path: Path, url: str, name: str) -> None:
    """Fill a new index of a cluster."""
    from agentgym_envs.search.opensearch import OpenSearchRetriever

    corpus = Corpus(path)
    with closing(OpenSearchRetriever(url, name, timeout_s=60.0)) as cluster, _bar("loading", corpus) as on_progress:
        count = cluster.load(corpus, on_progress)
    say(f"{name}: {count} passages")


def find(path: Path, query: str, k: int, dense: str | None) -> None:
    """Print the best passages."""
    retriever = _open(path, dense)
    hits = retriever.search(query, k)
    if not hits:
        say("nothing found")
    for hit in hits:
        say(f"{hit.score:8.3f}  {hit.passage.id}  {hit.passage.title}", style="bold")
        say(f"          {' '.join(hit.passage.text.split())[:200]}")


def questions(path: Path, to: Path, count: int, hops: int, seed: int) -> None:
    """Make questions, and say what was dropped and why."""
    from agentgym_envs.search.questions import Generator, summary

    retriever = EmbeddedRetriever.shared(path)
    with progress() as bars:
        bar = bars.add_task("reading", total=retriever.passages, note="")
        made = Generator(bars.track(retriever.all(), task_id=bar))
        bar = bars.add_task("asking", total=count, note="")
        found = list(bars.track(made.generate(count, hops=hops, seed=seed), task_id=bar))
    lines = "".join(json.dumps(one.row(), ensure_ascii=False) + "\n" for one in found)
    part = to.with_name(f".{to.name}.part")
    try:
        part.write_text(lines, encoding="utf-8")
        part.replace(to)
    except OSError as error:
        raise AgentgymError(f"{to} cannot be written: {error.strerror}") from error
    for line in summary(len(found), made.dropped):
        say(line)
    say(f"next: agentgym validate agentgym/Search-v0 questions={to} retriever={path} --sample 20")


def serve(path: Path, dense: str | None, host: str, port: int) -> None:
    """Answer requests until a signal comes."""
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtraError("uvicorn", "serve") from error
    from agentgym_envs.search.server import create_app

    retriever = _open(path, dense)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise AgentgymError(
                f"{host}:{port} cannot be listened on: {error.strerror}; choose another --port"
            ) from error
        address, taken = listener.getsockname()[:2]
        say(f"serving {path} on http://{address}:{taken}/retrieve")
        config = uvicorn.Config(create_app(retriever), log_config=None, access_log=False, server_header=False)
        with suppress(KeyboardInterrupt), closing(retriever):
            uvicorn.Server(config).run(sockets=[listener])


def _open(path: Path, dense: str | None) -> Retriever:
    kind = {"kind": "hybrid", "index": str(path), "model": dense}
    return open_retriever(kind if dense is not None else str(path))


def _encode(path: Path, model: str) -> None:
    from agentgym_envs.search.dense import encode, sentence_encoder

    retriever = EmbeddedRetriever.shared(path)
    with progress() as bars:
        bar = bars.add_task("encoding", total=retriever.passages, note="")
        written = encode(retriever, sentence_encoder(model), lambda count: bars.update(bar, completed=count))
    say(f"{written}: vectors of {model}")


@contextmanager
def _bar(doing: str, corpus: Corpus) -> Iterator[Callable[[int], None]]:
    """Show how much of a corpus has been read, in kB, for its number of passages is not known before."""
    with progress() as bars:
        bar = bars.add_task(doing, total=max(1, corpus.total >> 10), note="")

        def on_progress(count: int) -> None:
            bars.update(bar, completed=corpus.position >> 10, note=f"kB, {count} passages")

        yield on_progress
