"""Read a git repository as data: commits, changes and trees; nothing is checked out, and nothing of it runs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentgym.errors import TaskError

_LINK, _MODULE, _EXECUTABLE = "120000", "160000", "100755"
_PLACEHOLDER = ".gitkeep"


@dataclass(frozen=True, slots=True)
class Change:
    """What a commit does to one file."""

    path: str
    kind: str
    """`A`dded, `M`odified or `D`eleted; a rename is a deletion and an addition."""
    added: int
    removed: int
    binary: bool = False

    @property
    def lines(self) -> int:
        """How many lines were added or removed."""
        return self.added + self.removed


@dataclass(frozen=True, slots=True)
class Commit:
    """One step of the first-parent history."""

    sha: str
    parent: str
    date: str
    """When it was committed, in ISO 8601."""
    message: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The regular files of a commit."""

    files: dict[str, bytes]
    executable: frozenset[str] = frozenset()


class NoCommitError(TaskError):
    """A commit is not in a clone."""


class Repository:
    """A repository on this machine, bare or not."""

    def __init__(self, path: str | Path, modules: Mapping[str, Repository] | None = None) -> None:
        """Find it.

        Args:
            path: the repository, or a folder in its working tree.
            modules: clones of its submodules, by their place; one that is not given is an empty folder.

        Raises:
            TaskError: git is not installed, or there is no repository.
        """
        self.path = Path(path)
        self.modules = dict(modules or {})
        try:
            self._run("rev-parse", "--git-dir")
        except FileNotFoundError as error:
            raise TaskError("mining needs git: run `apt-get install git`") from error
        except subprocess.CalledProcessError as error:
            raise TaskError(f"there is no git repository at {path}; clone it first") from error

    @property
    def name(self) -> str:
        """`owner/name` of where it was cloned from, else the name of its folder."""
        try:
            url = self._run("config", "--get", "remote.origin.url").decode().strip()
        except subprocess.CalledProcessError:
            url = ""
        parts = [part for part in url.removesuffix("/").removesuffix(".git").replace(":", "/").split("/") if part]
        if "://" in url or "@" in url:
            return "/".join(parts[-2:])
        return self.path.resolve().name.removesuffix(".git")

    def resolve(self, revision: str) -> str:
        """Return the id of a commit.

        Raises:
            NoCommitError: there is no such commit.
        """
        try:
            return self._run("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").decode().strip()
        except subprocess.CalledProcessError as error:
            raise NoCommitError(f"{self.path} has no commit {revision!r}") from error

    def history(self, revision: str = "HEAD", since: str | None = None) -> Iterator[Commit]:
        """Yield the first-parent history, newest first; a merge stands for all that it brings.

        Args:
            revision: where to begin.
            since: leave out commits before this date, such as `2019-01-01`.
        """
        form = "%H%x1f%P%x1f%cI%x1f%B%x00"
        words = ["log", "--first-parent", f"--format={form}", *([f"--since={since}"] if since else [])]
        text = self._run(*words, self.resolve(revision)).decode("utf-8", "replace")
        for entry in text.split("\0"):
            if not entry.strip():
                continue
            sha, parents, date, message = entry.strip("\n").split("\x1f", 3)
            if parents:
                yield Commit(sha, parents.split()[0], date, message.strip())

    def changes(self, commit: Commit) -> list[Change]:
        """Return what differs from the first parent."""
        common = ("diff-tree", "-r", "-z", "--no-renames", "--no-ext-diff", "--no-textconv")
        kinds = self._run(*common, "--name-status", commit.parent, commit.sha).decode("utf-8", "replace").split("\0")
        by_path = dict(zip(kinds[1::2], kinds[0::2], strict=False))
        found = []
        for line in self._run(*common, "--numstat", commit.parent, commit.sha).decode("utf-8", "replace").split("\0"):
            if not line:
                continue
            added, removed, path = line.split("\t", 2)
            counts = (0, 0) if added == "-" else (int(added), int(removed))
            found.append(Change(path, by_path.get(path, "M"), *counts, binary=added == "-"))
        return found

    def diff(self, before: str, after: str, paths: Sequence[str]) -> str:
        """Return a unified diff of some files; empty if they do not differ.

        Raises:
            TaskError: a file is not text.
        """
        words = ("diff", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color", before, after, "--")
        try:
            return self._run(*words, *(f":(literal){path}" for path in paths)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise TaskError(f"the change of {paths[0]} is not UTF-8 text") from error

    def snapshot(self, revision: str) -> Snapshot:
        """Return every regular file of a commit, with those of submodules that are known; links are left out.

        Raises:
            NoCommitError: a submodule's clone lacks the commit that is named here.
            TaskError: the clone lacks a file's content.
        """
        listed = self._run("ls-tree", "-r", "-z", self.resolve(revision)).decode("utf-8", "replace").split("\0")
        files: dict[str, str] = {}
        executable: set[str] = set()
        inside: dict[str, bytes] = {}
        for line in filter(None, listed):
            meta, path = line.split("\t", 1)
            mode, _, name = meta.split()
            if mode == _MODULE and path in self.modules:
                module = self.modules[path].snapshot(name)
                inside |= {f"{path}/{one}": data for one, data in module.files.items()}
                executable |= {f"{path}/{one}" for one in module.executable}
            elif mode == _MODULE:
                inside[f"{path}/{_PLACEHOLDER}"] = b""
            elif mode != _LINK:
                files[path] = name
                executable |= {path} if mode == _EXECUTABLE else set()
        return Snapshot({**self._blobs(files), **inside}, frozenset(executable))

    def tag(self, revision: str) -> str | None:
        """Return the nearest tag at or before a commit."""
        try:
            return self._run("describe", "--tags", "--abbrev=0", revision).decode().strip()
        except subprocess.CalledProcessError:
            return None

    def _blobs(self, names: dict[str, str]) -> dict[str, bytes]:
        asked = "".join(f"{name}\n" for name in names.values()).encode()
        data = self._run("cat-file", "--batch", given=asked)
        found, at = {}, 0
        for path in names:
            end = data.index(b"\n", at)
            header = data[at:end].split()
            if header[-1] == b"missing":
                raise TaskError(f"{self.path} lacks the content of {path!r}: fetch the whole history, without a filter")
            size = int(header[2])
            found[path] = data[end + 1 : end + 1 + size]
            at = end + 1 + size + 1
        return found

    def _run(self, *words: str, given: bytes = b"") -> bytes:
        safe = ("-c", "core.fsmonitor=false", "-c", "safe.directory=*", "-c", "core.quotePath=false")
        command = ["git", *safe, "-C", str(self.path), *words]
        return subprocess.run(command, input=given, capture_output=True, check=True).stdout
