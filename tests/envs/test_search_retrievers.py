"""Every way of searching keeps one contract, over the wire and off it."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from search_servers import Cluster, scripted, serving

from agentgym.errors import InfrastructureError, RecipeError, TaskError
from agentgym.task import TaskSet
from agentgym_envs.search.dense import DenseRetriever, HybridRetriever, Vectors, encode
from agentgym_envs.search.embedded import EmbeddedRetriever
from agentgym_envs.search.env import SearchEnv
from agentgym_envs.search.index import build
from agentgym_envs.search.opensearch import OpenSearchRetriever
from agentgym_envs.search.passages import Passage
from agentgym_envs.search.remote import RemoteRetriever
from agentgym_envs.search.retriever import Retriever, open_retriever
from agentgym_envs.search.server import Bounds, create_app
from agentgym_envs.search.tasks import convert

PASSAGES = [
    Passage(id="p1", title="Lima", text="Lima is the capital of Peru.\nIt lies at the sea."),
    Passage(id="p2", title="Peru", text="Peru is a country in South America; its capital is Lima."),
    Passage(id="p3", title="Tokyo", text="東京 (Tokyo) is the capital of Japan."),
    Passage(id="p4", title="Café", text="A café sells coffee."),
    *(Passage(id=f"x{number}", title=f"Filler {number}", text="nothing of note") for number in range(8)),
]


class TrigramEncoder:
    """Counts hashed letter trigrams: deterministic, and texts that share words are near."""

    name = "trigrams"

    def queries(self, texts: Sequence[str]) -> Vectors:
        return self.passages(texts)

    def passages(self, texts: Sequence[str]) -> Vectors:
        rows = np.zeros((len(texts), 512), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for at in range(len(text) - 2):
                row[sum(ord(one) * 31**place for place, one in enumerate(text[at : at + 3].casefold())) % 512] += 1
        return rows


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedRetriever:
    return EmbeddedRetriever(build(PASSAGES, tmp_path_factory.mktemp("index") / "a.idx").path)


@contextmanager
def served(retriever: Retriever, bounds: Bounds | None = None) -> Iterator[str]:
    """Run the real server; yields its URL."""
    config = uvicorn.Config(create_app(retriever, bounds), port=0, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def dense(index: EmbeddedRetriever, _: ExitStack) -> Retriever:
    encode(index, TrigramEncoder())
    return DenseRetriever(index, TrigramEncoder())


def hybrid(index: EmbeddedRetriever, stack: ExitStack) -> Retriever:
    return HybridRetriever(index, dense(index, stack))


def remote(index: EmbeddedRetriever, stack: ExitStack) -> Retriever:
    return RemoteRetriever(stack.enter_context(served(index)) + "/retrieve")


def opensearch(index: EmbeddedRetriever, stack: ExitStack) -> Retriever:
    url = stack.enter_context(serving(Cluster(index.path.parent)))
    found = OpenSearchRetriever(url, "passages")
    assert found.load(index.all()) == len(PASSAGES)
    return found


KINDS: dict[str, Callable[[EmbeddedRetriever, ExitStack], Retriever]] = {
    "fts5": lambda index, _: index,
    "dense": dense,
    "hybrid": hybrid,
    "remote": remote,
    "opensearch": opensearch,
}


@pytest.fixture(scope="module", params=KINDS)
def retriever(request: pytest.FixtureRequest, index: EmbeddedRetriever) -> Iterator[Retriever]:
    with ExitStack() as stack:
        found = KINDS[request.param](index, stack)
        yield found
        if found is not index:
            found.close()


def test_the_best_passage_comes_first_and_none_twice(retriever: Retriever) -> None:
    hits = retriever.search("capital Lima of Peru", 4)
    names = [one.passage.id for one in hits]
    assert names[0] in ("p1", "p2")
    assert {"p1", "p2", "p3"} <= {*names}
    assert len({*names}) == len(names) <= 4
    assert [one.score for one in hits] == sorted((one.score for one in hits), reverse=True)
    assert hits == retriever.search("capital Lima of Peru", 4)
    assert hits[0].passage.text == next(one.text for one in PASSAGES if one.id == names[0])


def test_passages_are_opened_by_id_and_by_title(retriever: Retriever) -> None:
    found = [retriever.get(name) for name in ("p3", "LIMA", "café", "no such thing", "")]
    assert [one and one.id for one in found] == ["p3", "p1", "p4", None, None]


@pytest.mark.parametrize(
    "query", ["", " \t\n", "!?*", "\x00", "\ud800", '"AND (', "東京", "x" * 100_000, "a b " * 5000]
)
def test_no_query_is_an_error(retriever: Retriever, query: str) -> None:
    assert len(retriever.search(query, 3)) <= 3


def test_impossible_numbers_are_refused(retriever: Retriever) -> None:
    for k in (0, 101):
        with pytest.raises(ValueError, match="between 1 and 100"):
            retriever.search("Lima", k)


# --------------------------------------------------------------------------------------------------------- the server


def test_the_wire_is_search_r1s(index: EmbeddedRetriever) -> None:
    with served(index) as url:
        body = {"queries": ["Lima at the sea, capital of Peru", "coffee"], "topk": 2, "return_scores": True}
        result = httpx.post(f"{url}/retrieve", json=body).json()["result"]
        plain = httpx.post(f"{url}/retrieve", json={"queries": ["coffee"]}).json()["result"]
    assert [len(each) for each in result] == [2, 1]
    title, _, text = result[0][0]["document"]["contents"].partition("\n")
    assert (title, text) == ('"Lima"', PASSAGES[0].text)
    assert result[0][0]["score"] > result[0][1]["score"]
    assert plain[0][0]["contents"].startswith('"Café"\n')


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param({"queries": ["a"] * 5}, 413, id="queries"),
        pytest.param({"queries": ["a" * 5000]}, 413, id="bytes"),
        pytest.param({"queries": ["a"], "topk": 0}, 422, id="none"),
        pytest.param({"queries": ["a"], "topk": 101}, 422, id="many"),
        pytest.param({"queries": "a"}, 422, id="type"),
        pytest.param({"queries": [], "other": 1}, 422, id="field"),
        pytest.param([], 422, id="list"),
    ],
)
def test_the_server_refuses_what_is_too_much_or_malformed(index: EmbeddedRetriever, body: Any, status: int) -> None:
    with served(index, Bounds(queries=4, body=2048)) as url:
        found = httpx.post(f"{url}/retrieve", json=body)
        assert (found.status_code, list(found.json())) == (status, ["detail"])


class SlowRetriever:
    """Takes its time, as a large index may."""

    def search(self, query: str, k: int) -> list[Any]:
        time.sleep(0.4)
        return []

    def get(self, name: str) -> None:
        raise InfrastructureError("the disk is gone")

    def close(self) -> None:
        return None


def test_a_busy_or_slow_server_says_so() -> None:
    body = {"queries": ["a"]}
    with served(SlowRetriever(), Bounds(busy=1, seconds=0.2)) as url, httpx.Client(base_url=url) as client:
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(client.post("/retrieve", json=body).status_code))
                   for _ in range(2)]  # fmt: skip
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert sorted(found) == [503, 504]
        assert client.get("/document", params={"name": "a"}).status_code == 502


# --------------------------------------------------------------------------------------------------------- the client

FINE = {"result": [[{"document": {"id": 7, "contents": '"Lima"\nText.'}, "score": 1.5}]]}


def test_a_client_asks_again_while_a_server_is_busy() -> None:
    with serving(scripted(503, b"", 429, FINE)) as url:
        impatient = RemoteRetriever(url, retries=1)
        with pytest.raises(InfrastructureError):
            impatient.search("a", 1)
        impatient.close()
        client = RemoteRetriever(url, retries=3)
        assert [(one.passage.id, one.passage.title, one.score) for one in client.search("a", 1)] == [("7", "Lima", 1.5)]
        assert client.get("7") == client.get("lima") == client.search("a", 1)[0].passage
        client.close()


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(b"<html>", id="no JSON"),
        pytest.param(b"[" * 100_000, id="nesting"),
        pytest.param({"result": []}, id="no list"),
        pytest.param({"result": [[{"document": {"contents": "x"}, "score": 1}]]}, id="no id"),
        pytest.param(b'{"result": [[{"document": {"id": "1", "contents": "x"}, "score": NaN}]]}', id="NaN"),
        pytest.param({"result": [[{"id": "1", "contents": "x"}]]}, id="no score"),
        pytest.param(500, id="failure"),
        pytest.param(404, id="elsewhere"),
    ],
)
def test_nonsense_from_a_server_is_the_machinerys_failure(reply: Any) -> None:
    with serving(scripted(reply)) as url:
        for kind in (RemoteRetriever(url, retries=0), OpenSearchRetriever(url, "i", retries=0)):
            with pytest.raises(InfrastructureError, match=r"search server|OpenSearch"):
                kind.search("a", 1)
            kind.close()


def test_a_server_that_repeats_itself_or_sends_too_much_is_cut() -> None:
    document = {"document": {"id": "1", "title": "T", "text": "x"}, "score": 2.0}
    many = [{"document": {"id": str(number), "contents": "y"}, "score": 1.0} for number in range(9)]
    with serving(scripted({"result": [[document, document, *many]]})) as url:
        client = RemoteRetriever(url)
        assert [one.passage.id for one in client.search("a", 3)] == ["1", "0", "2"]
        client.close()


def test_a_silent_or_absent_server_is_not_waited_for_long() -> None:
    began = time.monotonic()
    with serving(scripted(FINE, pause_s=1.5)) as url:
        for where in (url, "http://127.0.0.1:9"):
            client = RemoteRetriever(where, timeout_s=0.2, retries=1)
            with pytest.raises(InfrastructureError):
                client.search("a", 1)
            client.close()
    assert time.monotonic() - began < 5


# ---------------------------------------------------------------------------------------------------------- OpenSearch


def test_a_cluster_is_asked_in_its_own_words(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    with serving(cluster) as url:
        retriever = OpenSearchRetriever(url, "passages")
        retriever.load(PASSAGES)
        retriever.search('capital" AND title:*', 2)
        with pytest.raises(InfrastructureError, match="already exists"):
            retriever.load(PASSAGES)
        retriever.index = "other"
        with pytest.raises(InfrastructureError, match="version_conflict"):
            retriever.load([*PASSAGES, PASSAGES[0]])
        retriever.close()
    method, path, body = next(one for one in cluster.asked if one[1].endswith("_search"))
    assert (method, path) == ("POST", "/passages/_search")
    assert body["query"] == {"match": {"passage": {"query": "capital AND title", "operator": "or"}}}
    assert body["size"] == 2
    assert cluster.indices["passages"]["settings"]["index"]["similarity"]["default"] == {
        "type": "BM25", "k1": 1.2, "b": 0.75,
    }  # fmt: skip


def test_an_answer_that_was_recorded_is_read(index: EmbeddedRetriever) -> None:
    hit = {
        "_index": "p",
        "_id": "a",
        "_score": 1.3,
        "_source": {"id": "a", "title": "T", "text": "x"},
        "sort": [1.3, 0],
    }
    shards = {"total": 1, "successful": 1, "skipped": 0, "failed": 0}
    answer = {"took": 5, "timed_out": False, "_shards": shards, "hits": {"max_score": None, "hits": [hit]}}
    with serving(scripted(answer, {**answer, "timed_out": True})) as url:
        retriever = OpenSearchRetriever(url, "p")
        (found,) = retriever.search("x", 1)
        assert (found.passage, found.score) == (Passage(id="a", title="T", text="x"), 1.3)
        with pytest.raises(InfrastructureError, match="ran out of time"):
            retriever.search("x", 1)
        retriever.close()


# ------------------------------------------------------------------------------------------------------------- vectors


def test_vectors_of_other_passages_are_refused(tmp_path: Path) -> None:
    index = EmbeddedRetriever(build(PASSAGES, tmp_path / "a.idx").path)
    with pytest.raises(TaskError, match="--dense trigrams"):
        DenseRetriever(index, TrigramEncoder())
    encode(index, TrigramEncoder())
    changed = EmbeddedRetriever(build(PASSAGES[:5], tmp_path / "a.idx").path)
    with pytest.raises(TaskError, match="belong to other passages"):
        DenseRetriever(changed, TrigramEncoder())


def test_a_passage_that_both_find_comes_before_one_that_only_one_finds(index: EmbeddedRetriever) -> None:
    encode(index, TrigramEncoder())
    vectors = DenseRetriever(index, TrigramEncoder())
    hits = HybridRetriever(index, vectors).search("capital of Japan", 3)
    assert hits[0].passage.id == "p3"
    assert hits[0].score == pytest.approx(2 / 61)


def opened(path: Path) -> int:
    return [one.readlink() for one in Path("/proc/self/fd").iterdir() if one.is_symlink()].count(path)


@pytest.mark.parametrize("kind", [dense, hybrid])
def test_no_file_stays_open_after_the_last_environment_that_searches_by_vectors(
    tmp_path: Path, kind: Callable[[EmbeddedRetriever, ExitStack], Retriever]
) -> None:
    index = EmbeddedRetriever(build(PASSAGES, tmp_path / "a.idx").path)
    task = convert({"id": "q", "question": "What sells coffee?", "answers": ["a café"], "gold_ids": ["p4"]})
    with ExitStack() as stack:
        found = kind(index, stack)
        first, second = (SearchEnv(TaskSet("one", lambda: [task]), retriever=found) for _ in range(2))
        for env in (first, second):
            env.reset(options={"task": task})
            assert "p4" in env.search("a café sells coffee")
        first.close()
        assert opened(index.path) >= 1
        second.close()
        assert opened(index.path) == 0
        assert found.search("a café sells coffee", 1)[0].passage.id == "p4"
        found.close()
    assert opened(index.path) == 0


def test_vectors_are_read_once_for_a_process_and_let_go_when_their_index_is_replaced(tmp_path: Path) -> None:
    encoder, path = TrigramEncoder(), tmp_path / "a.idx"
    encode(EmbeddedRetriever.shared(build(PASSAGES, path).path), encoder)
    first = DenseRetriever.shared(EmbeddedRetriever.shared(path), encoder)
    assert DenseRetriever.shared(EmbeddedRetriever.shared(path), encoder) is first
    remembered = weakref.ref(first)
    encode(EmbeddedRetriever.shared(build(PASSAGES[:5], path).path), encoder)
    second = DenseRetriever.shared(EmbeddedRetriever.shared(path), encoder)
    assert len(second.search("Lima", 12)) == 5
    del first
    gc.collect()
    assert remembered() is None


def test_a_sentence_transformer_made_from_a_config_searches(
    tmp_path: Path, shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    letters = {one: number for number, one in enumerate(["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32)  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "bert")
    fast.save_pretrained(tmp_path / "bert")
    body = Transformer(str(tmp_path / "bert"))
    SentenceTransformer(modules=[body, Pooling(16)], device="cpu").save(str(tmp_path / "model"))

    (tmp_path / "c.jsonl").write_text("\n".join(one.model_dump_json() for one in PASSAGES))
    done = shell("search", "index", tmp_path / "c.jsonl", "--to", "c.idx", "--dense", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    settings = {"index": "c.idx", "model": str(tmp_path / "model")}
    for kind in ("dense", "hybrid"):
        found = open_retriever({"kind": kind, **settings}).search(f"{PASSAGES[3].title}\n{PASSAGES[3].text}", 2)
        assert found[0].passage == PASSAGES[3]
    assert "p3" in shell("search", "find", "c.idx", "capital of Japan", "--dense", tmp_path / "model").stdout
    before = open_retriever({"kind": "dense", **settings})
    assert open_retriever({"kind": "dense", **settings}) is before

    (tmp_path / "c.jsonl").write_text("\n".join(one.model_dump_json() for one in PASSAGES[4:]))
    assert (
        shell("search", "index", tmp_path / "c.jsonl", "--to", "c.idx", "--dense", tmp_path / "model").returncode == 0
    )
    for kind in ("dense", "hybrid"):
        after = open_retriever({"kind": kind, **settings})
        assert [hit.passage for hit in after.search(PASSAGES[3].text, 12) if hit.passage in PASSAGES[:4]] == []


# ------------------------------------------------------------------------------------------------------- the settings


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"kind": "fts6", "index": "x"}, "fts6"),
        ({"kind": "remote"}, "url"),
        ({"kind": "remote", "url": "http://x", "timeout": 3}, "timeout"),
        ({"kind": "remote", "url": "http://x", "timeout_s": 0}, "timeout_s"),
        (3, "dictionary"),
    ],
)
def test_a_malformed_choice_is_one_sentence(chosen: Any, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        open_retriever(chosen)


def test_a_choice_is_opened(index: EmbeddedRetriever) -> None:
    assert isinstance(open_retriever({"kind": "remote", "url": "http://127.0.0.1:9"}), RemoteRetriever)
    assert isinstance(
        open_retriever({"kind": "opensearch", "url": "http://127.0.0.1:9", "index": "i"}), OpenSearchRetriever
    )
    assert open_retriever(str(index.path)) is open_retriever({"kind": "fts5", "index": str(index.path)})


# -------------------------------------------------------------------------------------------------- the command line


def test_a_corpus_is_indexed_and_searched_on_the_command_line(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text("\n".join(one.model_dump_json() for one in PASSAGES))
    done = shell("search", "index", "c.jsonl")
    assert done.returncode == 0, done.stderr
    assert "12 passages" in done.stdout
    assert "Lima" in shell("search", "find", "c.idx", "capital of Peru", "-k", 1).stdout
    assert shell("search", "find", "c.idx", "zzz").stdout == "nothing found\n"
    missing = shell("search", "index", "none.jsonl")
    assert (missing.returncode, "no corpus at" in missing.stderr) == (2, True)
    with serving(Cluster(tmp_path)) as url:
        assert "passages: 12" in shell("search", "index", "c.jsonl", "--opensearch", url, "--name", "passages").stdout


def test_a_taken_port_is_told(shell: Any, index: EmbeddedRetriever) -> None:
    with serving(scripted(200)) as url:
        done = shell("search", "serve", index.path, "--port", url.rpartition(":")[2])
    assert done.returncode == 2
    assert "choose another --port" in done.stderr
