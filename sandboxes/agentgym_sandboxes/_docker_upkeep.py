"""Look after what Docker keeps of ours."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import requests
from docker import APIClient
from docker.errors import APIError, DockerException, NotFound

from agentgym.errors import SandboxError
from agentgym.upkeep import Decision, Finding, Kept
from agentgym_sandboxes import _inventory, _supervisor
from agentgym_sandboxes._base_image import bootstrap, build_upon
from agentgym_sandboxes._daemon import reach
from agentgym_sandboxes._diagnosis import diagnose
from agentgym_sandboxes._docker_host import knock
from agentgym_sandboxes._proxy_rules import GIVEN
from agentgym_sandboxes._removal import remove_container

_HELPER_S = 600
"""A container that only fills a volume lives for seconds; one that is this old was left behind."""


class DockerUpkeep:
    """See `agentgym.upkeep.Upkeep`."""

    def __init__(self, image: str, runtime: str | None) -> None:
        """Take the backend's default image and runtime, which it needs to be there."""
        self._image = image
        self._runtime = runtime

    def inventory(self) -> list[Kept]:
        """Return our containers of every run."""
        with _client() as (api, _):
            return _inventory.containers(api, memory=True)

    def collect(self, *, images: bool = False, expired: bool = False, dry_run: bool = False) -> Sequence[Decision]:
        """Remove what provably has no living owner; see `agentgym.upkeep.Upkeep`."""
        with _client() as (api, info):
            behind_proxy = GIVEN in info  # which shows neither images nor volumes, and lets nobody make any
            if images and behind_proxy:
                raise SandboxError(
                    "images cannot be removed through the socket proxy: ask where Docker's own socket is"
                )
            plans = [*_container_plans(api, expired)]
            plans += [] if behind_proxy else [*_snapshot_plans(api), *_volume_plans(api, info)]
            decisions = [_settle(api, kept, reason, why_not, dry_run) for kept, reason, why_not in plans]
            if images:  # last: what used them may just have gone
                decisions += [_settle(api, *plan, dry_run) for plan in _image_plans(api)]
            return decisions

    def diagnose(self) -> list[Finding]:
        """Say what is there and what is missing."""
        return diagnose(self._image, self._runtime)

    def build_base(self, name: str | None, base: str | None, say: Callable[[str], None]) -> str:
        """Build the base image from Debian packages or upon a public one; see `agentgym.upkeep.Upkeep`."""
        name = name or self._image
        with _client() as (api, _):
            if base is None:
                bootstrap(name, say)
            else:
                build_upon(api, name, base, say)
        return name


_Plan = tuple[Kept, str, str]
"""A thing, and why it is to go or, if that is empty, why it stays."""


def _container_plans(api: APIClient, expired: bool) -> Iterator[_Plan]:
    now = time.time()
    for kept in _inventory.containers(api):
        age = now - (kept.created or now)
        if kept.life == "dead":
            yield kept, f"its owner, {kept.owner}, has ended", ""
        elif kept.kind == "helper" and kept.state == "created" and age > _HELPER_S:
            yield kept, "it was only to fill a volume, and was left behind", ""
        elif kept.life == "living":
            yield kept, "", f"its owner, {kept.owner}, is alive"
        elif kept.kind == "helper":
            yield kept, "", "it fills a volume just now"
        elif kept.state == "running" or kept.ends is None or kept.ends > now:
            yield kept, "", f"its owner, {kept.owner}, cannot be seen from here"
        elif expired:
            yield kept, "its time was over, and it has ended", ""
        else:
            yield (
                kept,
                "",
                f"its owner, {kept.owner}, cannot be seen from here, but its time is over: --expired removes it",
            )


def _snapshot_plans(api: APIClient) -> Iterator[_Plan]:
    for kept in _inventory.snapshots(api):
        if kept.life == "dead":
            yield kept, f"its owner, {kept.owner}, has ended", ""
        else:
            yield (
                kept,
                "",
                f"its owner, {kept.owner}, {'is alive' if kept.life == 'living' else 'cannot be seen from here'}",
            )


def _volume_plans(api: APIClient, info: dict[str, Any]) -> Iterator[_Plan]:
    ours = _supervisor.volume(str(info.get("Architecture") or ""))
    for kept in _inventory.volumes(api):
        if kept.name == ours:
            yield kept, "", "this version uses it"
        elif kept.state == "used":
            yield kept, "", "containers use it"
        else:  # should its version come back, it is filled again
            yield kept, "it is another version's, and no container uses it", ""


def _image_plans(api: APIClient) -> Iterator[_Plan]:
    for kept in _inventory.images(api):
        if kept.state == "used":
            yield kept, "", "containers use it"
        else:
            yield kept, "no container uses it", ""


def _settle(api: APIClient, kept: Kept, reason: str, why_not: str, dry_run: bool) -> Decision:
    if not reason:
        return Decision(kept, False, why_not)
    try:
        if not dry_run:
            _remove(api, kept)
    except NotFound:
        return Decision(kept, False, "it went by itself meanwhile")
    except APIError as error:
        return Decision(kept, False, f"{reason}, but Docker refuses: {error.explanation}")
    return Decision(kept, True, reason)


def _remove(api: APIClient, kept: Kept) -> None:
    """Remove without force what Docker itself can tell to be in use."""
    if kept.kind in ("sandbox", "helper"):
        remove_container(api, kept.name)
    elif kept.kind == "volume":
        api.remove_volume(kept.name)
    else:
        api.remove_image(kept.name)


@contextmanager
def _client() -> Iterator[tuple[APIClient, dict[str, Any]]]:
    knock()
    api, info = reach()
    try:
        yield api, info
    except (DockerException, requests.RequestException) as error:
        raise SandboxError(f"Docker does not do what it was asked: {error}") from error
    finally:
        api.close()
