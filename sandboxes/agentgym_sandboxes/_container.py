"""What only Docker knows of one sandbox: whose fault its end is, other users, and how it is removed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from docker import APIClient
from docker.errors import APIError, DockerException, NotFound

from agentgym.errors import AgentFault, CapabilityError, SandboxError
from agentgym.sandbox import ExecResult
from agentgym_sandboxes._attached import AttachedWire
from agentgym_sandboxes._command import ENTER
from agentgym_sandboxes._docker_exec import Command, DockerExec
from agentgym_sandboxes._docker_host import knock
from agentgym_sandboxes._lifetime import Lifetime
from agentgym_sandboxes._removal import remove_container
from agentgym_sandboxes._running import RunOptions

_FORBIDDEN = 403
_OOM_NEWS_S = 1.0
_POLL_S = 0.02


class Container:
    """See `_supervised.Place`."""

    def __init__(self, api: APIClient, container: str, pids: int, lifetime: Lifetime, wire: AttachedWire) -> None:
        self.id = container[:12]
        self._api = api
        self._container = container
        self._exec = DockerExec(api, container, pids)
        self._lifetime = lifetime
        self._wire = wire

    def failure(self, error: str) -> Exception:
        """Say why the container does not answer, by what the daemon knows and nothing that the agent says."""
        if self._lifetime.closed:
            return SandboxError(f"sandbox {self.id} was closed while a command ran in it")
        try:
            knock()
        except SandboxError as error_too:
            return error_too
        try:
            state = self._settled_state()
            if state["Running"]:
                return SandboxError(f"the Docker daemon lost the connection to container {self.id}: {error}")
            if state["OOMKilled"] or self._heard_of_oom():
                return AgentFault(f"the processes in sandbox {self.id} exceeded its memory and took it down")
        except NotFound:
            return SandboxError(f"container {self.id} is gone: somebody removed it")
        except (DockerException, requests.RequestException):
            return SandboxError(f"the Docker daemon does not answer: {error}")
        if self._lifetime.expired:
            return SandboxError(f"sandbox {self.id} has ended: its ttl_s is over")
        # The agent can neither signal nor trace PID 1, nor take its resources away.
        said = self._wire.complaints.value().decode(errors="replace").strip()
        reason = f": {said}" if said else ""
        return SandboxError(f"container {self.id} was stopped from outside, exit code {state['ExitCode']}{reason}")

    @contextmanager
    def room_for(self, extra: int) -> Iterator[None]:
        """Allow more processes for a while, because the agent's may use up the limit and leave no room for ours."""
        try:
            with self._exec.room_for(extra):
                yield
        except (DockerException, requests.RequestException) as error:
            raise self.failure(str(error)) from error

    def run_as(self, user: str, argv: list[str], timeout: float, options: RunOptions) -> ExecResult:
        """Run a command as another user, by the daemon."""
        whole = ["/bin/sh", "-c", f'{ENTER} exec "$@"', options.cwd, *argv]
        command = Command(whole, timeout, options.output_limit, options.env, options.stdin, user=user)
        try:
            return self._exec.run(command)
        except SandboxError as error:
            if "unable to find user" in str(error) or "no matching entries in passwd" in str(error):
                raise ValueError(f"the image has no user {user!r}: name one that it has, or a number") from error
            raise
        except APIError as error:
            if error.status_code == _FORBIDDEN:  # by a proxy before the daemon, which itself forbids nothing
                raise CapabilityError(
                    f"commands run as the agent here, not as {user!r}: {error.explanation}"
                ) from error
            raise self.failure(str(error)) from error
        except (DockerException, requests.RequestException, OSError) as error:
            raise self.failure(str(error)) from error

    def remove(self) -> None:
        """Remove the container and everything in it."""
        knock()
        try:
            remove_container(self._api, self._container)
        except NotFound:
            return
        except (DockerException, requests.RequestException) as error:
            raise SandboxError(f"container {self.id} cannot be removed: {error}") from error

    def commit(self, labels: dict[str, str]) -> str:
        """Make an image of the root filesystem as it is, and return its name."""
        try:
            made = self._api.commit(self._container, conf={"Labels": labels})
        except (DockerException, requests.RequestException) as error:
            raise self.failure(str(error)) from error
        return str(made["Id"])

    def _settled_state(self) -> Any:
        """The connection may end a moment before the daemon knows that the container did."""
        deadline = time.monotonic() + _OOM_NEWS_S
        while (state := self._api.inspect_container(self._container)["State"])["Running"]:
            if time.monotonic() >= deadline:
                break
            time.sleep(_POLL_S)
        return state

    def _heard_of_oom(self) -> bool:
        deadline = time.monotonic() + _OOM_NEWS_S
        while not self._exec.new_oom():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True
