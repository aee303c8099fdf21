"""An editor for files in a sandbox: view, create, replace, insert, undo; every byte goes through the runtime."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from agentgym.sandbox import Sandbox

_AROUND = 4
"""Lines shown on either side of an edit."""
_MOST_SHOWN = 400
"""Lines of a file that one view without a range shows."""
_MOST_UNDO = 50
_MOST_UNDO_BYTES = 32_000_000
_MOST_PLACES = 8
_LIMIT = 8_000_000
_MOST_PATH_CHARS, _MOST_PATH_BYTES = 1000, 3500


class Editor:
    """Edits files below a folder and in /tmp, and remembers what they were.

    Raises:
        ValueError: from every method, a sentence for the agent that says what was wanted.
    """

    def __init__(self, box: Sandbox, root: str) -> None:
        self._box = box
        self._root = root.rstrip("/")
        self._before: list[tuple[str, bytes | None]] = []

    def place(self, path: str) -> str:
        """Return an absolute path; a relative one begins at the repository."""
        whole = posixpath.normpath(posixpath.join(self._root, path))
        size = len(whole.encode("utf-8", "surrogatepass"))
        if len(path) > _MOST_PATH_CHARS or size > _MOST_PATH_BYTES:
            raise ValueError(
                f"wanted a path of at most {_MOST_PATH_CHARS} characters, found {len(path)} in {size} bytes"
            )
        if not whole.startswith((f"{self._root}/", "/tmp/")) and whole != self._root:
            raise ValueError(f"wanted a path in {self._root} or in /tmp, found {path!r}")
        return whole

    def name(self, path: str) -> str:
        """Return a path as the repository calls it."""
        return self.place(path).removeprefix(f"{self._root}/")

    def view(self, path: str, view_range: Sequence[int] | None = None) -> str:
        """Return a file's lines with their numbers, or what a folder holds."""
        whole = self.place(path)
        try:
            text = self._read(whole)
        except IsADirectoryError:
            if view_range:
                raise ValueError(f"{path} is a folder; view_range is for files") from None
            return self._listing(whole)
        lines = _lines(text)
        first, last = _range(view_range, len(lines))
        if view_range is None and last > _MOST_SHOWN:
            more = last - _MOST_SHOWN
            shown = _numbered(lines[:_MOST_SHOWN], 1)
            return f"{shown}\n[… {more} more lines; view them with view_range=[{_MOST_SHOWN + 1}, {last}]]"
        return _numbered(lines[first - 1 : last], first) or f"{path} is empty"

    def create(self, path: str, file_text: str) -> str:
        """Write a whole file, new or not."""
        whole = self.place(path)
        known = self._bytes(whole)
        self._write(whole, file_text, known)
        return f"{'created' if known is None else 'replaced'} {path}, {len(_lines(file_text))} lines"

    def str_replace(self, path: str, old_str: str, new_str: str) -> str:
        """Replace text that stands in a file exactly once."""
        whole = self.place(path)
        text = self._read_file(whole, path)
        if not old_str:
            raise ValueError("wanted the text to be replaced in old_str, found none; insert adds lines")
        places = _places(text, old_str)
        if not places:
            raise ValueError(f"old_str does not stand in {path} with exactly these characters; view the file")
        if len(places) > 1:
            listed = ", ".join(map(str, places[:_MOST_PLACES]))
            count = f"more than {_MOST_PLACES}" if len(places) > _MOST_PLACES else len(places)
            raise ValueError(f"old_str stands {count} times in {path}, at lines {listed}; add lines around it")
        self._write(whole, text.replace(old_str, new_str, 1), text.encode())
        return f"edited {path}:\n{self._snippet(whole, places[0], new_str.count(chr(10)) + 1)}"

    def insert(self, path: str, insert_line: int, new_str: str) -> str:
        """Insert lines after a line; 0 is the beginning."""
        whole = self.place(path)
        text = self._read_file(whole, path)
        lines = _lines(text)
        if not 0 <= insert_line <= len(lines):
            raise ValueError(f"wanted insert_line from 0 to {len(lines)}, found {insert_line}")
        added = new_str if new_str.endswith("\n") else f"{new_str}\n"
        head = "".join(lines[:insert_line])
        if head and not head.endswith("\n"):
            head += "\n"
        self._write(whole, head + added + "".join(lines[insert_line:]), text.encode())
        return f"edited {path}:\n{self._snippet(whole, insert_line + 1, added.count(chr(10)))}"

    def undo_edit(self, path: str) -> str:
        """Take the last edit of a file back."""
        whole = self.place(path)
        at = next((at for at in reversed(range(len(self._before))) if self._before[at][0] == whole), None)
        if at is None:
            raise ValueError(f"there is no edit of {path} to take back")
        _, before = self._before[at]
        if before is None:
            self._box.exec(("rm", "-f", "--", whole))
        else:
            self._put(whole, before)
        del self._before[at]
        return f"took back the {'creation' if before is None else 'last edit'} of {path}"

    def _write(self, whole: str, text: str, before: bytes | None) -> None:
        data = text.encode("utf-8", "replace")
        if len(data) > _LIMIT:
            raise ValueError(f"wanted a file of at most {_LIMIT} bytes, found {len(data)}")
        self._put(whole, data)
        self._before.append((whole, before))
        while len(self._before) > _MOST_UNDO or sum(len(one or b"") for _, one in self._before) > _MOST_UNDO_BYTES:
            del self._before[0]

    def _put(self, whole: str, data: bytes) -> None:
        try:
            self._box.write(whole, data)
        except FileNotFoundError as error:
            raise ValueError(f"{whole} cannot be written: its folder went away meanwhile; try again") from error

    def _bytes(self, whole: str) -> bytes | None:
        """Return a file's bytes, None where there is no file."""
        try:
            return self._box.read(whole, limit=_LIMIT)
        except FileNotFoundError:
            return None

    def _read_file(self, whole: str, path: str) -> str:
        try:
            return self._read(whole)
        except IsADirectoryError:
            raise ValueError(f"{path} is a folder; wanted a file") from None

    def _read(self, whole: str) -> str:
        try:
            data = self._bytes(whole)
        except ValueError as error:
            if self._box.exec(("test", "-d", whole)).ok:
                raise IsADirectoryError(whole) from error
            raise
        if data is None:
            raise ValueError(f"there is no file {whole}")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{whole} is not UTF-8 text; look at it with bash") from None

    def _listing(self, whole: str) -> str:
        found = self._box.exec(
            ("find", whole, "-mindepth", "1", "-maxdepth", "2", "-not", "-path", "*/.*", "-not", "-name", "__pycache__")
        )
        names = sorted(found.stdout.decode("utf-8", "replace").splitlines())
        return "\n".join([f"{whole} holds, two levels deep:", *names])

    def _snippet(self, whole: str, line: int, count: int) -> str:
        lines = _lines(self._read(whole))
        first = max(1, line - _AROUND)
        return _numbered(lines[first - 1 : line + count - 1 + _AROUND], first)


def _lines(text: str) -> list[str]:
    parts = text.split("\n")
    return [f"{one}\n" for one in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def _numbered(lines: Sequence[str], first: int) -> str:
    return "\n".join(f"{number:6d}\t{line.removesuffix(chr(10))}" for number, line in enumerate(lines, first))


def _range(wanted: Sequence[int] | None, count: int) -> tuple[int, int]:
    if wanted is None:
        return 1, count
    if len(wanted) != 2:
        raise ValueError(f"wanted view_range as [first, last], found {list(wanted)}")
    first, last = wanted[0], count if wanted[1] == -1 else wanted[1]
    if not 1 <= first <= max(1, count) or last < first:
        raise ValueError(f"wanted view_range within 1 to {count}, found {list(wanted)}; -1 is the last line")
    return first, min(last, count)


def _places(text: str, part: str) -> list[int]:
    """Return the numbers of the lines where a text begins, overlapping ones too, up to one more than are told."""
    found: list[int] = []
    at, line, counted = text.find(part), 1, 0
    while at >= 0 and len(found) <= _MOST_PLACES:
        line += text.count("\n", counted, at)
        counted = at
        found.append(line)
        at = text.find(part, at + 1)
    return found
