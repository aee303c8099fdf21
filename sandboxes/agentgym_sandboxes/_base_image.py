"""Build the sandboxes' base image: from this machine's own packages without a registry, or upon a public image."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from docker import APIClient

from agentgym.errors import SandboxError
from agentgym_sandboxes._images import follow

FOLDER = Path(__file__).parent / "images"


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
