"""Images by the names that tasks use: found, pulled if the policy says so, or built once for all who ask."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import requests
from docker import APIClient
from docker.errors import DockerException, ImageNotFound

from agentgym.errors import SandboxError, TaskError
from agentgym.image import BUILD, ImageSpec
from agentgym_sandboxes._disk_room import disk_room
from agentgym_sandboxes._image_context import Context, from_folder, from_spec
from agentgym_sandboxes._inventory import IMAGE_LABEL, IMAGE_NAME

progress = logging.getLogger("agentgym.progress")

Pull = Literal["never", "if-missing", "always"]
BASE_IMAGE = "agentgym-base:latest"
_RESERVE_BYTES = 2 << 30
_CONTEXT_COPIES = 3
"""How often a context may come to lie on the daemon's disk: as it arrives, and in layers."""
_LAST_LINES = 5
_QUIET_S = 1.0


class Images:
    """The images of one daemon; safe to use from many threads, and processes do not build the same one twice."""

    def __init__(
        self,
        connect: Callable[[], APIClient],
        base: str,
        pull: Pull = "never",
        contexts: str | Path | None = None,
        reserve_bytes: int = _RESERVE_BYTES,
    ) -> None:
        """Prepare, without speaking to the daemon.

        Args:
            connect: returns the client.
            base: the image of specifications that name none.
            pull: whether images that tasks name are pulled: `always` is once for each backend.
            contexts: the folder below which `build:<folder>` may be; None refuses those.
            reserve_bytes: how much room the daemon's disk must have besides what is to be made.
        """
        if pull not in get_args(Pull):
            raise ValueError(f"pull must be one of {', '.join(get_args(Pull))}, not {pull!r}")
        self._connect = connect
        self._base = base
        self._pull = pull
        self._contexts = Path(contexts).resolve() if contexts is not None else None
        self._reserve = reserve_bytes
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._known: dict[str, str] = {}

    def require(self, name: str) -> str:
        """Return the name of an image that is there now.

        Raises:
            TaskError: what a build needs is missing or malformed.
            SandboxError: it is not there, and cannot be made or pulled; or the daemon does not answer.
        """
        try:
            with self._lock_of(name):
                known = self._known.get(name)
                if known is None or (name.startswith(BUILD) and self._id(known) is None):  # somebody tidied up
                    known = self._known[name] = self._built(name) if name.startswith(BUILD) else self._found(name)
                return known
        except (DockerException, requests.RequestException) as error:
            raise SandboxError(f"Docker cannot look up the image {name[:80]!r}: {error}") from error

    def has(self, name: str) -> bool:
        """Return whether an image is there now; nothing is pulled or built.

        Raises:
            TaskError: what its build needs is missing or malformed.
            SandboxError: the daemon does not answer.
        """
        try:
            return self._has(name)
        except (DockerException, requests.RequestException) as error:
            raise SandboxError(f"Docker cannot look up the image {name[:80]!r}: {error}") from error

    def _has(self, name: str) -> bool:
        if not name.startswith(BUILD):
            return self._id(name) is not None
        if name in self._known:
            return self._id(self._known[name]) is not None
        said = name.removeprefix(BUILD)
        base = ImageSpec.from_name(name).base if said.lstrip().startswith("{") else None
        if base is not None and not self._has(base):
            return False
        context = self._context(name)
        ids = {one: self._id(one) for one in context.bases}
        there = {one: found for one, found in ids.items() if found is not None}
        return len(there) == len(ids) and self._id(f"{IMAGE_NAME}:{context.digest(there)}") is not None

    def forget(self) -> None:
        """Look again at what was known to be there."""
        self._known.clear()

    def _found(self, name: str) -> str:
        is_there = self._id(name) is not None
        in_no_registry = name == BASE_IMAGE or name.startswith("sha256:")
        if not in_no_registry and (self._pull == "always" or (self._pull == "if-missing" and not is_there)):
            self._pulled(name)
        elif not is_there:
            hint = "pull or build it, or let the backend do it: pull=if-missing"
            if in_no_registry:
                hint = "build it with `agentgym sandbox build-base`" if name == BASE_IMAGE else "somebody removed it"
            raise SandboxError(f"the Docker image {name!r} is not on this machine: {hint}")
        return name

    def _pulled(self, name: str) -> None:
        self._require_room(name, 0)
        steps = self._connect().pull(name, stream=True, decode=True)
        with _telling(f"pulling {name}") as say:
            follow(name, steps, say)

    def _built(self, name: str) -> str:
        context = self._context(name)
        ids = {}
        for base in context.bases:
            ids[base] = self._id(self._found(base)) or ""
        digest = context.digest(ids)
        tag = f"{IMAGE_NAME}:{digest}"
        if self._id(tag) is None:
            with _alone(digest):
                if self._id(tag) is None:
                    self._build(tag, digest, context)
        return tag

    def _build(self, tag: str, digest: str, context: Context) -> None:
        self._require_room(tag, _CONTEXT_COPIES * context.size)
        labels = {IMAGE_LABEL: digest, "agentgym.built": f"{time.time():.0f}"}
        with context.archive() as archive, _telling(f"building {tag}") as say:
            steps = self._connect().build(
                fileobj=archive,
                custom_context=True,
                tag=tag,
                labels=labels,
                network_mode=None if context.network else "none",
                rm=True,
                forcerm=True,
                decode=True,
            )
            follow(tag, steps, say)

    def _context(self, name: str) -> Context:
        said = name.removeprefix(BUILD)
        if said.lstrip().startswith("{"):
            spec = ImageSpec.from_name(name)
            if spec.base is not None and spec.base.startswith(BUILD):
                spec = spec.model_copy(update={"base": self.require(spec.base)})
            return from_spec(spec, self._base)
        if self._contexts is None:
            raise TaskError(
                f"the task's image is to be built from the folder {said!r}, but this backend was not told below which "
                "folder it may read: give it contexts=FOLDER"
            )
        folder = (self._contexts / said).resolve()
        if not folder.is_relative_to(self._contexts):
            raise TaskError(f"the folder {said!r} of an image leads out of {self._contexts}, where contexts are")
        return from_folder(folder)

    def _id(self, name: str) -> str | None:
        try:
            found: Mapping[str, Any] = self._connect().inspect_image(name)  # type: ignore[no-untyped-call]
        except ImageNotFound:
            return None
        return str(found["Id"])

    def _require_room(self, name: str, size: int) -> None:
        info = self._connect().info()
        free, needed = disk_room(info), self._reserve + size
        if free is not None and free < needed:
            raise SandboxError(
                f"there is too little room for the image {name!r}: {free / 1e9:.1f} GB are free in "
                f"{info['DockerRootDir']}, and {needed / 1e9:.1f} GB should be; try `agentgym sandbox gc --images`"
            )

    def _lock_of(self, name: str) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(name, threading.Lock())


