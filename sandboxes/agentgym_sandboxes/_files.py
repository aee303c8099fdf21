"""Read and write below a folder whose contents an agent controls: no link is followed, nothing but files is opened."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_DEPTH = 100


class Folder:
    """One folder on the host that a sandbox may write to.

    Every component of a path is opened relative to the one before it and never through a link, so an agent that
    swaps folders for links while we walk reaches nothing outside.
    """

    def __init__(self, root: Path, uid: int | None) -> None:
        self._root = root
        self._uid = uid

    def read(self, parts: tuple[str, ...], limit: int) -> bytes:
        """Return a regular file of at most `limit` bytes."""
        _refuse_root(parts)
        with _plain_errors(parts), self._walk(parts[:-1]) as folder:
            return _read_file(folder, parts[-1], limit)

    def write(self, parts: tuple[str, ...], data: bytes) -> None:
        """Create or replace a file in one step, keeping the permissions of the file it replaces."""
        _refuse_root(parts)
        temporary = f".agentgym-{secrets.token_hex(8)}"
        with _plain_errors(parts), self._walk(parts[:-1], create=True) as folder:
            descriptor = os.open(temporary, _CREATE, 0o600, dir_fd=folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    self._own(file.fileno())
                    os.fchmod(file.fileno(), _mode(folder, parts[-1]))
                os.rename(temporary, parts[-1], src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=folder)
                raise

    def tree(self, parts: tuple[str, ...], max_files: int, max_bytes: int) -> dict[str, bytes]:
        """Return the regular files below a folder by relative path, skipping everything that is not a file."""
        found: dict[str, bytes] = {}
        room = max_bytes
        entries = 0
        folders: list[tuple[str, ...]] = [()]
        while folders:
            below = folders.pop()
            if len(below) > _MAX_DEPTH:
                raise ValueError(f"{'/'.join(parts)!r} is nested deeper than {_MAX_DEPTH} folders")
            where = parts + below
            with _plain_errors(where), self._walk(where) as folder, os.scandir(folder) as listing:
                for entry in listing:
                    entries += 1
                    if entries > max_files:
                        raise ValueError(f"{'/'.join(parts)!r} has more than {max_files} entries")
                    if entry.is_dir(follow_symlinks=False):
                        folders.append((*below, entry.name))
                    elif entry.is_file(follow_symlinks=False):
                        name = _utf8("/".join((*below, entry.name)))
                        found[name] = _read_file(folder, entry.name, room)
                        room -= len(found[name])
        return dict(sorted(found.items()))

    @contextmanager
    def _walk(self, parts: tuple[str, ...], *, create: bool = False) -> Iterator[int]:
        current = os.open(self._root, _FOLDER)
        try:
            for part in parts:
                if create:
                    self._make(part, current)
                after = os.open(part, _FOLDER, dir_fd=current)
                os.close(current)
                current = after
            yield current
        finally:
            os.close(current)

    def _make(self, name: str, parent: int) -> None:
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
        except FileExistsError:
            return
        made = os.open(name, _FOLDER, dir_fd=parent)
        try:
            self._own(made)
        finally:
            os.close(made)

    def _own(self, descriptor: int) -> None:
        if self._uid is not None:
            os.fchown(descriptor, self._uid, self._uid)


def _refuse_root(parts: tuple[str, ...]) -> None:
    if not parts:
        raise ValueError("the path is the sandbox's folder itself, not a file in it")


def _read_file(folder: int, name: str, limit: int) -> bytes:
    descriptor = os.open(name, _READ, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name!r} is not a regular file")
        if status.st_size > limit:
            raise ValueError(f"{name!r} has {status.st_size} bytes, more than the {limit} that may be read")
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise ValueError(f"{name!r} grew beyond the {limit} bytes that may be read")
    return data


def _mode(folder: int, name: str) -> int:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return 0o644
    return stat.S_IMODE(status.st_mode) & 0o777 if stat.S_ISREG(status.st_mode) else 0o644


def _utf8(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the file name {name!r} is not UTF-8") from None
    return name


@contextmanager
def _plain_errors(parts: tuple[str, ...]) -> Iterator[None]:
    """Tell a missing file from a path that leads through something else than folders and files."""
    name = "/".join(parts)
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such file in the sandbox", name) from None
    except OSError as error:
        if error.errno in _AGENT_MADE:
            raise ValueError(f"{name!r} cannot be opened as a plain file or folder: {error.strerror}") from error
        raise


_AGENT_MADE = frozenset(
    (
        errno.ELOOP,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EACCES,
        errno.EPERM,
        errno.ENXIO,
        errno.ENODEV,
        errno.ENAMETOOLONG,
        errno.ENOTEMPTY,
        errno.EEXIST,
    )
)
