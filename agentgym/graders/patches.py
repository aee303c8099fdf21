"""Read and apply unified diffs that others wrote, as data: no git, no shell, nothing outside the tree, bounded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from agentgym.errors import AgentgymError

Tree = dict[str, bytes]
"""Regular files by relative path, with `/` between the parts."""

MAX_PATCH_CHARS = 4_000_000
MAX_FILES = 500
MAX_FILE_BYTES = 8_000_000
MAX_TREE_BYTES = 128_000_000
MAX_FOLDER_ENTRIES = 50_000
"""Of a repository in an image, its own history and what lies beside it counted too."""
MAX_FOLDER_BYTES = 1 << 28
_MODES = {"100644": False, "100755": True}
_HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_ESCAPES = {"n": 10, "t": 9, "r": 13, "a": 7, "b": 8, "f": 12, "v": 11, '"': 34, "\\": 92}


_Names = tuple[str | None, str | None]


class PatchError(AgentgymError, ValueError):
    """A submitted diff or file name is refused; the sentence is about the submission alone, and safe to show."""


@dataclass(frozen=True, slots=True)
class Hunk:
    """One change: the lines that must be there, and those that take their place, line ends included."""

    start: int
    """The number of the first old line, from 1; 0 before an empty file's first line."""
    old: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FilePatch:
    """What a diff does to one file."""

    old: str | None
    """None: the file is new."""
    new: str | None
    """None: the file is deleted."""
    hunks: tuple[Hunk, ...] = ()
    executable: bool | None = None
    """The mode that the diff sets: 755 or 644; None leaves it."""
    copy: bool = False
    """The old file stays."""


@dataclass(frozen=True, slots=True)
class Patched:
    """A tree after a diff."""

    files: Tree
    executable: Mapping[str, bool] = field(default_factory=dict)
    """The modes that the diff set, by path."""


def safe_path(name: str) -> str:
    """Return a relative path as it stands, or refuse it.

    >>> safe_path("src/a.py")
    'src/a.py'
    >>> safe_path("../a.py")
    Traceback (most recent call last):
    agentgym.graders.patches.PatchError: wanted a path inside the repository, found '../a.py'

    Raises:
        PatchError: it is absolute, climbs, is git's own, or holds what no sane file name holds.
    """
    parts = name.split("/")
    if not name or name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise PatchError(f"wanted a path inside the repository, found {name[:200]!r}")
    if any(part.lower() == ".git" or part.lower().startswith("git~") for part in parts):
        raise PatchError(f"wanted a path outside of .git, found {name[:200]!r}")
    if len(name) > 1000 or max(map(len, parts)) > 200 or not name.isprintable() or "\\" in name:
        raise PatchError(f"wanted a plain path of at most 1000 characters, found {name[:200]!r}")
    return name


def check_tree(files: Mapping[str, bytes]) -> None:
    """Refuse a tree that is too large, or in which a file is also a folder.

    Raises:
        PatchError: naming the path.
    """
    size = 0
    for name, data in files.items():
        size += len(data)
        if len(data) > MAX_FILE_BYTES or size > MAX_TREE_BYTES:
            raise PatchError(f"the files grow too large at {name!r}: at most {MAX_FILE_BYTES} bytes each")
        parts = name.split("/")
        for end in range(1, len(parts)):
            if (folder := "/".join(parts[:end])) in files:
                raise PatchError(f"{folder!r} is both a file and a folder")


