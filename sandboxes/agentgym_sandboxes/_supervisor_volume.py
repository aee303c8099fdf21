"""The read-only volume through which every container gets the supervisor: no daemon needs to see our disk for it."""

from __future__ import annotations

import docker
import requests
from docker.errors import DockerException, NotFound

from agentgym.errors import SandboxError
from agentgym_sandboxes import _supervisor
from agentgym_sandboxes._hardening import HOME
from agentgym_sandboxes._owner import Owner
from agentgym_sandboxes._tar import pack, unpack

LABEL = "agentgym.supervisor"
_PROGRAM = "supervisor"
_LONGEST_PROGRAM = 1 << 22


class SupervisorVolume:
    """Filled once and then only looked at: whoever prunes volumes makes it be filled again."""

    def __init__(self, api: docker.APIClient, machine: str, given: str | None) -> None:
        """Take the daemon's machine type, and the volume that a proxy before it fills, if there is one.

        Raises:
            SandboxError: the proxy's is of another version.
        """
        self.name = _supervisor.volume(machine)
        self._api = api
        self._machine = machine
        self._is_given = given is not None
        self._filled: str | None = None
        if given not in (None, self.name):
            raise SandboxError(
                f"the socket proxy before Docker hands out the supervisor {given}, and this version needs {self.name}: "
                "run the proxy from the same version"
            )

    def require(self, image: str) -> str:
        """Return the volume's name once the supervisor is in it; `image` is any, for the container that fills it.

        Raises:
            SandboxError: there is no supervisor and no compiler, or Docker refused.
        """
        if self._is_given:
            return self.name
        try:
            made = self._made_at()
            if made is None or made != self._filled:
                _fill(self._api, self.name, image, _supervisor.program(self._machine).read_bytes())
                self._filled = self._made_at()
        except (DockerException, requests.RequestException) as error:
            raise SandboxError(f"Docker cannot hand the supervisor to sandboxes: {error}") from error
        return self.name

    def _made_at(self) -> str | None:
        """Return when it came to be, and whose it is: Docker makes an empty one where ours is pruned just now."""
        try:
            found = self._api.inspect_volume(self.name)
        except NotFound:
            return None
        return f"{found['CreatedAt']}, {'ours' if LABEL in (found['Labels'] or {}) else 'from elsewhere'}"


def _fill(api: docker.APIClient, volume: str, image: str, program: bytes) -> None:
    """Put the supervisor into its volume, unless the very same is there."""
    api.create_volume(volume, labels={LABEL: volume})
    mount = docker.types.Mount(target=HOME, source=volume, type="volume", no_copy=True)
    helper = api.create_container(
        image,
        command=["never-started"],
        labels={"agentgym.helper": "supervisor", **Owner.current().labels()},
        host_config=api.create_host_config(mounts=[mount], network_mode="none"),
    )["Id"]
    try:
        if _stored(api, helper) != program:
            api.put_archive(helper, HOME, pack({_PROGRAM: program}, 0, mode=0o755))
            if _stored(api, helper) != program:
                raise DockerException("what was written to the supervisor's volume cannot be read back")
    finally:
        api.remove_container(helper, v=False, force=True)


def _stored(api: docker.APIClient, container: str) -> bytes | None:
    try:
        pieces, _ = api.get_archive(container, f"{HOME}/{_PROGRAM}")
    except NotFound:
        return None
    return unpack(b"".join(pieces), 1, _LONGEST_PROGRAM).get(_PROGRAM)
