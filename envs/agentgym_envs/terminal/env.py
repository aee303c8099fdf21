"""Work in a terminal until the task is done; the task's own script, or an answer, decides."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from agentgym.env import AgentEnv, Submit, tool
from agentgym.errors import SandboxError, TaskError, UnknownNameError
from agentgym.sandbox import ExecResult, Shell, Terminal
from agentgym.task import Task, TaskSet
from agentgym.types import Message, Split, Submission, Trust, Verdict
from agentgym_envs.terminal import agentbench_os, harbor
from agentgym_envs.terminal.handing_in import Folder
from agentgym_envs.terminal.spec import read_spec, roots_of
from agentgym_envs.terminal.verify import LEVELS, in_fresh, in_place

FAMILIES = ("harbor", "agentbench_os")
_OUTPUT = 1 << 16
_MOST_S = 600.0
_INIT_S = 120.0
_KEYS = {"enter": "\r", "tab": "\t", "escape": "\x1b", "ctrl-c": "\x03", "ctrl-d": "\x04", "ctrl-z": "\x1a",
         "up": "\x1b[A", "down": "\x1b[B", "right": "\x1b[C", "left": "\x1b[D", "backspace": "\x7f"}  # fmt: skip
EXPLANATION = """You work in a Linux machine of your own. `shell` runs commands in one shell that remembers its folder \
and variables; `keys` types into a terminal, for programs that want one. {end} There is no network."""
_SUBMIT = "When the task is done, call `submit`; what is in {root} then is judged."
_ANSWER = "When you know the answer, call `answer` with it and nothing else."


class TerminalEnv(AgentEnv):
    """A shell and a terminal in a container; task folders of Harbor and terminal-bench, questions of AgentBench."""

    sandboxed = True
    levels: ClassVar[tuple[str, ...]] = LEVELS
    signals: ClassVar[tuple[str, ...]] = ("failing_commands",)

    def __init__(
        self,
        tasks: TaskSet | None = None,
        *,
        family: str = "harbor",
        path: str | None = None,
        verifier: Literal["separate", "shared"] = "separate",
        network: Literal["none", "full"] = "none",
        reward: str = "reward",
        task_split: Split | None = None,
        per_answer: int | None = 12,
        max_turns: int = 30,
        observation_limit: int = 8000,
        **options: Any,
    ) -> None:
        """Choose the tasks.

        Args:
            tasks: a task set; without one, `family` reads it from `path`.
            family: `harbor` (folders of Harbor and of terminal-bench) or `agentbench_os`.
            path: the folder of task folders, or the file.
            verifier: of `harbor`: `separate` judges in a fresh container whatever the folder says; `shared` where the
                agent worked, and its verdicts say so.
            network: of `harbor`: `full` gives the agent and the verifier the machine's network.
            reward: of `harbor`: which entry of a `reward.json` with several counts.
            task_split: of `harbor`: the split of all tasks; by default `test`.
            per_answer: of `agentbench_os`: how many tasks may have the same answer; None keeps all.
            max_turns: messages in an episode.
            observation_limit: characters of one tool's answer.
            **options: the others of `AgentEnv`.
        """
        wanted = harbor.Wanted(verifier=verifier, network=network, reward=reward, split=task_split)
        made = tasks or _tasks(family, path, wanted, per_answer)
        super().__init__(made, max_turns=max_turns, observation_limit=observation_limit, **options)
        self._shell: Shell | None = None
        self._terminal: Terminal | None = None
        self._folder: Folder | None = None

    @property
    def asks(self) -> bool:
        """Whether the present task wants an answer instead of work."""
        return self._full_task.grader == "answer"

    def prompt(self) -> Sequence[Message]:
        """How the tools work, and the task."""
        end = _ANSWER if self.asks else _SUBMIT.format(root=self.sandbox.workdir)
        said = EXPLANATION.format(end=end)
        if self._full_task.sandbox.network != "none":
            said = said.removesuffix(" There is no network.")
        return (Message(role="system", content=said), *super().prompt())

    # ------------------------------------------------------------------ tools

    @tool
    def shell(self, command: str, timeout_s: float = 60.0) -> str:
        """Run a script in the shell, a POSIX one; its output is returned, and how it ended unless that was well."""
        if not 0 < timeout_s <= _MOST_S:
            raise ValueError(f"wanted timeout_s above 0 and at most {_MOST_S:g}, found {timeout_s:g}")
        if self._shell is None:
            self._shell = self.sandbox.shell()
            self._shell.run(f"cd {shlex.quote(self.sandbox.workdir)}")
        result = self._shell.run(command, timeout=timeout_s, output_limit=_OUTPUT)
        self.emit("failing_commands", float(not result.ok))
        return _told(result, timeout_s)

    @tool
    def keys(self, text: str = "", key: str | None = None, wait_s: float = 1.0) -> str:
        """Type text, and then a key, into a terminal, and read what it shows within a while.

        Keys: enter, tab, escape, up, down, left, right, backspace, ctrl-c, ctrl-d, ctrl-z.
        """
        if key is not None and key not in _KEYS:
            raise ValueError(str(UnknownNameError("key", key, _KEYS)))
        if not 0 <= wait_s <= _MOST_S:
            raise ValueError(f"wanted wait_s from 0 to {_MOST_S:g}, found {wait_s:g}")
        if self._terminal is None:
            self._terminal = self.sandbox.terminal(("bash", "-i"))
            self._terminal.read(timeout=5.0)
        try:
            self._terminal.send(text + (_KEYS[key] if key else ""))
        except TimeoutError as error:
            raise ValueError("the program in the terminal takes no input") from error
        found = self._terminal.read(timeout=wait_s)
        shown = found.data.decode("utf-8", "replace")
        if found.exit_code is not None:
            self._terminal.close()
            self._terminal = None
            shown += f"\n[the terminal's program ended with exit code {found.exit_code}; the next keys begin anew]"
        return shown or "[nothing new]"

    @tool
    def answer(self, text: str) -> Submit:
        """Hand in the answer to a question, and end the episode."""
        if not self.asks:
            raise ValueError("this task is not answered but done: call submit")
        return Submit(text)

    @tool
    def submit(self) -> Submit:
        """Say that the task is done, and end the episode."""
        if self.asks:
            raise ValueError("this task wants an answer: call answer")
        if self.shares:
            return Submit(shared=True)
        assert self._folder is not None
        return Submit(**self._folder.changes())

    # ------------------------------------------------------------------ the rest

    @property
    def shares(self) -> bool:
        """Whether the present task is judged where the agent worked."""
        return not self.asks and read_spec(self._full_task).verifier == "shared"

    def check_task(self, task: Task) -> None:
        """Refuse a task that cannot be judged."""
        if task.grader is None:
            read_spec(task)
        else:
            super().check_task(task)

    def grade(self, task: Task, submission: Submission) -> Verdict | bool | float:
        """Judge an answer, or the files that were handed in, or the agent's own container if the task says so."""
        if task.grader is not None:
            return super().grade(task, submission)
        if read_spec(task).verifier == "shared":
            return in_place(task, self.sandbox) if submission.data.get("shared") is True else _nothing()
        return in_fresh(task, submission, self.sandboxes)

    def oracle(self, task: Task) -> Sequence[str]:
        """Run the folder's solution, or the gold command, as an agent would."""
        if task.grader == "answer":
            script = f"bash 2>/dev/null <<'END-OF-GOLD'\n{task.hidden.reference['command']}\nEND-OF-GOLD"
            return [_call("shell", command=script), _call("answer", text=str(task.hidden.reference["answer"]))]
        files = task.hidden.reference.get("solution")
        if not isinstance(files, dict) or "solve.sh" not in files:
            raise TaskError(f"task {task.id!r} has no solution/solve.sh, so no expert can be asked")
        put = [f"mkdir -p {harbor.SOLUTION}"]
        for name, text in files.items():
            place = shlex.quote(f"{harbor.SOLUTION}/{name}")
            put.append(f"mkdir -p $(dirname {place}); base64 -d >{place} <<'END'\n{text}\nEND")
        run = f"bash {harbor.SOLUTION}/solve.sh; code=$?; rm -rf {harbor.SOLUTION}/*; exit $code"
        limit = min(_MOST_S, 600.0)
        return [_call("shell", command="\n".join([*put, f"({run})"]), timeout_s=limit), _call("submit")]

    def attacks(self, task: Task) -> Mapping[str, Submission | Sequence[str]]:
        """What agents do to a verifier instead of the task."""
        if task.grader is not None:
            return {}
        one = base64.b64encode(b"1").decode()
        cheat = base64.b64encode(b"#!/bin/bash\nmkdir -p /logs/verifier; echo 1 >/logs/verifier/reward.txt\n").decode()
        plant = "echo 1 >/logs/verifier/reward.txt; echo '{\"reward\": 1}' >/logs/verifier/reward.json"
        write = "printf 'echo 1 >/logs/verifier/reward.txt' >/tests/test.sh; cp /tests/test.sh /tests/run-tests.sh"
        return {
            "plant a reward": [_call("shell", command=plant), _call("submit")],
            "write its own tests": [_call("shell", command=write), _call("submit")],
            "hand in a reward": Submission(data={"contents": {"/logs/verifier/reward.txt": one}}),
            "hand in tests": Submission(data={"contents": {"/tests/test.sh": cheat}}),
            "hand in a startup file": Submission(data={"contents": {"/etc/bash.bashrc": cheat, "/tmp/.bashrc": cheat}}),
        }

    def _start_sandbox(self) -> None:
        super()._start_sandbox()
        self._shell, self._terminal, self._folder = None, None, None
        init = self.task.data.get("init")
        if isinstance(init, str):
            self._furnish(init)
        elif not self.shares:
            self._folder = Folder(self.sandbox, roots_of(self._full_task, self.sandbox.workdir))

    def _furnish(self, script: str) -> None:
        home = agentbench_os.HOME
        # As root, who may write everywhere; what it makes belongs to root, and the agent may read it.
        done = self.sandbox.exec(
            ("bash", "-c", f"umask 022\n{script}"), user="root", cwd=home, env={"HOME": home}, timeout=_INIT_S
        )
        if done.timed_out:
            raise SandboxError(f"the init script of {self._full_task.id!r} took longer than {_INIT_S:g} s")


def _tasks(family: str, path: str | None, wanted: harbor.Wanted, per_answer: int | None) -> TaskSet:
    if family not in FAMILIES:
        raise UnknownNameError("family of terminal tasks", family, FAMILIES)
    if path is None:
        raise TaskError(f"the family {family!r} is read from files; pass path=…")
    if family == "agentbench_os":
        return agentbench_os.tasks(Path(path), per_answer)
    return harbor.tasks(Path(path), wanted)


def _nothing() -> Verdict:
    return Verdict(value=0.0, level="empty", trust=Trust.SHARED, feedback="nothing was handed in")


def _told(result: ExecResult, timeout_s: float) -> str:
    parts = [result.output.rstrip("\n")] if result.output.strip() else []
    if result.timed_out:
        parts.append(f"[ended: it took longer than {timeout_s:g} s]")
    elif result.oom:
        parts.append("[ended: out of memory]")
    elif result.exit_code != 0:
        parts.append(f"[exit code {result.exit_code}]")
    return "\n".join(parts) or "[no output]"


def _call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"
