"""What Docker keeps of ours: containers, frozen root filesystems, the supervisor's volumes, images built from tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import requests
from docker import APIClient
from docker.errors import DockerException

from agentgym.upkeep import Kept
from agentgym_sandboxes._owner import Owner
from agentgym_sandboxes._supervisor_volume import LABEL as VOLUME_LABEL

IMAGE_LABEL = "agentgym.image"
"""On images built from tasks: the hash of what they were built from, which is their tag too."""
IMAGE_NAME = "agentgym-image"
_HELPER = "agentgym.helper"
_PARALLEL = 16


def containers(api: APIClient, *, memory: bool = False) -> list[Kept]:
    """Return our containers of every run; `memory` asks each running one how much it uses, which takes a moment."""
    found = api.containers(all=True, filters={"label": "agentgym.boot"})
    found += api.containers(all=True, filters={"label": f"{_HELPER}=proxy"})
    running = [one["Id"] for one in found if one["State"] == "running"] if memory else []
    with ThreadPoolExecutor(_PARALLEL) as pool:
        used = dict(zip(running, pool.map(lambda name: _memory(api, name), running), strict=True))
    return [_container(one, *used.get(one["Id"], (None, None))) for one in found]


def snapshots(api: APIClient) -> list[Kept]:
    """Return the root filesystems that were frozen by `snapshot`; one that somebody named is theirs now."""
    found = api.images(filters={"label": "agentgym.snapshot"})
    return [_kept("snapshot", one["Id"], one["Labels"], one["Created"]) for one in found if not _tags(one)]


def volumes(api: APIClient) -> list[Kept]:
    """Return the volumes that hold a supervisor, of this version and of others."""
    everything = api.volumes(filters={"label": VOLUME_LABEL})["Volumes"] or []
    unused = api.volumes(filters={"label": VOLUME_LABEL, "dangling": "true"})["Volumes"] or []
    free = {one["Name"] for one in unused}
    return [
        Kept("volume", one["Name"], state="unused" if one["Name"] in free else "used", created=_time(one["CreatedAt"]))
        for one in everything
    ]


def images(api: APIClient) -> Iterator[Kept]:
    """Yield the images that were built from tasks; not those that somebody else built upon them."""
    used = {one["ImageID"] for one in api.containers(all=True)}
    for one in api.images(filters={"label": IMAGE_LABEL}):
        ours = f"{IMAGE_NAME}:{one['Labels'][IMAGE_LABEL]}"
        if ours in _tags(one):
            yield Kept("image", ours, state="used" if one["Id"] in used else "unused", created=float(one["Created"]))


def _container(found: Mapping[str, Any], memory: int | None, limit: int | None) -> Kept:
    labels = found["Labels"]
    kept = _kept("helper" if _HELPER in labels else "sandbox", found["Id"][:12], labels, found["Created"])
    ttl = _number(labels.get("agentgym.ttl"))
    return Kept(
        kept.kind,
        kept.name,
        labels.get("agentgym.run", ""),
        kept.owner,
        kept.life,
        found["State"],
        _number(labels.get("agentgym.created")) or kept.created,
        ttl,
        memory,
        limit,
    )


def _kept(kind: Any, name: str, labels: Mapping[str, str], created: float) -> Kept:
    owner = Owner.from_labels(labels)
    if owner is None:
        return Kept(kind, name, created=float(created))
    said = f"process {owner.pid} on {owner.host}"
    return Kept(kind, name, owner=said, life=owner.life(), created=float(created))


def _memory(api: APIClient, container: str) -> tuple[int | None, int | None]:
    try:
        found = api.stats(container, stream=False, one_shot=True)["memory_stats"]
    except (DockerException, requests.RequestException):  # it ended meanwhile
        return None, None
    return found.get("usage"), found.get("limit")


def _tags(image: Mapping[str, Any]) -> list[str]:
    return [tag for tag in image.get("RepoTags") or [] if tag != "<none>:<none>"]


def _number(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"\d+(\.\d+)?", text) else None


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
