"""What an agent changed, told by the host: a diff of two trees of bytes, made with nothing of the sandbox's own."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from agentgym.graders.patches import MAX_FILES, MAX_PATCH_CHARS, PatchError, safe_path
from agentgym.sandbox import Sandbox

MAX_ENTRIES = 50_000
MAX_BYTES = 1 << 28
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
    found = box.download(root, max_files=MAX_ENTRIES, max_bytes=MAX_BYTES)
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
    touched, left_out, parts = [], [], []
    for name in names:
        before, after = base.get(name), found.get(name)
        _check_name(name)
        texts = _text(before), _text(after)
        if None in texts and before is None:
            left_out.append(name)
            continue
        if texts[0] is None or texts[1] is None:
            raise ValueError(f"{name!r} is not text, and a submission is a diff of texts: put it back as it was")
        touched.append(name)
        parts.append("".join(_entry(name, texts[0], texts[1], is_new=before is None, is_gone=after is None)))
    diff = "".join(parts)
    if len(touched) > MAX_FILES or len(diff) > MAX_PATCH_CHARS:
        raise ValueError(
            f"the change is too large: {len(touched)} files and {len(diff)} characters of diff, and {MAX_FILES} files "
            f"and {MAX_PATCH_CHARS} characters are the most; remove what is not part of it"
        )
    return Change(diff, tuple(touched), tuple(left_out))


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


def _entry(name: str, before: str, after: str, *, is_new: bool, is_gone: bool) -> Iterator[str]:
    yield f"diff --git a/{name} b/{name}\n"
    if is_new or is_gone:
        yield f"{'new' if is_new else 'deleted'} file mode 100644\n"
    old, new = _lines(before), _lines(after)
    body = difflib.unified_diff(
        old, new, "/dev/null" if is_new else f"a/{name}", "/dev/null" if is_gone else f"b/{name}"
    )
    for line in body:
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines(text: str) -> list[str]:
    """Split at newlines only: a diff knows no other line ends."""
    parts: Iterable[str] = text.split("\n")
    *whole, last = parts
    return [f"{one}\n" for one in whole] + ([last] if last else [])
