"""The folders of sandboxes on the host: one owner each, swept only when that owner is provably dead."""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agentgym.errors import SandboxError
from agentgym_sandboxes._owner import Owner

AGENT_ID = 1000
"""The user and group of the agent, as the sandbox sees it."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """The folders of one sandbox, and the host's user that owns what the agent may write."""

    id: str
    root: Path
    uid: int | None
    """None: the sandbox runs as our own user, because only root may choose another."""

    @property
    def work(self) -> Path:
        """What the sandbox sees as its working directory."""
        return self.root / "work"

    @property
    def tmp(self) -> Path:
        """What the sandbox sees as /tmp."""
        return self.root / "tmp"

    def remove(self) -> None:
        """Delete everything, whatever depth and permissions the agent gave it."""
        remove(self.root)


def base_folder() -> Path:
    """Return the folder of all our sandboxes, made if it is missing.

    Raises:
        SandboxError: somebody else made it first.
    """
    base = Path(tempfile.gettempdir()) / f"agentgym-{os.geteuid()}"
    with suppress(FileExistsError):
        _make(base, 0o711)
    status = base.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise SandboxError(
            f"{base} is not a folder that only we can write to: remove it, or set TMPDIR to another place"
        )
    return base


def create(base: Path) -> Scratch:
    """Make the folders of a new sandbox, owned by a user that no other sandbox has if we are root."""
    uid = _unused_uid(base) if os.geteuid() == 0 else None
    name = secrets.token_hex(6) if uid is None else str(uid)
    scratch = Scratch(name, base / f"{name}~{Owner.current().tag()}", uid)
    try:
        _make(scratch.root, 0o711)
    except FileExistsError:  # another thread picked the same user
        return create(base)
    for folder in (scratch.work, scratch.tmp):
        _make(folder, 0o700)
        if uid is not None:
            os.chown(folder, uid, uid)
    for name in ("empty", "etc"):
        _make(scratch.root / name, 0o755)
    _write_etc(scratch.root / "etc")
    return scratch


def _make(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)  # whatever the umask is


def sweep(base: Path) -> list[str]:
    """Remove the folders whose owner is dead and return their names."""
    dead = []
    for folder in base.iterdir():
        owner = Owner.from_tag(folder.name.partition("~")[2])
        if owner is not None and owner.is_dead():
            remove(folder)
            dead.append(folder.name)
    return dead


def remove(folder: Path) -> None:
    """Delete a folder; links in it are not followed."""
    argv = ["rm", "-rf", "--", str(folder)]
    if subprocess.run(argv, capture_output=True, check=False).returncode == 0:
        return
    subprocess.run(["chmod", "-R", "u+rwx", "--", str(folder)], capture_output=True, check=False)
    done = subprocess.run(argv, capture_output=True, check=False)
    if done.returncode != 0 and folder.exists():
        raise SandboxError(f"cannot remove {folder}: {done.stderr.decode(errors='replace').strip()}")


def _write_etc(folder: Path) -> None:
    passwd = f"root:x:0:0:root:/:/bin/false\nagent:x:{AGENT_ID}:{AGENT_ID}:agent:/tmp:/bin/sh\n"
    for name, text in (("passwd", passwd), ("group", f"root:x:0:\nagent:x:{AGENT_ID}:\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)


def _unused_uid(base: Path) -> int | None:
    """Pick a user from the upper half of those that exist here, far from people, services and their containers."""
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    start, _, count = max(ranges, key=lambda one: one[2])
    if count < 1 << 12:  # a user namespace with few users: nobody to become
        return None
    top = min(start + count, 1 << 31) - 1
    taken = {folder.name.partition("~")[0] for folder in base.iterdir()}
    while True:
        uid = top - secrets.randbelow(min(count // 2, 1 << 28))
        if str(uid) not in taken and uid not in (65534, 65535):
            return uid
