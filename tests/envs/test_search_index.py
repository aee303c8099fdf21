"""Corpora become index files, and any text is a query."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentgym.errors import AgentgymError, TaskError
from agentgym.task import TaskSet
from agentgym_envs.search import embedded
from agentgym_envs.search.embedded import EmbeddedRetriever
from agentgym_envs.search.env import SearchEnv
from agentgym_envs.search.index import build
from agentgym_envs.search.passages import Corpus, Passage

PASSAGES = [
    Passage(id="p1", title="Lima", text="Lima is the capital of Peru.", links=("Peru",)),
    Passage(id="p2", title="Peru", text="Peru is a country. Its capital is Lima, its NOT so high city."),
    Passage(id="p3", title="Tokyo", text="東京は日本の首都です。"),
    Passage(id="p4", title="Café", text="A cafe\u0301 sells coffee; the Übergang is near."),
    Passage(id="p5", title="peru", text="Another text about the same."),
]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[EmbeddedRetriever]:
    found = EmbeddedRetriever(build(PASSAGES, tmp_path / "a.idx").path)
    yield found
    found.close()


def ids(index: EmbeddedRetriever, query: str, k: int = 5) -> list[str]:
    return [hit.passage.id for hit in index.search(query, k)]


def test_what_was_indexed_is_found_and_opened_as_it_was(index: EmbeddedRetriever) -> None:
    assert index.search("capital of Peru", 1)[0].passage == PASSAGES[0]
    assert (index.get("p3"), index.get("LIMA"), index.get("Peru"), index.get("")) == (
        *PASSAGES[2:3],
        *PASSAGES[:2],
        None,
    )
    assert list(index.all()) == PASSAGES
    scores = [hit.score for hit in index.search("Peru capital Lima", 5)]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("query", "first"),
    [
        pytest.param("日本", "p3", id="a word inside a text without spaces"),
        pytest.param("CAFÉ", "p4", id="composed"),
        pytest.param("cafe\u0301", "p4", id="decomposed"),
        pytest.param("ubergang", "p4", id="no diacritics"),
        pytest.param("NOT", "p2", id="an operator is a word"),
        pytest.param('coffee" OR passage : ^ {', "p4", id="syntax is space"),
        pytest.param("sells NEAR(coffee, 1)*", "p4", id="a function is words"),
    ],
)
def test_a_query_is_words_and_nothing_else(index: EmbeddedRetriever, query: str, first: str) -> None:
    assert ids(index, query)[0] == first


@given(st.text(st.characters(codec=None), max_size=60))
def test_any_text_is_a_query(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.idx"
    if not path.exists():
        build(PASSAGES, path)
    index = EmbeddedRetriever.shared(path)
    assert len(index.search(text, 3)) <= 3
    assert index.get(text) is None or text


def test_only_a_possible_number_of_passages_can_be_asked_for(index: EmbeddedRetriever) -> None:
    for k in (0, -1, 101):
        with pytest.raises(ValueError, match="between 1 and 100"):
            index.search("Lima", k)


def test_the_same_corpus_gives_the_same_bytes_and_another_one_another_digest(tmp_path: Path) -> None:
    first, again = build(PASSAGES, tmp_path / "1.idx"), build(iter(PASSAGES), tmp_path / "2.idx")
    assert first.path.read_bytes() == again.path.read_bytes()
    assert first.digest == again.digest != build(PASSAGES[:4], tmp_path / "3.idx").digest


def test_a_build_that_fails_leaves_the_old_index_and_nothing_else(tmp_path: Path) -> None:
    path = build(PASSAGES, tmp_path / "a.idx").path
    before = path.read_bytes()

    def broken() -> Iterator[Passage]:
        yield from PASSAGES[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(broken(), path)
    with pytest.raises(TaskError, match="two passages have the id 'p2'"):
        build([*PASSAGES, PASSAGES[1]], path)
    with pytest.raises(TaskError, match="nothing to index"):
        build([], path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["a.idx"]


def test_environments_share_an_index_until_it_is_replaced(tmp_path: Path) -> None:
    path = build(PASSAGES[:1], tmp_path / "a.idx").path
    first = EmbeddedRetriever.shared(path)
    assert EmbeddedRetriever.shared(str(path)) is first
    build(PASSAGES[2:3], path)
    assert EmbeddedRetriever.shared(path).get("p3") == PASSAGES[2]
    assert first.get("p1") == PASSAGES[0]  # who has the old one open keeps it


def test_a_query_of_frequent_words_alone_searches_the_first_of_them(tmp_path: Path) -> None:
    every = [f"word{number}" for number in range(20)]
    texts = [" ".join(every), " ".join(every), "rare"]
    built = build([Passage(id=f"p{at}", title="", text=text) for at, text in enumerate(texts)], tmp_path / "a.idx")
    index = EmbeddedRetriever(built.path)
    assert index._weighty(every) == every[:8]
    assert index._weighty([*every, "rare"]) == ["rare"]
    index.close()


def test_a_query_that_takes_too_long_is_told(index: EmbeddedRetriever, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_SECONDS", -1.0)
        patch.setattr(embedded, "_STEPS", 1)
        with pytest.raises(ValueError, match="the query takes too long; use rarer words"):
            index.search("capital", 3)
    assert index.search("capital", 3)


def test_many_threads_find_what_one_finds(index: EmbeddedRetriever) -> None:
    queries = ["Lima", "Peru capital", "東京", "coffee"] * 20
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda one: ids(index, one), queries)) == [ids(index, one) for one in queries]


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\x00" + bytes(84)])
def test_another_file_is_no_index(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.idx").write_bytes(content)
    with pytest.raises(TaskError, match="no search index"):
        EmbeddedRetriever(tmp_path / "a.idx")
    with pytest.raises(TaskError, match="agentgym search index CORPUS --to"):
        EmbeddedRetriever(tmp_path / "none.idx")


def test_rows_of_three_forms_are_passages(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "title": "T", "text": "x", "links": ["L"], "src": "ignored"},
        {"_id": 7, "title": "T", "text": "x"},
        {"id": "c", "contents": '"T"\nx\ny'},
    ]
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(gzip.compress("\n\n".join(map(json.dumps, rows)).encode()))
    found = list(Corpus(path))
    assert [(one.id, one.title, one.text) for one in found] == [("a", "T", "x"), ("7", "T", "x"), ("c", "T", "x\ny")]
    assert found[0].links == ("L",)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "c.jsonl:2 is not a passage"),
        ("[]", "found list"),
        ('{"id": "a"}', "valid string"),
        ('{"id": "", "text": "x"}', "at least 1 character"),
        ('{"text": "x"}', "valid string"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"id": "fine", "text": "x"}\n' + line + "\n")
    with pytest.raises(TaskError, match=r"c\.jsonl:2") as error:
        list(Corpus(path))
    assert sentence in str(error.value)


def test_a_missing_corpus_and_an_empty_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no corpus at"):
        Corpus(tmp_path / "none")
    with pytest.raises(TaskError, match="holds no document"):
        Corpus(tmp_path)
    with pytest.raises(AgentgymError, match="no index can be written"):
        build(PASSAGES, Path("/proc/nowhere/a.idx"))


DOCUMENTS = {
    "guide/start.md": (
        "# Start\n\nSee [the calls](../api/calls.rst#x).\n\n## Install\n\nRun `make`.\n\n```sh\nmake all\n```\n"
    ),
    "api/calls.rst": (
        "Calls\n=====\n\n.. include:: /etc/passwd\n\n.. raw:: html\n   :file: /etc/passwd\n\n"
        "A call, see :func:`unknown role` and `site <https://example.org/a>`_.\n\n"
        "Return\n------\n\nIt returns::\n\n  a = 1\n"
    ),
    "page.html": (
        "<html><head><title>Page</title><style>p{}</style></head><body><nav>menu</nav><script>steal()</script>"
        "<h2>Part</h2><p>Some <b>bold</b> text, <a href='guide/start.md'>link</a>.</p><ul><li>one<li>two</ul></body>"
    ),
    "notes.txt": "First paragraph\nof two lines.\n\nSecond.\n",
    "left.out": "not a document",
}


def test_a_folder_of_documents_becomes_passages_cut_at_headings(tmp_path: Path) -> None:
    for name, text in DOCUMENTS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "old.txt.gz").write_bytes(gzip.compress("Alte Gr\u00fc\u00dfe".encode("latin-1")))
    (tmp_path / "broken.md.gz").write_bytes(b"\x1f\x8b broken")
    (tmp_path / "link.md").symlink_to("/etc/passwd")
    corpus = Corpus(tmp_path)
    found = {one.id: one for one in corpus}
    assert {name: (one.title, one.text) for name, one in found.items()} == {
        "api/calls.rst": ("Calls", found["api/calls.rst"].text),
        "api/calls.rst#2": ("Calls: Return", "It returns:\n\na = 1"),
        "guide/start.md": ("Start", "See the calls."),
        "guide/start.md#2": ("Start: Install", "Run make.\n\nmake all"),
        "notes.txt": ("notes", "First paragraph\nof two lines.\n\nSecond."),
        "old.txt.gz": ("old", "Alte Gr\u00fc\u00dfe"),
        "page.html": ("Page: Part", "Some bold text, link.\n\none\n\ntwo"),
    }
    assert found["guide/start.md"].links == ("api/calls.rst",)
    assert found["api/calls.rst"].links == ("https://example.org/a",)
    assert found["page.html"].links == ("guide/start.md",)
    assert "root:" not in found["api/calls.rst"].text
    assert corpus.skipped.keys() == {"broken.md.gz"}
    assert corpus.position == corpus.total


def test_a_long_paragraph_is_cut_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(2000)]
    (tmp_path / "a.txt").write_text(" ".join(words) + "\n\n" + "x" * 5000)
    found = list(Corpus(tmp_path))
    assert max(len(one.text) for one in found) <= 2000
    assert " ".join(one.text for one in found).split()[:2000] == words
    assert sum(one.text.count("x") for one in found) == 5000


# ------------------------------------------------------------------------------------------------------------ real data


@pytest.fixture(scope="module")
def real(data: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbeddedRetriever:
    corpus = Corpus(data / "multihop_qa/corpus.jsonl.gz")
    return EmbeddedRetriever(build(corpus, tmp_path_factory.mktemp("real") / "multihop.idx").path)


STATED = {"hotpotqa": 0.53, "2wikimultihopqa": 0.37, "musique": 0.09}
"""The share of questions whose gold passages are all in the top 5 of one query with BM25, as published for the set."""


def test_one_query_finds_what_bm25_finds(data: Path, real: EmbeddedRetriever) -> None:
    bm25s = pytest.importorskip("bm25s", reason="bm25s is not installed")
    assert real.passages == 7995
    questions = [json.loads(line) for line in (data / "multihop_qa/questions.jsonl").read_text().splitlines()]
    complete: dict[str, list[bool]] = {}
    found = []
    for one in questions:
        names = [hit.passage.id for hit in real.search(one["question"], 5)]
        complete.setdefault(one["dataset"], []).append(set(one["gold_ids"]) <= set(names))
        found.append(set(names))
    shares = {name: sum(each) / len(each) for name, each in complete.items()}
    assert {name: round(share, 3) for name, share in shares.items()} == pytest.approx(STATED, abs=0.0501)

    passages = list(real.all())
    other = bm25s.BM25(k1=1.2, b=0.75)
    other.index(bm25s.tokenize([f"{one.title}\n{one.text}" for one in passages], stopwords=None, show_progress=False),
                show_progress=False)  # fmt: skip
    tokens = bm25s.tokenize([one["question"] for one in questions], stopwords=None, show_progress=False)
    numbers, _ = other.retrieve(tokens, k=5, show_progress=False)
    shared = [len(ours & {passages[at].id for at in row}) / 5 for ours, row in zip(found, numbers, strict=True)]
    assert sum(shared) / len(shared) > 0.85


def test_leaving_out_frequent_words_changes_nothing_but_the_order_of_ties(data: Path, real: EmbeddedRetriever) -> None:
    from agentgym_envs.search.query import match_expression, words

    questions = [
        json.loads(line)["question"] for line in (data / "multihop_qa/questions.jsonl").read_text().splitlines()
    ]
    raw = sqlite3.connect(f"file:{real.path}?mode=ro", uri=True)
    statement = "SELECT -bm25(words) FROM words WHERE words MATCH ? ORDER BY bm25(words), rowid LIMIT 10"
    for question in questions[::10]:
        wanted = [score for (score,) in raw.execute(statement, (match_expression(words(question)),))]
        assert [hit.score for hit in real.search(question, 10)] == pytest.approx(wanted, abs=1e-4)
    raw.close()


def test_few_files_stay_open_after_many_searches_at_once_and_none_after_the_last_user(index: EmbeddedRetriever) -> None:
    def opened() -> int:
        links = [one.readlink() for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]
        return links.count(index.path)

    first, second = SearchEnv(TaskSet("none", list), retriever=index), SearchEnv(TaskSet("none", list), retriever=index)
    for user in (first, second):
        index.enter(user)
    with ExitStack() as searches:
        for _ in range(3 * embedded.KEPT):
            searches.enter_context(index._connection()).execute("SELECT * FROM meta").fetchall()
        assert opened() == 3 * embedded.KEPT
    assert opened() == embedded.KEPT
    first.close()
    assert opened() == embedded.KEPT
    second.close()
    second.close()
    assert opened() == 0
    assert ids(index, "sells coffee") == ["p4"]
