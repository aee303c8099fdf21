"""Files in and out of a sandbox by its supervisor: one at a time, many, or everything as it is."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

from agentgym_sandboxes._answers import Answers
from agentgym_sandboxes._command import absolute
from agentgym_sandboxes._link import Waiting
from agentgym_sandboxes._messages import (
    Ask,
    Code,
    Data,
    Entries,
    Entry,
    Say,
    Want,
    outcome,
    wanted_files,
    written_files,
)

_FILES_S = 120.0
_PIECE = (1 << 16) - 12
"""What the supervisor reads at once, less a frame's header."""


class Transfers:
    """The files of one sandbox; `folders` are those that hold them."""

    def __init__(self, answers: Answers, workdir: str, folders: tuple[str, ...]) -> None:
        self._answers = answers
        self._link = answers.link
        self._workdir = workdir
        self._folders = folders
        self._writing = threading.Lock()

    def read(self, path: str, limit: int) -> bytes:
        """Return a regular file's bytes."""
        whole = absolute(path, self._workdir)
        if whole in self._folders:
            raise ValueError(f"the path {path!r} is the sandbox's folder itself, not a plain file")
        code, entries = self._get(whole, Want.ONE_FILE, max_entries=1, max_bytes=limit)
        if code == Code.TOO_BIG:
            raise ValueError(f"{path!r} has more than the {limit} bytes that may be read")
        _check(code, path)
        return next(entries.all()).data

    def upload(self, files: Mapping[str, bytes]) -> None:
        """Write many files in one call."""
        whole = {absolute(path, self._workdir): data for path, data in files.items()}
        for path in whole:
            self._require_inside(path)
        self.put("", (Entry("f", path.encode(), data=data).packed() for path, data in whole.items()))

    def download(self, path: str, max_files: int, max_bytes: int) -> dict[str, bytes]:
        """Return the regular files below a folder."""
        code, entries = self._get(absolute(path, self._workdir), Want(0), max_entries=max_files, max_bytes=max_bytes)
        if code == Code.TOO_MANY:
            raise ValueError(f"{path!r} has more than {max_files} entries")
        if code == Code.TOO_BIG:
            raise ValueError(f"{path!r} has more than {max_bytes} bytes")
        if code == Code.TOO_DEEP:
            raise ValueError(f"{path!r} is too deep")
        _check(code, path)
        found = {_name(one.path): one.data for one in entries.all() if one.kind == "f"}
        if "" in found:
            _check(Code.NOT_PLAIN, path)
        return found

    def frozen(self, folders: Sequence[str]) -> dict[str, Entries]:
        """Return everything that some folders hold, as it can be put into another sandbox."""
        asked = [self._ask_for(folder, Want.METADATA, max_entries=1 << 31, max_bytes=1 << 40) for folder in folders]
        answers = dict(zip(folders, [self._got(one) for one in asked], strict=True))
        for folder, (code, _) in answers.items():
            _check(code, folder)
        return {folder: entries for folder, (_, entries) in answers.items()}

    def thaw(self, found: Mapping[str, Entries]) -> None:
        """Take over what `frozen` of another sandbox returned."""
        for folder, entries in found.items():
            self.put(folder, entries.pieces, is_fresh=True)

    def put(self, folder: str, pieces: Iterable[Data], *, is_fresh: bool = False) -> None:
        """Write entries below a folder; pieces may be cut anywhere."""
        waiting = Waiting()
        with self._writing:
            channel = self._link.open(waiting)
            self._link.send(Ask.PUT, channel, written_files(folder, is_fresh=is_fresh))
            for batch in _batched(pieces):
                self._link.send(Ask.PUT_DATA, channel, batch)
            self._link.send(Ask.PUT_END, channel)
            self._answers.wait(waiting, _FILES_S, channel)
        code, about = outcome(waiting.payload)
        _check(code, about)

    def _get(self, path: str, want: Want, *, max_entries: int, max_bytes: int) -> tuple[int, Entries]:
        return self._got(self._ask_for(path, want, max_entries=max_entries, max_bytes=max_bytes))

    def _ask_for(self, path: str, want: Want, *, max_entries: int, max_bytes: int) -> tuple[int, _Collecting]:
        self._answers.lifetime.left()
        collecting = _Collecting()
        channel = self._link.open(collecting)
        asked = wanted_files(path, want, max_entries=max_entries, max_bytes=max_bytes)
        self._link.send(Ask.GET, channel, asked)
        return channel, collecting

    def _got(self, asked: tuple[int, _Collecting]) -> tuple[int, Entries]:
        channel, collecting = asked
        self._answers.wait(collecting, _FILES_S, channel)
        return outcome(collecting.payload)[0], collecting.entries

    def _require_inside(self, path: str) -> None:
        if path in self._folders:
            raise ValueError(f"the path {path!r} is the sandbox's folder itself, not a file in it")
        if not path.startswith(tuple(f"{top}/" for top in self._folders)):
            raise ValueError(f"{path!r} is outside of {' and '.join(self._folders)}, where this sandbox keeps files")


class _Collecting(Waiting):
    """Files that arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = Entries()

    def hear(self, kind: int, payload: bytes) -> None:
        if kind == Say.ENTRIES:
            self.entries.feed(payload)
        else:
            super().hear(kind, payload)


def _check(code: int, path: str) -> None:
    if code == errno.ENOENT:
        raise FileNotFoundError(errno.ENOENT, "no such file in the sandbox", path)
    if code == Code.NOT_PLAIN:
        raise ValueError(f"the path {path!r} cannot be opened as a plain file or folder: something else is there")
    if code:
        raise ValueError(f"the path {path!r} cannot be used: {Code(code).name if code > 1000 else os.strerror(code)}")


def _name(path: bytes) -> str:
    try:
        return path.decode()
    except UnicodeDecodeError:
        raise ValueError(f"the name {path!r} is not valid UTF-8") from None


def _batched(pieces: Iterable[Data]) -> Iterator[Data]:
    """Yield what is to be sent in frames of a good size."""
    batch = bytearray()
    for piece in pieces:
        if len(batch) + len(piece) <= _PIECE:
            batch += piece
            continue
        if batch:
            yield batch
            batch = bytearray()
        whole = memoryview(piece)
        for start in range(0, len(piece), _PIECE):
            yield whole[start : start + _PIECE]
    if batch:
        yield batch
