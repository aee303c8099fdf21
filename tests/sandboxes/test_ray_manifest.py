"""The KubeRay manifest in the documentation asks for what the backend looks for."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from agentgym.cli.app import app

pytest.importorskip("ray", reason="the ray extra is not installed")

from agentgym_sandboxes.ray_cluster import RESOURCE, capacity_of

FILE = Path(__file__).parents[2] / "docs" / "examples" / "kuberay.yaml"


@pytest.fixture(scope="module")
def group() -> dict[str, Any]:
    manifest = yaml.safe_load(FILE.read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    assert not manifest["spec"]["headGroupSpec"]["rayStartParams"].get("resources"), "the head lends nothing"
    (found,) = manifest["spec"]["workerGroupSpecs"]
    assert found["minReplicas"] <= found["replicas"] <= found["maxReplicas"]
    return dict(found)


@pytest.fixture(scope="module")
def containers(group: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in group["template"]["spec"]["containers"]}


def test_workers_offer_the_resource_that_the_backend_counts(group: dict[str, Any]) -> None:
    # The operator pastes the value into a shell's command line.
    (argument,) = shlex.split(group["rayStartParams"]["resources"])
    resources = json.loads(argument)
    assert list(resources) == [RESOURCE]
    assert capacity_of({"Resources": resources}) >= 1


def test_a_worker_reaches_the_daemon_beside_it_and_nothing_else_does(
    group: dict[str, Any], containers: dict[str, dict[str, Any]]
) -> None:
    worker, daemon = containers["ray-worker"], containers["docker"]
    host = next(one["value"] for one in worker["env"] if one["name"] == "DOCKER_HOST")
    assert daemon["args"][0] == "dockerd"
    assert [one for one in daemon["args"] if one.startswith("--host")] == [f"--host={host}"]
    folder = str(Path(host.removeprefix("unix://")).parent)
    mounts = [{one["mountPath"]: one["name"] for one in each["volumeMounts"]} for each in (worker, daemon)]
    assert mounts[0][folder] == mounts[1][folder]
    volumes = {one["name"]: one for one in group["template"]["spec"]["volumes"]}
    assert {name for each in mounts for name in each.values()} == set(volumes)
    assert all("emptyDir" in one for one in volumes.values())
    assert daemon["securityContext"]["privileged"]
    assert "securityContext" not in worker


def test_its_hooks_are_commands_that_exist_and_end_before_the_pod_does(
    group: dict[str, Any], containers: dict[str, dict[str, Any]]
) -> None:
    hooks = containers["ray-worker"]["lifecycle"]
    drain = shlex.split(hooks["preStop"]["exec"]["command"][-1].split(";")[0])
    assert drain[:3] == ["agentgym", "ray", "drain"]
    name = drain[3].removeprefix("$")
    assert group["rayStartParams"]["node-name"] == f"${name}"
    assert name in {one["name"] for one in containers["ray-worker"]["env"]}
    assert float(drain[drain.index("--wait") + 1]) < group["template"]["spec"]["terminationGracePeriodSeconds"]
    build = shlex.split(hooks["postStart"]["exec"]["command"][-1].split(";")[0].removeprefix("until "))
    for command, options in ((drain[1:3], ["--wait"]), (build[1:3], ["--from"])):
        told = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
        assert told.exit_code == 0, told.output
        assert all(option in told.output for option in options)