class _Lines:
    """A cursor over the diff's lines; line ends other than a newline belong to the content."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        if self.lines and not self.lines[-1]:
            self.lines.pop()
        self.at = 0

    def peek(self) -> str | None:
        return self.lines[self.at] if self.at < len(self.lines) else None

    def next(self) -> str:
        line = self.peek()
        if line is None:
            raise PatchError("the diff ends in the middle of a change")
        self.at += 1
        return line

    def error(self, wanted: str) -> PatchError:
        return PatchError(f"line {self.at} of the diff: wanted {wanted}, found {self.lines[self.at - 1][:80]!r}")


def parse(text: str) -> tuple[FilePatch, ...]:
    """Read a unified diff, plain or in git's form; text before the first file is passed over.

    Raises:
        PatchError: it is malformed, too large, binary, or touches what is not a regular file.
    """
    if len(text) > MAX_PATCH_CHARS:
        raise PatchError(f"wanted a diff of at most {MAX_PATCH_CHARS} characters, found {len(text)}")
    found: list[FilePatch] = []
    for one in _entries(_Lines(text)):
        found.append(one)
        if len(found) > MAX_FILES:
            raise PatchError(f"wanted a diff of at most {MAX_FILES} files, found more")
    if not found:
        raise PatchError("wanted a unified diff, found none: no line starts with 'diff --git' or '--- '")
    touched = [name for one in found for name in {one.new, None if one.copy else one.old} - {None}]
    for name in touched:
        if touched.count(name) > 1:
            raise PatchError(f"the diff changes {name!r} twice")
    return tuple(found)


def _entries(lines: _Lines) -> Iterator[FilePatch]:
    found = False
    while (line := lines.peek()) is not None:
        if line.startswith("diff --git "):
            found = True
            yield _git_entry(lines)
        elif line.startswith("--- ") and lines.at + 1 < len(lines.lines) and lines.lines[lines.at + 1][:4] == "+++ ":
            found = True
            old, new = _names(lines)
            yield FilePatch(old, new, _hunks(lines))
        elif line.startswith("@@ "):
            lines.next()
            raise lines.error("the names of the file before its changes")
        elif found and line[:1] in ("+", "-", "\\") and line != "-- ":
            lines.next()
            raise lines.error("the next file, because the hunk's lines are all there")
        else:
            lines.next()


def _git_entry(lines: _Lines) -> FilePatch:
    old: str | None
    new: str | None
    old, new = _git_names(lines)
    executable, copy = None, False
    while (line := lines.peek()) is not None and not line.startswith(("diff --git ", "--- ", "@@ ")):
        word, _, rest = lines.next().partition(" ")
        match word, rest.split(" ", 1):
            case "new" | "deleted" | "old", ["file" | "mode", *_]:
                mode = rest.rsplit(" ", 1)[-1].strip()
                if mode not in _MODES:
                    raise PatchError(f"wanted regular files of mode 100644 or 100755, found mode {mode[:10]!r}")
                executable = None if word != "new" else _MODES[mode]
                old, new = (None if line.startswith("new file") else old), (None if word == "deleted" else new)
            case "rename" | "copy", ["from", name]:
                old, copy = safe_path(_unquote(name)), word == "copy"
            case "rename" | "copy", ["to", name]:
                new = safe_path(_unquote(name))
            case "index", _ if rest.endswith((" 120000", " 160000")):
                raise PatchError(f"wanted regular files, found a link or a submodule: {new or old!r}")
            case "GIT" | "Binary", _:
                raise PatchError(f"wanted text, found a binary change of {new or old!r}")
            case "index" | "similarity" | "dissimilarity", _:
                continue
            case "--", _:
                break
            case _ if line.strip():
                raise lines.error("a line of git's diff header")
    if (line := lines.peek()) is not None and line.startswith("--- "):
        old, new = _agree((old, new), _names(lines))
    return FilePatch(old, new, _hunks(lines), executable, copy)


def _git_names(lines: _Lines) -> tuple[str, str]:
    rest = lines.next().removeprefix("diff --git ")
    if rest.startswith('"') or rest.endswith('"'):
        parts = re.fullmatch(r'("(?:[^"\\]|\\.)*"|\S+) ("(?:[^"\\]|\\.)*"|\S+)', rest)
        if parts is None:
            raise lines.error("two quoted names")
        one, other = _unquote(parts[1]), _unquote(parts[2])
    else:
        middle = len(rest) // 2
        one, other = rest[:middle], rest[middle + 1 :]
        if one[2:] != other[2:]:  # a rename; its own lines name both
            one, _, other = rest.partition(" b/")
            other = "b/" + other
    if not one.startswith("a/") or not other.startswith("b/"):
        raise lines.error("names that start with a/ and b/")
    return safe_path(one[2:]), safe_path(other[2:])


def _agree(header: _Names, names: _Names) -> _Names:
    for one, other in zip(header, names, strict=True):
        if one != other:
            raise PatchError(f"the diff gives one file two names: {one or '/dev/null'!r} and {other or '/dev/null'!r}")
    return names


def _names(lines: _Lines) -> _Names:
    old = _unquote(lines.next().removeprefix("--- ").split("\t")[0])
    line = lines.next()
    if not line.startswith("+++ "):
        raise lines.error("a line that starts with '+++ '")
    new = _unquote(line.removeprefix("+++ ").split("\t")[0])
    prefixed = old.startswith(("a/", "/dev/null")) and new.startswith(("b/", "/dev/null"))
    found = [None if one == "/dev/null" else safe_path(one[2:] if prefixed else one) for one in (old, new)]
    if found == [None, None]:
        raise lines.error("a file on one side")
    return found[0], found[1]


def _unquote(name: str) -> str:
    if not (len(name) > 1 and name.startswith('"') and name.endswith('"')):
        return name.rstrip("\r")
    data = bytearray()
    for plain, escape in re.findall(r"([^\\]+)|\\([0-7]{3}|.)", name[1:-1]):
        if plain:
            data += plain.encode("utf-8", "surrogatepass")
        elif escape in _ESCAPES:
            data.append(_ESCAPES[escape])
        elif len(escape) == 3 and int(escape, 8) < 256:
            data.append(int(escape, 8))
        else:
            raise PatchError(f"wanted a file name quoted as git does, found {name[:80]!r}")
    return data.decode("utf-8", "replace")


def _hunks(lines: _Lines) -> tuple[Hunk, ...]:
    found = []
    while (line := lines.peek()) is not None and line.startswith("@@"):
        header = _HUNK.match(lines.next())
        if header is None:
            raise lines.error("a hunk's header like '@@ -1,2 +1,3 @@'")
        found.append(_hunk(lines, int(header[1]), int(header[2] or 1), int(header[4] or 1)))
    return tuple(found)


def _hunk(lines: _Lines, start: int, old_left: int, new_left: int) -> Hunk:
    old: list[str] = []
    new: list[str] = []
    while old_left or new_left:
        line = lines.next()
        kind = line[:1] or " "  # some tools strip the space of an empty line
        if kind not in " -+":
            raise lines.error("a line that starts with a space, '-' or '+'")
        text = line[1:] + "\n"
        sides = [old] * (kind != "+") + [new] * (kind != "-")
        for side in sides:
            side.append(text)
        old_left -= kind != "+"
        new_left -= kind != "-"
        if old_left < 0 or new_left < 0:
            raise lines.error("as many lines as the hunk's header says")
        if (after := lines.peek()) is not None and after.startswith("\\"):
            lines.next()
            for side in sides:
                side[-1] = side[-1].removesuffix("\n")
    return Hunk(start, tuple(old), tuple(new))


def apply(base: Mapping[str, bytes], patches: tuple[FilePatch, ...]) -> Patched:
    """Return the tree after a diff; lines may have moved, but every old line must be there exactly.

    Raises:
        PatchError: it does not fit.
    """
    files, modes = dict(base), {}
    for one in patches:
        if one.old is not None and one.old not in base:
            raise PatchError(f"the diff changes {one.old!r}, which does not exist")
        if one.new is not None and one.new != one.old and one.new in base:
            raise PatchError(f"the diff creates {one.new!r}, which exists")
        data = _change(base[one.old] if one.old is not None else b"", one)
        if one.old is not None and not one.copy:
            files.pop(one.old)
        if one.new is None and data:
            raise PatchError(f"the diff deletes {one.old!r} without all of its lines")
        if one.new is not None:
            files[one.new] = data
            if one.executable is not None:
                modes[one.new] = one.executable
    check_tree(files)
    return Patched(files, modes)


def _change(data: bytes, patch: FilePatch) -> bytes:
    if not patch.hunks:
        return data
    try:
        found = _split(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise PatchError(f"the diff changes {patch.old!r}, which is not UTF-8 text") from error
    lines: list[str] = []
    done, offset = 0, 0
    for number, hunk in enumerate(patch.hunks, start=1):
        wanted = (hunk.start - 1 if hunk.old else hunk.start) + offset
        place = _find(found, hunk.old, wanted, done)
        if place is None:
            raise PatchError(f"hunk {number} does not fit {patch.old or patch.new!r}: its old lines are not there")
        offset += place - wanted
        lines += [*found[done:place], *hunk.new]
        done = place + len(hunk.old)
    return "".join([*lines, *found[done:]]).encode()


def _split(text: str) -> list[str]:
    """Split at newlines only: other line ends belong to the line."""
    parts = text.split("\n")
    return [f"{part}\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _find(found: list[str], old: tuple[str, ...], wanted: int, least: int) -> int | None:
    """Return the place nearest to the wanted one, at or after `least`, where all old lines stand."""
    last = len(found) - len(old)
    if not old:
        return wanted if least <= wanted <= last else None
    places = [at for at in range(least, last + 1) if found[at] == old[0] and tuple(found[at : at + len(old)]) == old]
    return min(places, key=lambda at: abs(at - wanted), default=None)
