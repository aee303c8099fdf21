"""Files to and from tar archives; an archive out of a sandbox is an attacker's, and only plain files leave it."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Mapping

_MAX_DEPTH = 100


def pack(files: Mapping[str, bytes], uid: int, *, mode: int = 0o644) -> bytes:
    """Return an archive of plain files owned by `uid`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size, member.mode, member.mtime = len(data), mode, int(time.time())
            member.uid = member.gid = uid
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def unpack(data: bytes, max_files: int, max_bytes: int) -> dict[str, bytes]:
    """Return the plain files of an archive by relative path; links, devices and folders are left out.

    Raises:
        ValueError: the archive is broken, too large, or holds names that lead out of it.
    """
    try:
        return _unpack(data, max_files, max_bytes)
    except (tarfile.TarError, EOFError, RecursionError, OverflowError) as error:
        raise ValueError(f"the sandbox sent a broken archive: {error}") from error


def _unpack(data: bytes, max_files: int, max_bytes: int) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    room = max_bytes
    entries = -1  # the folder itself is the first
    # As a stream: it cannot be sent backwards by a negative size.
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|", encoding="utf-8", errors="surrogateescape") as archive:
        for member in archive:
            entries += 1
            if entries > max_files:
                raise ValueError(f"the folder has more than {max_files} entries")
            name = _plain_name(member.name)
            content = found.get(_joined(member.linkname)) if member.islnk() else _content(archive, member, room)
            if content is not None:
                room -= len(content)
                found[name] = content
            if room < 0:
                raise ValueError(f"the folder has more than {max_bytes} bytes")
    return dict(sorted(found.items()))


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, room: int) -> bytes | None:
    if not member.isreg():
        return None
    if member.size > room:
        raise ValueError(f"{member.name!r} has {member.size} bytes, more than the {room} that may be read")
    file = archive.extractfile(member)
    return file.read() if file is not None else None


def _plain_name(name: str) -> str:
    joined = _joined(name)
    if name.startswith("/") or ".." in joined.split("/"):
        raise ValueError(f"the sandbox sent a file name that leads out of its folder: {name!r}")
    if joined.count("/") > _MAX_DEPTH:
        raise ValueError(f"the folder is nested deeper than {_MAX_DEPTH} folders")
    if not joined.isprintable() and any(0xD800 <= ord(char) < 0xE000 for char in joined):
        raise ValueError(f"the file name {joined!r} is not UTF-8")
    return joined


def _joined(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))
