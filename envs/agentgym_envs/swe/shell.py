"""Commands and searches in an agent's sandbox, and how their ends read."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Mapping, Sequence

from agentgym.sandbox import ExecResult, Sandbox, SandboxBackend, Shell

_OUTPUT = 1 << 16
_MOST_MATCHES = 100
_MOST_WIDE = 300
_SEARCH_S = 60.0


class Terminal:
    """Runs an agent's commands: in one shell that remembers where the sandbox has sessions, else each in its own."""

    def __init__(
        self, box: Sandbox, backend: SandboxBackend, root: str, variables: Mapping[str, str] | None = None
    ) -> None:
        self._box = box
        self._root = root
        self._variables = dict(variables or {})
        self._has_session = "session" in backend.capabilities
        self._shell: Shell | None = None

    @property
    def remembers(self) -> bool:
        """Whether the folder, variables and background jobs of one command are there for the next."""
        return self._has_session

    def run(self, command: str, timeout_s: float) -> str:
        """Run a script and return what it printed and how it ended.

        Raises:
            SandboxError: the sandbox failed.
            AgentFault: the agent left the sandbox no room for a command.
        """
        if not self._has_session:
            result = self._box.exec(
                ("sh", "-c", command), timeout=timeout_s, cwd=self._root, env=self._variables, output_limit=_OUTPUT
            )
            return told(result, timeout_s)
        if self._shell is None:
            self._shell = self._box.shell()
            words = [f"export {name}={shlex.quote(value)}" for name, value in self._variables.items()]
            self._shell.run("; ".join([f"cd {shlex.quote(self._root)}", *words]))
        return told(self._shell.run(command, timeout=timeout_s, output_limit=_OUTPUT), timeout_s)


def told(result: ExecResult, timeout_s: float) -> str:
    """Return what a command printed, and how it ended unless that was well."""
    parts = [result.output.rstrip("\n")] if result.output.strip() else []
    if result.timed_out:
        parts.append(f"[ended: it took longer than {timeout_s:g} s]")
    elif result.oom:
        parts.append("[ended: out of memory]")
    elif result.exit_code != 0:
        parts.append(f"[exit code {result.exit_code}]")
    return "\n".join(parts) or "[no output]"


def search_contents(box: Sandbox, root: str, pattern: str, path: str, glob: str | None) -> str:
    """Return the lines below a path that match an extended regular expression, at most a hundred.

    Raises:
        ValueError: the pattern is none, or the path does not exist.
    """
    included = (f"--include={glob}",) if glob else ()
    words = ("grep", "-rnIE", "--exclude-dir=.git", "--exclude-dir=__pycache__", *included, "-e", pattern, "--", path)
    result = box.exec(words, timeout=_SEARCH_S, cwd=root, output_limit=1 << 20)
    _check(result)
    return _listed(result.stdout, f"no line below {path} matches {pattern!r}", "matches")


def search_names(box: Sandbox, root: str, pattern: str, path: str) -> str:
    """Return the files below a path whose own path holds a text, or matches a glob, at most a hundred.

    Raises:
        ValueError: the path does not exist.
    """
    if not any(one in pattern for one in "*?["):
        test = ("-path", f"*{pattern}*")
    elif "/" in pattern:
        test = ("-path", f"*/{pattern.lstrip('/')}")
    else:
        test = ("-name", pattern)
    below = path if path.startswith("/") else f"./{path}"
    words = ("find", below, "-name", ".git", "-prune", "-o", "-type", "f", *test, "-print")
    result = box.exec(words, timeout=_SEARCH_S, cwd=root, output_limit=1 << 20)
    _check(result)
    lines = sorted(posixpath.normpath(one) for one in result.stdout.decode("utf-8", "replace").splitlines())
    return _listed("\n".join(lines).encode(), f"no file below {path} is called {pattern!r}", "files")


def _check(result: ExecResult) -> None:
    if result.exit_code not in (0, 1) or (result.stderr and not result.stdout):
        said = result.stderr.decode("utf-8", "replace").strip()[:300]
        raise ValueError(f"the search failed: {said or 'it took too long'}")


def _listed(data: bytes, nothing: str, what: str) -> str:
    lines: Sequence[str] = [one.removeprefix("./") for one in data.decode("utf-8", "replace").split("\n") if one]
    if not lines:
        return nothing
    shown = [f"{one[:_MOST_WIDE]}…" if len(one) > _MOST_WIDE else one for one in lines[:_MOST_MATCHES]]
    if len(lines) > _MOST_MATCHES:
        shown.append(f"[… {len(lines) - _MOST_MATCHES} more {what}: narrow the search]")
    return "\n".join(shown)
