"""The Ray cluster that this process is in, and its nodes that offer sandboxes."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from agentgym.errors import MissingExtraError, SandboxError

try:
    import ray
    from ray.experimental import internal_kv
except ImportError as error:
    raise MissingExtraError("ray", "ray") from error

RESOURCE = "agentgym_sandboxes"
"""The custom resource that says how many sandboxes a node may hold."""
NAMESPACE = "agentgym"
_KNOCK_S = 10.0
_connecting = threading.Lock()


def connect(address: str = "auto", capacity: int | None = None) -> None:
    """Join a Ray cluster, unless this process has done so.

    Args:
        address: of the cluster; `auto` is RAY_ADDRESS or the one on this machine, `local` starts one that ends with
            this process.
        capacity: how many sandboxes the node of `local` offers.

    Raises:
        SandboxError: there is none.
    """
    with _connecting:
        if ray.is_initialized():
            joined = ray.get_runtime_context().gcs_address
            if address not in ("auto", "local", joined):
                raise SandboxError(f"this process is in the Ray cluster at {joined} and cannot join {address} too")
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
        if address == "local":
            quiet |= {"resources": {RESOURCE: capacity}, "include_dashboard": False}
        try:
            _knock(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
            ray.init(address=address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise SandboxError(
                f"there is no Ray cluster at address {address!r} ({error}): start one with ray start --head "
                f"--resources='{{\"{RESOURCE}\": 64}}', or say address=local"
            ) from error


def _knock(address: str) -> None:
    """Find out at once that nobody listens at an address, for which Ray itself takes many minutes."""
    host, colon, port = address.rpartition(":")
    if colon and host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


def offering() -> Sequence[dict[str, Any]]:
    """Return the living nodes that offer sandboxes, as Ray describes them.

    Raises:
        SandboxError: there is none.
    """
    found = [node for node in ray.nodes() if node["Alive"] and capacity_of(node) >= 1]
    if not found:
        raise SandboxError(
            f"no node of the Ray cluster offers sandboxes: start those that have Docker with "
            f"ray start --resources='{{\"{RESOURCE}\": 64}}'"
        )
    return found


def only(nodes: Iterable[dict[str, Any]], word: str) -> dict[str, Any]:
    """Return the node that a word names: its name, or the beginning of its id.

    Raises:
        SandboxError: there is no such node, or more than one.
    """
    known = list(nodes)
    found = [node for node in known if word and (node["NodeID"].startswith(word) or word == name_of(node))]
    if len(found) != 1:
        names = ", ".join(f"{name_of(node)} ({node['NodeID'][:8]})" for node in known)
        raise SandboxError(
            f"wanted the name of one Ray node or the beginning of its id, found {word!r}; known: {names}"
        )
    return found[0]


def mark_draining(node: str, is_draining: bool) -> None:
    """Let the cluster remember, for as long as it lives, whether a node takes new sandboxes: its actor may crash."""
    if is_draining:
        internal_kv._internal_kv_put(_mark(node), b"1", namespace=NAMESPACE)
    else:
        internal_kv._internal_kv_del(_mark(node), namespace=NAMESPACE)


def is_marked_draining(node: str) -> bool:
    """Return whether the cluster remembers that a node drains."""
    return bool(internal_kv._internal_kv_exists(_mark(node), namespace=NAMESPACE))


def _mark(node: str) -> str:
    return f"draining-{node}"


def name_of(node: dict[str, Any]) -> str:
    """Return a node's name, for people."""
    return str(node["NodeName"] or node["NodeManagerHostname"])


def capacity_of(node: dict[str, Any]) -> int:
    """Return how many sandboxes a node offers."""
    return int(node["Resources"].get(RESOURCE, 0))
