"""Several nodes of a real Ray cluster on this machine."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tenacity import retry, retry_if_exception_message, stop_after_attempt

if TYPE_CHECKING:
    from agentgym_sandboxes.ray import RayBackend
    from agentgym_sandboxes.ray_fleet import View

Connect = Callable[..., "RayBackend"]
"""Makes a backend on the cluster's nodes, with these options."""
PLUGIN = Path(__file__).with_name("ray_plugin")
PLACES = 24
"""How many sandboxes each node offers."""
_STORE_BYTES = 80 << 20
# Ray gives each node 30 seconds to start, which a busy machine may not have.
_LATE = retry_if_exception_message(match=".*timed out during startup")
_patiently = retry(retry=_LATE, stop=stop_after_attempt(4), reraise=True)


class Nodes:
    """A head that lends nothing, and named nodes that do; this process is connected to it."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self._folder = folder
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "include_dashboard": False,
                "object_store_memory": _STORE_BYTES,
                "_system_config": {"health_check_period_ms": 1000},
            },
        )
        self.address: str = self.cluster.address

    @_patiently
    def add(self, name: str, places: int = PLACES, **env: str) -> Any:
        """Add a node that is a machine with a shelf of its own."""
        self.shelf(name).mkdir(exist_ok=True)
        return self.cluster.add_node(
            wait=False,
            num_cpus=1,
            node_name=name,
            resources={"agentgym_sandboxes": places},
            object_store_memory=_STORE_BYTES,
            env_vars={"AGENTGYM_TEST_SHELF": str(self.shelf(name)), **env},
        )

    def shelf(self, name: str) -> Path:
        """Where a node keeps what the test's backend takes for images."""
        return self._folder / name

    def kill(self, node: Any) -> None:
        """Kill a node's processes without a word."""
        self.cluster.remove_node(node, allow_graceful=False)


@_patiently
def _started(folder: Path, names: Sequence[str]) -> Nodes:
    """Start a cluster."""
    begun = Nodes(folder)
    try:
        for name in names:
            begun.add(name)
        begun.cluster.wait_for_nodes()
    except BaseException:
        begun.cluster.shutdown()
        raise
    return begun


@contextmanager
def nodes(*names: str) -> Iterator[Nodes]:
    """Start a cluster, join it and let other processes find it."""
    import ray

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        # Its actors and the test's own subprocesses find a stranger's package there.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")])))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = _started(Path(folder), names)
        try:
            patch.setenv("RAY_ADDRESS", started.address)
            ray.init(address=started.address, log_to_driver=False, logging_level="WARNING")
            yield started
        finally:
            ray.shutdown()
            started.cluster.shutdown()


def used() -> dict[str, int]:
    """Return how many sandboxes each node holds."""
    from agentgym_sandboxes.ray_fleet import states

    return {view.name: view.report.used for view in states()}


def eventually(holds: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Wait until something holds, and return whether it does."""
    deadline = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return held


def kill_actor(node: View) -> None:
    """Let a node's actor crash."""
    import ray

    from agentgym_sandboxes.ray_cluster import NAMESPACE

    ray.kill(ray.get_actor(f"sandboxes-1-{node.id}", namespace=NAMESPACE))
    assert eventually(lambda: f"sandboxes-1-{node.id}" not in names_of_actors())


def well(backend: RayBackend) -> list[View]:
    """Return the nodes whose actors and backends are well, by name."""
    return sorted((view for view in backend.nodes() if view.is_well), key=lambda view: view.name)


def names_of_actors() -> set[str]:
    """Return the names of all actors that live."""
    from ray.util import list_named_actors

    return {one["name"] for one in list_named_actors(all_namespaces=True)}
