"""Check what a caller asks a sandbox to do before anything starts, the same way for every backend."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence

from agentgym.errors import CapabilityError

AGENT = "agent"
"""The name of the sandbox's only user."""


def words(command: str | Sequence[str]) -> list[str]:
    """Return the argument vector; a string is a `/bin/sh` script.

    >>> words("echo $HOME"), words(["echo", "$HOME"])
    (['/bin/sh', '-c', 'echo $HOME'], ['echo', '$HOME'])
    """
    argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    if not argv or not argv[0]:
        raise ValueError("the command is empty: give an argument vector or a script")
    if any("\0" in word for word in argv):
        raise ValueError("the command holds a NUL character, which no argument can carry: pass such data by stdin")
    return argv


def variables(env: Mapping[str, str] | None) -> dict[str, str]:
    """Return the environment, refusing what no environment can carry."""
    for name, value in (env or {}).items():
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"{name!r} cannot be an environment variable: no '=' or NUL in names, no NUL in values")
    return dict(env or {})


def refuse_user(user: str | None, backend: str) -> None:
    """Refuse every user but the sandbox's own."""
    if user not in (None, AGENT):
        raise CapabilityError(f"the {backend!r} sandbox runs commands as {AGENT!r} only, not as {user!r}; drop `user`")


def absolute(path: str, workdir: str) -> str:
    """Return a path inside the sandbox as an absolute one; `..` and NUL are refused.

    >>> absolute("a//./b", "/workspace")
    '/workspace/a/b'
    """
    joined = posixpath.join(workdir, path)
    if "\0" in joined or ".." in joined.split("/"):
        raise ValueError(f"{path!r} is not a plain path: it must hold no '..' and no NUL")
    return "/" + "/".join(part for part in joined.split("/") if part not in ("", "."))
