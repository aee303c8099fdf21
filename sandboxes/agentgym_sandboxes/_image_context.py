"""What an image is built from: a Dockerfile, the files beside it, and a hash that names both and the images below."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
import stat
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from docker.utils.build import exclude_paths

from agentgym.errors import TaskError
from agentgym.image import ImageSpec

_FILES = "files.tar"
_DOCKERFILE = "Dockerfile"
_IN_MEMORY = 1 << 24
_MOST_BYTES = 1 << 32
_APT = (
    "grep -qrs . /etc/apt/sources.list /etc/apt/sources.list.d || "
    "{{ echo 'the base image has no apt sources: take another, or put /etc/apt/sources.list among the files' >&2; "
    "exit 1; }}; "
    "apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends {} "
    "&& rm -rf /var/lib/apt/lists/*"
)
# The variable is for images whose Python is the distribution's: nobody but the tasks uses them.
_PIP = "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir --root-user-action=ignore {}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a context: its bytes, or where they are, or what a link points to."""

    data: bytes | Path | str
    mode: int = 0o644

    @property
    def size(self) -> int:
        """In bytes."""
        return self.data.stat().st_size if isinstance(self.data, Path) else len(self.data)


@dataclass(frozen=True, slots=True)
class Context:
    """Everything that a build reads."""

    dockerfile: str
    entries: Mapping[str, Entry]
    network: bool = True

    @property
    def bases(self) -> list[str]:
        """The images that it starts from, as far as the Dockerfile names them by itself."""
        return _bases(self.dockerfile)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(entry.size for entry in self.entries.values())

    def digest(self, base_ids: Mapping[str, str]) -> str:
        """Return a hash of all that decides what is built; the images below it count by their ids."""
        whole = hashlib.sha256(json.dumps([self.dockerfile, self.network, sorted(base_ids.items())]).encode())
        for name, entry in sorted(self.entries.items()):
            kind = "link" if isinstance(entry.data, str) else "file"
            whole.update(json.dumps([name, kind, entry.mode]).encode())
            if isinstance(entry.data, Path):
                with entry.data.open("rb") as file:
                    whole.update(hashlib.file_digest(file, "sha256").digest())
            else:
                data = entry.data.encode() if isinstance(entry.data, str) else entry.data
                whole.update(hashlib.sha256(data).digest())
        return whole.hexdigest()[:24]

    def archive(self) -> IO[bytes]:
        """Return the context as Docker wants it, in memory or in an unnamed file if it is large."""
        spool = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - the caller closes it
        with tarfile.open(fileobj=spool, mode="w") as archive:
            _add(archive, _DOCKERFILE, Entry(self.dockerfile.encode()))
            for name, entry in sorted(self.entries.items()):
                if name != _DOCKERFILE:
                    _add(archive, name, entry)
        spool.seek(0)
        return spool


def from_spec(spec: ImageSpec, base: str) -> Context:
    """Return the context of a typed specification; `base` is the image of those that name none.

    Nothing of the specification is put where Docker would read it as an instruction or expand it.
    """
    lines = [f"FROM {spec.base or base}", "USER 0"]
    lines += [f'ENV {name}="{_quoted(value)}"' for name, value in sorted(spec.env.items())]
    entries = {}
    if spec.files:
        # As an archive of files alone: a copied folder would give its own permissions to those that are there.
        entries[_FILES] = Entry(_packed(spec.files))
        lines.append(f"ADD {_FILES} /")
    lines += [_run(_APT.format(shlex.join(spec.apt)))] if spec.apt else []
    lines += [_run(_PIP.format(shlex.join(spec.pip)))] if spec.pip else []
    lines += [_run(script) for script in spec.run]
    return Context("\n".join([*lines, "USER 1000:1000", ""]), entries, spec.network or bool(spec.apt or spec.pip))


def from_folder(folder: Path) -> Context:
    """Return the context that a folder with a Dockerfile is, less what its `.dockerignore` names.

    Raises:
        TaskError: there is no Dockerfile, or the folder is too large.
    """
    file = folder / _DOCKERFILE
    if not file.is_file():
        raise TaskError(f"an image is to be built from {folder}, but there is no Dockerfile")
    ignore = folder / ".dockerignore"
    patterns = ignore.read_text().splitlines() if ignore.is_file() else []
    patterns = [line.strip() for line in patterns if line.strip() and not line.startswith("#")]
    entries, size = {}, 0
    for name in exclude_paths(str(folder), patterns, dockerfile=_DOCKERFILE):
        path = folder / name
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            entries[name] = Entry(str(path.readlink()))
        elif stat.S_ISDIR(status.st_mode):
            entries[f"{name}/"] = Entry(b"", 0o755)
        elif stat.S_ISREG(status.st_mode):
            entries[name] = Entry(path, 0o755 if status.st_mode & 0o100 else 0o644)
            size += status.st_size
        if size > _MOST_BYTES:
            raise TaskError(
                f"{folder} has more than the {_MOST_BYTES >> 30} GB "
                "that a context may have: name in .dockerignore what is not needed"
            )
    return Context(file.read_text(), entries)


def _add(archive: tarfile.TarFile, name: str, entry: Entry) -> None:
    member = tarfile.TarInfo(name)  # of nobody and no time, so that Docker knows its own work again
    member.mode = entry.mode
    if isinstance(entry.data, str):
        member.type, member.linkname = tarfile.SYMTYPE, entry.data
        archive.addfile(member)
    elif name.endswith("/"):
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
    elif isinstance(entry.data, Path):
        member.size = entry.size
        with entry.data.open("rb") as file:
            archive.addfile(member, file)
    else:
        member.size = len(entry.data)
        archive.addfile(member, io.BytesIO(entry.data))


def _packed(files: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, text in sorted(files.items()):
            _add(archive, path.lstrip("/"), Entry(text.encode()))
    return buffer.getvalue()


def _run(script: str) -> str:
    return f"RUN {json.dumps(['/bin/sh', '-ec', script])}"


def _quoted(value: str) -> str:
    return re.sub(r'([\\"$])', r"\\\1", value)


def _bases(dockerfile: str) -> list[str]:
    """Return the images of all FROM lines that are no earlier stages, with the defaults of ARG put in."""
    whole = re.sub(r"\\[ \t]*\n", " ", re.sub(r"(?m)^[ \t]*#.*\n?", "", dockerfile))
    defaults: dict[str, str] = {}
    stages: set[str] = {"scratch"}
    found: list[str] = []
    for line in whole.splitlines():
        words = line.split()
        if len(words) > 1 and words[0].upper() == "ARG" and not found and len(stages) == 1:
            name, _, value = words[1].partition("=")
            defaults[name] = value.strip("\"'")
        if len(words) > 1 and words[0].upper() == "FROM":
            image, *rest = [_expanded(word, defaults) for word in words[1:] if not word.startswith("--")]
            if image and image.lower() not in stages and image not in found:
                found.append(image)
            if len(rest) == 2 and rest[0].upper() == "AS":
                stages.add(rest[1].lower())
    return found


def _expanded(word: str, values: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        return values.get(match[1] or match[3], "") or match[2] or ""

    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}|\$(\w+)", value, word)
