"""Mend a repository: an agent with a shell, an editor and a search; the host takes the diff, the tests decide."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from agentgym.env import AgentEnv, Submit, tool
from agentgym.errors import SandboxError, TaskError
from agentgym.graders.patches import MAX_FOLDER_BYTES, MAX_FOLDER_ENTRIES, FilePatch, PatchError, Tree, apply, parse
from agentgym.graders.pytest_ids_spec import given
from agentgym.rewards import RewardScheme
from agentgym.task import Task, TaskSet
from agentgym.types import Message, Submission, Verdict
from agentgym_envs.swe import attacks
from agentgym_envs.swe.diffs import collect
from agentgym_envs.swe.editor import Editor
from agentgym_envs.swe.families import family_tasks
from agentgym_envs.swe.history import one_commit
from agentgym_envs.swe.rewards import G_RA, LEVELS
from agentgym_envs.swe.shell import Terminal, search_contents, search_names
from agentgym_envs.swe.tasks import gold_files

EXPLANATION = """You mend a repository. Find the cause of the issue, change the code so that it is resolved, and call \
`submit`. Hidden tests decide; changes of test files do not count, and there is no network.
`bash` runs commands{memory}; `editor` views and edits files; `search` finds text and files."""
_ITS_OWN = ", each in a shell of its own that begins in the repository"
_SET_UP_S = 120.0
_MOST_S = 600.0
_TESTS = re.compile(r"\b(pytest|py\.test|unittest|tox|nox|runtests|run_tests?)\b")


class SweEnv(AgentEnv):
    """A repository before a fix, in a sandbox; what the agent changed there is judged by tests in fresh ones."""

    sandboxed = True
    grader = "pytest_ids"
    levels: ClassVar[tuple[str, ...]] = LEVELS
    signals: ClassVar[tuple[str, ...]] = (
        *("found_gold", "edited", "ran_tests"),
        *("submitted", "changed", "applies", "touches_gold", "tests_run", "fail_to_pass", "pass_to_pass"),
    )

    def __init__(
        self,
        tasks: TaskSet | None = None,
        *,
        family: str = "generated",
        path: str | None = None,
        count: int = 120,
        task_seed: int = 0,
        scheme: RewardScheme | Literal["g_ra"] | None = None,
        max_turns: int = 50,
        observation_limit: int = 12_000,
        **options: Any,
    ) -> None:
        """Choose the tasks.

        Args:
            tasks: a task set; without one, `family` makes it.
            family: `generated`, or one that is read from `path`, such as `mined`.
            path: the file or folder of a family that is read.
            count: how many tasks to generate.
            task_seed: which tasks to generate.
            scheme: a reward scheme; `g_ra` is the gated ladder of `agentgym_envs.swe.rewards`.
            max_turns: messages in an episode.
            observation_limit: characters of one tool's answer; the middle of longer ones is left out and counted.
            **options: the others of `AgentEnv`.
        """
        made = tasks or family_tasks(family, path=path, count=count, seed=task_seed)
        chosen = G_RA if scheme == "g_ra" else scheme
        super().__init__(made, scheme=chosen, max_turns=max_turns, observation_limit=observation_limit, **options)
        self._base: Tree = {}
        self._gold: frozenset[str] = frozenset()
        self._opened: set[str] = set()
        self._ran_tests = False
        self._editor: Editor | None = None
        self._terminal: Terminal | None = None

    @property
    def root(self) -> str:
        """Where the agent's repository is."""
        return str(self._full_task.hidden.data.get("root") or self.sandbox.workdir).rstrip("/")

    def prompt(self) -> Sequence[Message]:
        """How the tools work, and the issue."""
        memory = "" if self.terminal.remembers else _ITS_OWN
        said = f"The repository is in {self.root}.\n\n<issue>\n{self.task.prompt}\n</issue>"
        system = Message(role="system", content=EXPLANATION.format(memory=memory))
        return (system, Message(role="user", content=said))

    @property
    def editor_of_episode(self) -> Editor:
        """The editor, with what it remembers."""
        assert self._editor is not None
        return self._editor

    @property
    def terminal(self) -> Terminal:
        """The shell of this episode."""
        assert self._terminal is not None
        return self._terminal

    # ------------------------------------------------------------------ tools

    @tool
    def bash(self, command: str, timeout_s: float = 60.0) -> str:
        """Run a command in the repository and return its output and, unless it is 0, its exit code.

        The shell is /bin/sh; what only bash knows needs `bash -c`.
        """
        if not 0 < timeout_s <= _MOST_S:
            raise ValueError(f"wanted timeout_s above 0 and at most {_MOST_S:g}, found {timeout_s:g}")
        if _TESTS.search(command) and not self._ran_tests:
            self._ran_tests = True
            self.emit("ran_tests", 1.0)
        return self.terminal.run(command, timeout_s)

    @tool
    def editor(
        self,
        command: Literal["view", "create", "str_replace", "insert", "undo_edit"],
        path: str,
        file_text: str | None = None,
        old_str: str | None = None,
        new_str: str | None = None,
        insert_line: int | None = None,
        view_range: list[int] | None = None,
    ) -> str:
        """View and edit files.

        view: the numbered lines of a file, of `view_range` [first, last] if given, or a folder's files.
        create: write `file_text` as the whole file. str_replace: put `new_str` in place of `old_str`, which must stand
        there exactly once. insert: put `new_str` after line `insert_line`. undo_edit: take the last edit back.
        """
        editor = self.editor_of_episode
        name = editor.name(path)
        if command == "view":
            found = editor.view(path, view_range)
            self._open(name)
            return found
        if command == "create":
            found = editor.create(path, _wanted("file_text", file_text, command))
        elif command == "str_replace":
            found = editor.str_replace(path, _wanted("old_str", old_str, command), new_str or "")
        elif command == "insert":
            found = editor.insert(
                path, _wanted("insert_line", insert_line, command), _wanted("new_str", new_str, command)
            )
        else:
            return editor.undo_edit(path)
        self._open(name)
        self.emit("edited", 1.0)
        return found

    @tool
    def search(
        self, pattern: str, path: str = ".", kind: Literal["content", "files"] = "content", glob: str | None = None
    ) -> str:
        """Find lines that match an extended regular expression, in files called like `glob`; or files by name.

        With kind `files` the pattern is part of a path, or a glob such as `*_test.py`. At most 100 are shown.
        """
        place = self.editor_of_episode.name(path)
        place = "." if place == self.root else place
        if kind == "files":
            if glob is not None:
                raise ValueError("glob is for kind content; with kind files, put the glob into pattern")
            return search_names(self.sandbox, self.root, pattern, place)
        return search_contents(self.sandbox, self.root, pattern, place, glob)

    @tool
    def submit(self) -> Submit:
        """Hand in what you changed in the repository, and end the episode."""
        found = collect(self.sandbox, self.root, self._base)
        self.emit("submitted", 1.0)
        self.emit("changed", float(bool(found.files)))
        self.emit("applies", float(_applies(self._base, found.diff)))
        touched = self._gold & {*found.files}
        self.emit("touches_gold", len(touched) / len(self._gold) if self._gold else 0.0)
        return Submit(diff=found.diff) if found.diff else Submit()

    # ------------------------------------------------------------------ the rest

    def on_verdict(self, verdict: Verdict) -> None:
        """Emit which share of the tests passed, where they ran."""
        shares = {name: verdict.components.get(name) for name in ("fail_to_pass", "pass_to_pass")}
        self.emit("tests_run", float(verdict.level in ("failed", "passed")))
        for name, value in shares.items():
            if value is not None:
                self.emit(name, value)

    def oracle(self, task: Task) -> Sequence[str]:
        """Open each file of the gold change, write what it becomes, and submit."""
        patch = task.hidden.reference.get("patch")
        if not isinstance(patch, str):
            raise TaskError(f"task {task.id!r} has no gold change; put it in hidden.reference['patch']")
        if "root" in task.hidden.data:
            return [_call("bash", command=f"printf %s {shlex.quote(patch)} | git apply"), _call("submit")]
        base = given(task.public)
        after = apply(base, parse(patch)).files
        messages: list[str] = []
        for one in parse(patch):
            messages += _edits(one, base, after)
        return [*messages, _call("submit")]

    def attacks(self, task: Task) -> Mapping[str, Submission | Sequence[str]]:
        """What agents do to a repository instead of mending it."""
        return attacks.attacks(task)

    def _start_sandbox(self) -> None:
        super()._start_sandbox()
        box = self.sandbox
        self._editor = Editor(box, self.root)
        self._terminal = Terminal(box, self.sandboxes, self.root, self._variables())
        self._opened, self._ran_tests = set(), False
        self._gold = frozenset(_gold(self._full_task))
        if "root" in self._full_task.hidden.data:
            kept = box.download(self.root, max_files=MAX_FOLDER_ENTRIES, max_bytes=MAX_FOLDER_BYTES)
            self._base = {name: data for name, data in kept.items() if ".git" not in name.split("/")}
        else:
            self._base = given(self.task)
            self._furnish()

    def _variables(self) -> dict[str, str]:
        """Return what lets Python find the repository's modules from anywhere, as the judges do."""
        roots = self._full_task.hidden.data.get("import_roots")
        names = map(str, roots) if isinstance(roots, list) else (".",)
        return {"PYTHONPATH": ":".join(self.root if one == "." else f"{self.root}/{one}" for one in names)}

    def _furnish(self) -> None:
        """Add what is not text, the right to run, and a repository with one commit."""
        box, data = self.sandbox, self.task.data
        box.upload({f"{self.root}/{name}": self._base[name] for name in self._base if name not in self.task.files})
        runs = data.get("executable")
        if isinstance(runs, list) and runs:
            box.exec(("chmod", "755", "--", *map(str, runs)), cwd=self.root)
        done = box.exec(one_commit(self.root), timeout=_SET_UP_S, cwd=self.root)
        if not done.ok:
            raise SandboxError(f"the repository of {self._full_task.id!r} cannot be committed: {done.output[-300:]}")

    def _open(self, name: str) -> None:
        """Count the gold files that were looked into, each once."""
        if name in self._gold - self._opened:
            self._opened.add(name)
            self.emit("found_gold", 1.0 / len(self._gold))


