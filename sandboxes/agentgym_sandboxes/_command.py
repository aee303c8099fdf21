"""Check what a caller asks a sandbox to do before anything starts, the same way for every backend."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence

from agentgym.errors import CapabilityError

AGENT = "agent"
"""The name of the sandbox's only user."""
_LONGEST_WORD = 128 * 1024 - 1
_LONGEST_COMMAND = 1 << 20
_LONGEST_PATH = 4095

# $0 is the folder, the rest is the command; the caller's own shell or the runtime tells how that ended.
ENTER = 'cd -- "$0" 2>/dev/null || { echo "cannot enter the folder $0" >&2; exit 126; }; '


def words(command: str | Sequence[str]) -> list[str]:
    """Return the argument vector; a string is a `/bin/sh` script.

    >>> words("echo $HOME"), words(["echo", "$HOME"])
    (['/bin/sh', '-c', 'echo $HOME'], ['echo', '$HOME'])
    """
    argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    if not argv or not argv[0]:
        raise ValueError("the command is empty: give an argument vector or a script")
    sizes = [len(_utf8(word, "the command")) for word in argv]
    if max(sizes) > _LONGEST_WORD or sum(sizes) > _LONGEST_COMMAND:
        raise ValueError(
            f"the command has {sum(sizes)} bytes, its longest word {max(sizes)}, of at most {_LONGEST_COMMAND} and "
            f"{_LONGEST_WORD}: pass the data by stdin or in a file"
        )
    return argv


def variables(env: Mapping[str, str] | None) -> dict[str, str]:
    """Return the environment, refusing what no environment can carry."""
    for name, value in (env or {}).items():
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"{name!r} cannot be an environment variable: no '=' or NUL in names, no NUL in values")
        if len(_utf8(name + value, "an environment variable")) >= _LONGEST_WORD:
            raise ValueError(f"the environment variable {name!r} is longer than {_LONGEST_WORD} bytes")
    size = sum(len(name.encode()) + len(value.encode()) for name, value in (env or {}).items())
    if size > _LONGEST_COMMAND:
        raise ValueError(f"the environment variables have {size} bytes of at most {_LONGEST_COMMAND}: use a file")
    return dict(env or {})


def refuse_user(user: str | None, backend: str) -> None:
    """Refuse every user but the sandbox's own."""
    if user not in (None, AGENT):
        raise CapabilityError(f"the {backend!r} sandbox runs commands as {AGENT!r} only, not as {user!r}; drop `user`")


def absolute(path: str, workdir: str) -> str:
    """Return a path inside the sandbox as an absolute one; `..`, NUL and more than 4,095 bytes are refused.

    >>> absolute("a//./b", "/workspace")
    '/workspace/a/b'
    """
    joined = posixpath.join(workdir, path)
    if ".." in joined.split("/"):
        raise ValueError(f"the path {path!r} must hold no '..'")
    _utf8(joined, "the path")
    whole = "/" + "/".join(part for part in joined.split("/") if part not in ("", "."))
    if (size := len(whole.encode())) > _LONGEST_PATH:
        raise ValueError(f"the path {path[:40] + '…'!r} has {size} bytes; wanted at most {_LONGEST_PATH}")
    return whole


def _utf8(text: str, what: str) -> bytes:
    if "\0" in text:
        raise ValueError(f"{what} holds a NUL character, which nothing can carry but stdin and files")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not valid Unicode: {text[:80]!r}") from None
