"""What tests share: a toy environment, a counting sandbox backend, a scripted model endpoint, conformance checks.

There is no fake sandbox: a fake that nothing holds to the real one's promises proves nothing.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar, Self

from gymnasium.utils.env_checker import check_env

from agentgym import registry
from agentgym.env import AgentEnv, Submit, tool
from agentgym.sandbox import Capability, Contact, ExecResult, Sandbox, SandboxBackend, SandboxSpec, Shell, Terminal
from agentgym.task import Hidden, Public, Task, TaskSet
from agentgym.types import Submission, Verdict

WORDS = ("marble", "lantern", "orchard", "piston", "saddle", "timber", "velvet", "window", "zephyr", "copper")


def toy_task(seed: int, difficulty: float = 1.0) -> Task:
    """Return the task of reversing a word; the seed decides word and split, half of the tasks are for training."""
    word = WORDS[seed % len(WORDS)] + (f"-{seed}" if seed >= len(WORDS) else "")
    return Task(
        id=f"toy-{seed}",
        split=("train", "validation", "train", "test")[seed % 4],
        public=Public(prompt=f"Reverse the word {word!r}."),
        hidden=Hidden(data={"answer": word[::-1]}, reference={"answer": word[::-1]}),
        hints=(f"The last letter is {word[-1]}.", f"The answer is {word[::-1]}."),
        difficulty=difficulty,
    )


class ToyEnv(AgentEnv):
    """Reverse a word: one tool that helps, one that submits, no sandbox. Deterministic and fast."""

    tasks = TaskSet.from_generator("toy", toy_task, count=20)
    levels: ClassVar[tuple[str, ...]] = ("no_submission", "failed", "passed")

    @tool
    def reverse(self, text: str, times: int = 1) -> str:
        """Reverse a text, once or more often."""
        return text[::-1] if times % 2 else text

    @tool
    def answer(self, text: str) -> Submit:
        """Hand in the reversed word."""
        return Submit(text)

    def grade(self, task: Task, submission: Submission) -> Verdict | bool | float:
        """Compare with the reversed word."""
        return submission.answer == task.hidden.data["answer"]

    def oracle(self, task: Task) -> Sequence[str]:
        """Reverse with the tool, then answer."""
        gold = str(task.hidden.reference["answer"])
        return [f"```reverse\n{gold[::-1]}\n```", f"```answer\n{gold}\n```"]


class CountingBackend:
    """A real backend, watched: knows how many sandboxes were started and which are still open."""

    def __init__(self, backend: SandboxBackend) -> None:
        self.backend = backend
        self.name = backend.name
        self.capabilities: frozenset[Capability] = backend.capabilities
        self.started = 0
        self._open: set[str] = set()
        self._lock = threading.Lock()

    @property
    def open_count(self) -> int:
        """How many sandboxes are open now."""
        return len(self._open)

    def check(self) -> None:
        """Ask the real backend."""
        self.backend.check()

    def accept(self, spec: SandboxSpec) -> None:
        """Ask the real backend."""
        self.backend.accept(spec)

    def start(self, spec: SandboxSpec) -> Sandbox:
        """Start a real sandbox and remember it."""
        return self._watched(self.backend.start(spec))

    def fork(self, snapshot: str) -> Sandbox:
        """Fork a real sandbox and remember it."""
        return self._watched(self.backend.fork(snapshot))

    def drop(self, snapshot: str) -> None:
        """Free a real snapshot."""
        self.backend.drop(snapshot)

    def close(self) -> None:
        """End every sandbox."""
        self.backend.close()
        self._open.clear()

    def _watched(self, box: Sandbox) -> Sandbox:
        with self._lock:
            self.started += 1
            self._open.add(box.id)
        return _Watched(box, self._closed)

    def _closed(self, box: Sandbox) -> None:
        with self._lock:
            self._open.discard(box.id)


class _Watched:
    def __init__(self, box: Sandbox, on_close: Callable[[Sandbox], None]) -> None:
        self._box = box
        self._on_close = on_close
        self.id = box.id
        self.workdir = box.workdir

    def exec(
        self,
        command: str | Sequence[str],
        *,
        timeout: float = 30.0,
        stdin: bytes = b"",
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        output_limit: int = 65536,
    ) -> ExecResult:
        return self._box.exec(
            command, timeout=timeout, stdin=stdin, user=user, cwd=cwd, env=env, output_limit=output_limit
        )

    def read(self, path: str, *, limit: int = 1 << 20) -> bytes:
        return self._box.read(path, limit=limit)

    def write(self, path: str, data: bytes) -> None:
        self._box.write(path, data)

    def upload(self, files: Mapping[str, bytes]) -> None:
        self._box.upload(files)

    def download(self, path: str, *, max_files: int = 10_000, max_bytes: int = 1 << 26) -> dict[str, bytes]:
        return self._box.download(path, max_files=max_files, max_bytes=max_bytes)

    def shell(self) -> Shell:
        return self._box.shell()

    def terminal(self, command: str | Sequence[str] = ("/bin/sh",), *, rows: int = 24, columns: int = 80) -> Terminal:
        return self._box.terminal(command, rows=rows, columns=columns)

    def contacts(self) -> tuple[Contact, ...]:
        return self._box.contacts()

    def snapshot(self) -> str:
        return self._box.snapshot()

    def close(self) -> None:
        self._box.close()
        self._on_close(self._box)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # beyond it a connection is tried again a second later


class ScriptedEndpoint:
    """A real HTTP server on this machine that answers chat completions, in OpenAI's shape, as a function says.

    >>> with ScriptedEndpoint(lambda body: "hello") as endpoint:
    ...     endpoint.url  # doctest: +ELLIPSIS
    'http://127.0.0.1:.../v1'
    """

    def __init__(self, reply: Callable[[dict[str, Any]], str]) -> None:
        """Take what turns a request's body into the text of the reply."""
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        """The bodies that were sent, in order."""
        self.keys: list[str | None] = []
        """The `Authorization` header of each."""
        self.statuses: list[int] = []
        """Statuses to answer the next requests with; 200 when it is empty."""
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        """The endpoint's base."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, body: dict[str, Any], key: str | None) -> tuple[int, dict[str, Any]]:
        with self._lock:
            self.requests.append(body)
            self.keys.append(key)
            status = self.statuses.pop(0) if self.statuses else 200
        if status != 200:
            return status, {"error": {"message": "scripted"}}
        message = {"role": "assistant", "content": self.reply(body)}
        return 200, {"object": "chat.completion", "choices": [{"message": message, "finish_reason": "stop"}]}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        answer = self._answer

        class Handler(BaseHTTPRequestHandler):
            wbufsize = -1

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                known = self.path == "/v1/chat/completions"
                status, found = answer(body, self.headers.get("Authorization")) if known else (404, {})
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                return None

        return Handler


def check_environment(env: str | Callable[[], AgentEnv], **options: Any) -> None:
    """Assert what every environment promises, beyond what `validate` asks of its tasks.

    Args:
        env: a registered id, or whatever builds the environment.
        options: constructor arguments for a registered id.

    Raises:
        AssertionError: with one sentence that says which promise is broken.
    """
    make: Callable[[], AgentEnv] = (lambda: registry.make(env, **options)) if isinstance(env, str) else env
    checked = make()
    with warnings.catch_warnings():
        # The checker recommends array observations, which messages cannot be.
        warnings.simplefilter("ignore", UserWarning)
        check_env(checked, skip_render_check=True, skip_close_check=True)
    first, second = make(), make()
    try:
        _same_seed_same_task(first, second)
        _steps_pay_what_the_scheme_says(first)
        _has_tasks(first)
    finally:
        for one in (checked, first, second):
            one.close()
            one.close()


def _same_seed_same_task(first: AgentEnv, second: AgentEnv) -> None:
    one, info = first.reset(seed=5)
    other, other_info = second.reset(seed=5)
    assert (one, info["task_id"]) == (other, other_info["task_id"]), "reset(seed=5) begins two different episodes"


def _steps_pay_what_the_scheme_says(env: AgentEnv) -> None:
    env.reset(seed=0)
    paid, ended, info = 0.0, False, dict[str, Any]()
    for _ in range(env.max_turns):
        observation, reward, terminated, truncated, info = env.step("nothing to say")
        assert env.observation_space.contains(observation), f"step returned {observation!r}, no observation"
        paid, ended = paid + reward, terminated or truncated
        assert not (terminated and truncated), "an episode is terminated or truncated, never both"
        if ended:
            break
    assert ended, f"max_turns={env.max_turns} messages did not end the episode"
    wanted = env.settle(info["verdict"])
    assert paid == wanted, f"step paid {paid} over the episode, the scheme says {wanted}"


def _has_tasks(env: AgentEnv) -> None:
    assert next(iter(env.tasks), None) is not None, f"the task set {env.tasks.name!r} is empty"