def _gold(task: Task) -> Sequence[str]:
    patch = task.hidden.reference.get("patch")
    return gold_files(patch) if isinstance(patch, str) and patch.strip() else ()


def _applies(base: Tree, diff: str) -> bool:
    if not diff:
        return False
    try:
        apply(base, parse(diff))
    except PatchError:
        return False
    return True


def _edits(one: FilePatch, base: Tree, after: Tree) -> Iterator[str]:
    """Yield the calls that make one file of a gold change: hunk by hunk where that is plain, else the whole file."""
    if one.new is None or (one.old != one.new and one.old is not None and not one.copy):
        yield _call("bash", command=f"rm -- {shlex.quote(str(one.old))}")
    if one.new is None:
        return
    if one.old != one.new:
        yield _call("editor", command="create", path=one.new, file_text=after[one.new].decode())
        return
    yield _call("editor", command="view", path=one.new)
    text, pairs = base[one.new].decode(), [("".join(hunk.old), "".join(hunk.new)) for hunk in one.hunks]
    for old, new in pairs:
        if not old or text.count(old) != 1:
            yield _call("editor", command="create", path=one.new, file_text=after[one.new].decode())
            return
        text = text.replace(old, new, 1)
    for old, new in pairs:
        yield _call("editor", command="str_replace", path=one.new, old_str=old, new_str=new)


def _wanted(name: str, value: Any, command: str) -> Any:
    if value is None:
        raise ValueError(f"{command} wants {name}")
    return value


def _call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"