def follow(name: str, steps: Iterable[dict[str, Any]], say: Callable[[str], None]) -> None:
    """Say each line of a build or pull once.

    Raises:
        SandboxError: it failed; with Docker's reason and the last lines before it.
    """
    lines: list[str] = []
    for step in steps:
        if "error" in step:
            before = f" (after: {' | '.join(lines[-_LAST_LINES:])})" if lines else ""
            raise SandboxError(f"Docker cannot make the image {name!r}: {str(step['error']).strip()}{before}")
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(step.get("stream") or step.get("status") or ""))
        for line in filter(None, map(str.strip, text.splitlines())):
            if lines[-1:] != [line]:
                lines.append(line)
                say(line)


@contextmanager
def _telling(what: str) -> Iterator[Callable[[str], None]]:
    """Log how something goes, once it takes longer than a moment, and not more often than a person reads."""
    began = last = time.monotonic()

    def say(line: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _QUIET_S:
            last = now
            progress.info("%s, %.0f s: %s", what, now - began, line[:200])

    yield say
    if last != began:
        progress.info("%s took %.0f s", what, time.monotonic() - began)


@contextmanager
def _alone(digest: str) -> Iterator[None]:
    """Let no other process of this user build the same image meanwhile."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentgym" / "builds"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / digest).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
