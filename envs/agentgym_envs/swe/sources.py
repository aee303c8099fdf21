"""Where the content of a repository before its fix comes from: bytes that are read on the host, and never run there."""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from agentgym.errors import TaskError
from agentgym.graders.patches import PatchError, check_tree, safe_path
from agentgym.types import Record
from agentgym_envs.swe.index import fetch_sdist

_GIT_S = 300


@dataclass(frozen=True)
class Repository:
    """The regular files of a repository, by relative path."""

    files: Mapping[str, bytes]
    executable: frozenset[str] = frozenset()
    left_out: tuple[str, ...] = ()
    """Links, devices and names that no task can hold."""

    @cached_property
    def texts(self) -> Mapping[str, str]:
        """The files that are UTF-8; made once, so that the tasks of one repository share them."""
        found = {}
        for name, data in self.files.items():
            try:
                found[name] = data.decode()
            except UnicodeDecodeError:
                continue
        return found

    @cached_property
    def binary(self) -> Mapping[str, str]:
        """The others, in base64."""
        texts = self.texts
        return {name: base64.b64encode(data).decode() for name, data in self.files.items() if name not in texts}


class Sdist(Record):
    """A source package of a Python package index, kept in `~/.cache/agentgym/sdists` once it was fetched."""

    kind: Literal["sdist"] = "sdist"
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.!+_-]*$")]
    sha256: str | None = None
    """None takes the index's word the first time, and the kept file's after that."""


class GitCommit(Record):
    """One commit of a clone on this machine; only its files are read, its history goes nowhere."""

    kind: Literal["git"] = "git"
    path: str
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{7,64}$")]


class Archive(Record):
    """A tar or zip file on this machine, whose only top folder, if it has just one, is the repository."""

    kind: Literal["archive"] = "archive"
    path: str
    sha256: str | None = None


class InImage(Record):
    """A folder of the task's image; the host never sees it whole."""

    kind: Literal["image"] = "image"
    root: Annotated[str, Field(pattern=r"^/.*[^/]$")]
    setup: tuple[str, ...] = ()
    """Scripts that root runs before the folder is given to the agent, such as one that plants the defect."""


Source = Annotated[Sdist | GitCommit | Archive | InImage, Field(discriminator="kind")]


@lru_cache(maxsize=8)
def read(source: Sdist | GitCommit | Archive) -> Repository:
    """Return the content of a repository; the last ones are remembered, for tasks often share them.

    Raises:
        TaskError: it cannot be had, is not what it should be, or holds what no repository should.
    """
    match source:
        case Sdist():
            return unpack(fetch_sdist(source.package, source.version, source.sha256))
        case GitCommit():
            return unpack(_git_archive(source), strip=False)
        case Archive():
            return unpack(_checked(Path(source.path), source.sha256))


def unpack(data: bytes, *, strip: bool = True) -> Repository:
    """Return the regular files of a tar or zip archive, without their only top folder if `strip`.

    Raises:
        TaskError: it is neither, or too large, or a file in it leads out of it.
    """
    files: dict[str, bytes] = {}
    executable, left_out = set(), []
    try:
        for name, content, runs in _members(data):
            if content is None:
                left_out.append(name)
            else:
                files[name] = content
                executable |= {name} if runs else set()
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise TaskError(f"the archive of a repository cannot be read: {error}") from error
    top = next(iter(files), "").partition("/")[0] + "/"
    cut = len(top) if strip and top != "/" and all(name.startswith(top) for name in files) else 0
    try:
        found = {safe_path(name[cut:]): content for name, content in files.items() if _is_plain(name[cut:])}
        check_tree(found)
    except PatchError as error:
        raise TaskError(f"the archive of a repository cannot be used: {error}") from error
    left_out += [name for name in files if not _is_plain(name[cut:])]
    return Repository(found, frozenset(name[cut:] for name in executable), tuple(name[cut:] for name in left_out))


def _members(data: bytes) -> Iterator[tuple[str, bytes | None, bool]]:
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for one in archive.infolist():
                if not one.is_dir():
                    yield one.filename, archive.read(one), bool(one.external_attr >> 16 & 0o111)
        return
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if member.isreg():
                file = archive.extractfile(member)
                yield name, file.read() if file is not None else b"", bool(member.mode & 0o111)
            elif not member.isdir():
                yield name, None, False


def _is_plain(name: str) -> bool:
    try:
        safe_path(name)
    except PatchError:
        return False
    return True


def _git_archive(source: GitCommit) -> bytes:
    # Of a clone that the user made, never of a folder that an agent could write to; no hook or filter of it runs.
    command = ["git", "-C", source.path, "-c", "core.fsmonitor=false", "archive", "--format=tar", source.commit]
    try:
        return subprocess.run(command, check=True, capture_output=True, timeout=_GIT_S).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", b"") or b""
        raise TaskError(
            f"commit {source.commit[:12]} of {source.path} cannot be read: "
            f"{said.decode('utf-8', 'replace').strip() or error}"
        ) from error


def _checked(file: Path, sha256: str | None) -> bytes:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise TaskError(f"no archive of a repository can be read at {file}: {error.strerror}") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise TaskError(f"{file} is not the archive that the task names: its SHA-256 is not {sha256}")
    return data
