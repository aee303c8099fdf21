"""Search servers on the loopback: one that speaks OpenSearch's REST format, one that answers as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from agentgym_envs.search.embedded import EmbeddedRetriever
from agentgym_envs.search.index import build
from agentgym_envs.search.passages import Passage

Reply = tuple[int, bytes]
Answer = Callable[[str, str, bytes], Reply]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, data = self.server.answer(self.command, self.path, body)  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _do

    def log_message(self, *args: object) -> None:
        return None


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """Serve a function of method, path and body; yields the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.answer = answer  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Cluster:
    """As much of OpenSearch 2's REST API as the adapter uses, in the format that its documentation records.

    It refuses what OpenSearch refuses: an index that exists, fields that the mapping does not have, other queries.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.indices: dict[str, dict[str, Any]] = {}
        self.documents: dict[str, dict[str, dict[str, Any]]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self._searched: dict[str, EmbeddedRetriever] = {}

    def __call__(self, method: str, path: str, body: bytes) -> Reply:
        """Answer one request."""
        _, index, *rest = path.split("/")
        lines = [json.loads(line) for line in body.splitlines() if line.strip()] if rest == ["_bulk"] else []
        self.asked.append((method, path, lines or (json.loads(body) if body else None)))
        if method == "PUT" and not rest:
            return self._create(index, json.loads(body))
        if index not in self.indices:
            return _error(404, "index_not_found_exception", f"no such index [{index}]")
        if (method, rest) == ("POST", ["_bulk"]):
            return self._bulk(index, lines)
        if (method, rest) == ("POST", ["_refresh"]):
            return _json({"_shards": {"total": 2, "successful": 1, "failed": 0}})
        if (method, rest) == ("POST", ["_search"]):
            return self._search(index, json.loads(body))
        return _error(400, "illegal_argument_exception", f"no handler for [{path}] and method [{method}]")

    def _create(self, index: str, body: dict[str, Any]) -> Reply:
        if index in self.indices:
            return _error(400, "resource_already_exists_exception", f"index [{index}] already exists")
        self.indices[index], self.documents[index] = body, {}
        return _json({"acknowledged": True, "shards_acknowledged": True, "index": index})

    def _bulk(self, index: str, lines: list[dict[str, Any]]) -> Reply:
        known = self.indices[index]["mappings"]["properties"]
        items = []
        for action, document in zip(lines[::2], lines[1::2], strict=True):
            name = action["create"]["_id"]
            if name in self.documents[index] or set(document) - set(known):
                error = {"type": "version_conflict_engine_exception", "reason": f"[{name}]: document already exists"}
                items.append({"create": {"_index": index, "_id": name, "status": 409, "error": error}})
                continue
            self.documents[index][name] = document
            items.append({"create": {"_index": index, "_id": name, "_version": 1, "result": "created", "status": 201}})
        return _json({"took": 3, "errors": any("error" in one["create"] for one in items), "items": items})

    def _search(self, index: str, body: dict[str, Any]) -> Reply:
        unknown = set(body) - {"query", "size", "sort", "track_scores", "track_total_hits", "timeout", "_source"}
        ((kind, condition),) = body["query"].items()
        if unknown or kind not in ("match", "term"):
            return _error(400, "parsing_exception", f"unknown {unknown or kind}")
        found = self._match(index, condition, body["size"]) if kind == "match" else self._term(index, condition)
        hits = [
            {
                "_index": index,
                "_id": one["id"],
                "_score": score,
                "_source": {name: one[name] for name in body["_source"]},
                "sort": [score, one["number"]],
            }
            for one, score in found[: body["size"]]
        ]
        shards = {"total": 1, "successful": 1, "skipped": 0, "failed": 0}
        return _json({"took": 2, "timed_out": False, "_shards": shards, "hits": {"max_score": None, "hits": hits}})

    def _term(self, index: str, condition: dict[str, str]) -> list[tuple[dict[str, Any], float]]:
        ((field, value),) = condition.items()
        return [(one, 1.0) for one in self.documents[index].values() if one[field] == value]

    def _match(self, index: str, condition: dict[str, Any], size: int) -> list[tuple[dict[str, Any], float]]:
        kept = self.documents[index]
        if index not in self._searched:
            passages = [Passage(id=name, text=one["passage"]) for name, one in kept.items()]
            self._searched[index] = EmbeddedRetriever(build(passages, self.folder / f"{index}.idx").path)
        hits = self._searched[index].search(condition["passage"]["query"], size)
        return [(kept[hit.passage.id], hit.score) for hit in hits]


def scripted(*replies: Any, pause_s: float = 0.0) -> Callable[[str, str, bytes], Reply]:
    """Answer with these in turn, and the last for ever: JSON values, bytes, or a status alone."""
    left = list(replies)
    lock = threading.Lock()

    def answer(method: str, path: str, body: bytes) -> Reply:
        time.sleep(pause_s)
        with lock:
            one = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(one, int):
            return one, b"{}"
        return (200, one) if isinstance(one, bytes) else _json(one)

    return answer


def _json(value: Any, status: int = 200) -> Reply:
    return status, json.dumps(value).encode()


def _error(status: int, kind: str, reason: str) -> Reply:
    return _json({"error": {"root_cause": [], "type": kind, "reason": reason}, "status": status}, status)
