"""What an agent changed, told by the host: a diff of two trees of bytes, made with nothing of the sandbox's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from agentgym.graders.patches import (
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_FOLDER_BYTES,
    MAX_FOLDER_ENTRIES,
    MAX_PATCH_CHARS,
    PatchError,
    safe_path,
)
from agentgym.sandbox import Sandbox
from agentgym_envs.swe.hunks import Hunks, least

_LITTER = frozenset(
    (
        *(".git", ".hg", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".tox", ".nox"),
        *("node_modules", ".eggs", ".ipynb_checkpoints", ".coverage"),
    )
)
_LITTER_TOPS = frozenset(("build", "dist", "venv", ".venv", "env"))
_LITTER_ENDS = ("*.pyc", "*.pyo", "*.egg-info", "*.orig", "*.rej", "*.swp")


@dataclass(frozen=True, slots=True)
class Change:
    """A submission, and what is no part of it."""

    diff: str
    files: tuple[str, ...] = ()
    """The paths that it touches."""
    left_out: tuple[str, ...] = ()
    """New files that are not text, which a diff cannot hold."""


def collect(box: Sandbox, root: str, base: Mapping[str, bytes]) -> Change:
    """Return what was changed in a folder of a sandbox, whose files come through the runtime.

    New files that tools leave behind, and new links, count for nothing. A rename is a deletion and a new file.

    Raises:
        ValueError: a sentence for the agent: the folder has grown too large, a file of the repository is no plain file
            or no text any more, or a name cannot stand in a diff.
        SandboxError: the sandbox does not answer.
    """
    try:
        found = box.download(root, max_files=MAX_FOLDER_ENTRIES, max_bytes=MAX_FOLDER_BYTES)
    except FileNotFoundError as error:
        raise ValueError(f"there is no {root} any more, or it changes while it is read: put it back first") from error
    for name in base:
        if name not in found:
            _refuse_replaced(box, root, name)
    return change(base, found)


def change(base: Mapping[str, bytes], found: Mapping[str, bytes]) -> Change:
    r"""Return the diff of two trees, in git's form.

    >>> print(change({"a": b"1\n2\n"}, {"a": b"1\n3"}).diff, end="")
    diff --git a/a b/a
    --- a/a
    +++ b/a
    @@ -1,2 +1,2 @@
     1
    -2
    +3
    \ No newline at end of file

    Raises:
        ValueError: see `collect`.
    """
    names = [one for one in sorted({*base, *found}) if base.get(one) != found.get(one) and not _is_litter(one, base)]
    touched, left_out, size = [], [], 0
    for name in names:
        before, after = base.get(name), found.get(name)
        _check_name(name)
        texts = _text(before), _text(after)
        if None in texts and before is None:
            left_out.append(name)
            continue
        if texts[0] is None or texts[1] is None:
            raise ValueError(f"{name!r} is not text, and a submission is a diff of texts: put it back as it was")
        if (most := max(len(before or b""), len(after or b""))) > MAX_FILE_BYTES:
            raise ValueError(f"{name!r} is too large for a diff: {most} bytes, and {MAX_FILE_BYTES} are the most")
        touched.append(name)
        size += least(texts[0], texts[1])
        _check_size(len(touched), size)
    parts, hunks, size = [], Hunks(), 0
    for name in touched:
        parts.append(_entry(name, base.get(name), found.get(name), hunks, room=MAX_PATCH_CHARS - size))
        size += len(parts[-1])
        _check_size(len(touched), size)
    return Change("".join(parts), tuple(touched), tuple(left_out))


def _check_size(files: int, chars: int) -> None:
    if files > MAX_FILES or chars > MAX_PATCH_CHARS:
        raise ValueError(
            f"the change is too large: {files} files and {chars} characters of diff or more, and {MAX_FILES} files "
            f"and {MAX_PATCH_CHARS} characters are the most; remove what is not part of it"
        )


def _refuse_replaced(box: Sandbox, root: str, name: str) -> None:
    try:
        box.read(f"{root}/{name}", limit=1)
    except FileNotFoundError:
        return
    except ValueError as error:
        raise ValueError(f"{name!r} was a plain file and is a link or something else now: make it a file") from error


def _check_name(name: str) -> None:
    try:
        safe_path(name)
    except PatchError as error:
        raise ValueError(f"the name of a new file cannot stand in a diff, rename or remove it: {error}") from error


def _is_litter(name: str, base: Mapping[str, bytes]) -> bool:
    if name in base:
        return False
    parts = name.split("/")
    if parts[0] in _LITTER_TOPS and not any(one.startswith(f"{parts[0]}/") for one in base):
        return True
    return any(part in _LITTER or fnmatchcase(part, end) for part in parts for end in _LITTER_ENDS)


def _text(data: bytes | None) -> str | None:
    if data is None:
        return ""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _entry(name: str, before: bytes | None, after: bytes | None, hunks: Hunks, *, room: int) -> str:
    head = f"diff --git a/{name} b/{name}\n"
    if before is None or after is None:
        head += f"{'new' if before is None else 'deleted'} file mode 100644\n"
    body = hunks.of((before or b"").decode(), (after or b"").decode(), room=room)
    if not body:
        return head
    old, new = "/dev/null" if before is None else f"a/{name}", "/dev/null" if after is None else f"b/{name}"
    return f"{head}--- {old}\n+++ {new}\n{body}"
