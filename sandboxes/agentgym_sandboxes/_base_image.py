"""Build the sandboxes' base image: from this machine's own packages without a registry, or upon a public image."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from docker import APIClient

from agentgym.errors import SandboxError

FOLDER = Path(__file__).parent / "images"
_LAST_LINES = 5


def bootstrap(name: str, say: Callable[[str], None]) -> None:
    """Run `images/build-base.sh`, and say what it says.

    Raises:
        SandboxError: it failed, for the reason that it gave last.
    """
    argv = ["sh", str(FOLDER / "build-base.sh"), name]
    said: list[str] = []
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as running:
        assert running.stderr is not None
        try:
            for line in running.stderr:
                said.append(line.strip().removeprefix("build-base: "))
                say(said[-1])
        except BaseException:
            running.terminate()  # it removes what it has begun
            raise
    if running.returncode != 0:
        raise SandboxError(f"the base image cannot be built: {' '.join(said[-1:]) or 'no reason was given'}")


def build_upon(api: APIClient, name: str, base: str, say: Callable[[str], None]) -> None:
    """Build `images/Dockerfile` upon another image, which Docker pulls if it must.

    Raises:
        SandboxError: it failed.
    """
    steps = api.build(
        path=str(FOLDER),
        dockerfile="Dockerfile",
        tag=name,
        buildargs={"BASE": base},
        rm=True,
        forcerm=True,
        decode=True,
    )
    follow(name, steps, say)


def follow(name: str, steps: Iterable[dict[str, Any]], say: Callable[[str], None]) -> None:
    """Say each line of a build or pull once.

    Raises:
        SandboxError: it failed; with Docker's reason and the last lines before it.
    """
    lines: list[str] = []
    for step in steps:
        if "error" in step:
            before = " | ".join(lines[-_LAST_LINES:])
            raise SandboxError(
                f"Docker cannot make the image {name!r}: {step['error'].strip()}" + (f" ({before})" * bool(before))
            )
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(step.get("stream") or step.get("status") or ""))
        for line in filter(None, map(str.strip, text.splitlines())):
            if lines[-1:] != [line]:
                lines.append(line)
                say(line)
