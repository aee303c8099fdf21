"""What a container may do and use: nothing that its task does not need."""

from __future__ import annotations

from typing import Any

import docker

from agentgym.sandbox import SandboxSpec
from agentgym_sandboxes._allowlist import VARIABLES
from agentgym_sandboxes._docker_exec import AGENT_ID

WORKDIR = "/workspace"
HOME = "/.agentgym"
"""Where the supervisor is, read-only, in every container."""
_OPEN_FILES = 4096
_PROCESSES = 4096
_LAST_WORDS_S = 1.0
"""So that a command that runs until the end can still be told from a sandbox that broke."""


def pids(spec: SandboxSpec) -> int:
    """Return the limit of processes: the task's, PID 1, and the keeper of a command."""
    return spec.pids + 2


def folders(spec: SandboxSpec) -> tuple[str, ...]:
    """Return the folders that hold the agent's files; with a writable root that may be any."""
    return ("",) if spec.writable_root else in_memory(spec)


def in_memory(spec: SandboxSpec) -> tuple[str, ...]:
    """Return the folders that are no part of the root filesystem."""
    return ("/tmp",) if spec.writable_root else (spec.workdir or WORKDIR, "/tmp")


def settings(
    api: docker.APIClient, spec: SandboxSpec, volume: str, labels: dict[str, str], runtime: str | None, *, podman: bool
) -> dict[str, Any]:
    """Return the arguments of `create_container`."""
    memory = f"{spec.memory_mb}m"
    host = api.create_host_config(
        network_mode="bridge" if spec.network == "full" else "none",
        read_only=not spec.writable_root,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        mem_limit=memory,
        memswap_limit=memory,
        pids_limit=pids(spec),
        nano_cpus=int(spec.cpus * 1e9) if spec.cpus else None,
        tmpfs=_tmpfs(spec, podman=podman),
        mounts=[docker.types.Mount(target=HOME, source=volume, type="volume", read_only=True, no_copy=True)],
        oom_score_adj=500,
        ulimits=[
            docker.types.Ulimit(name="core", soft=0, hard=0),
            docker.types.Ulimit(name="nofile", soft=_OPEN_FILES, hard=_OPEN_FILES),
            # Podman would else raise it beyond what a caller in a container may.
            *([docker.types.Ulimit(name="nproc", soft=_PROCESSES, hard=_PROCESSES)] if podman else []),
        ],
        log_config=docker.types.LogConfig(type="none"),
        storage_opt={"size": f"{spec.disk_mb}m"} if spec.writable_root and spec.disk_mb else None,
    )
    return {
        "entrypoint": [f"{HOME}/supervisor", f"{spec.ttl_s + _LAST_WORDS_S:.3f}"],
        "user": f"{AGENT_ID}:{AGENT_ID}",
        "hostname": "sandbox",
        "working_dir": "/",
        "environment": {"HOME": "/tmp", "USER": "agent", "LANG": "C.UTF-8", **_proxied(spec), **spec.env},
        "labels": labels,
        "healthcheck": {"test": ["NONE"]},
        "host_config": host,
        # With the first connection's end the daemon closes the supervisor's input, and that ends the container.
        "stdin_open": True,
        "runtime": runtime,
    }


def _proxied(spec: SandboxSpec) -> dict[str, str]:
    return VARIABLES if spec.network == "allowlist" else {}


def _tmpfs(spec: SandboxSpec, *, podman: bool) -> dict[str, str]:
    kilobytes = 1024 * spec.disk_mb if spec.disk_mb is not None else 512 * spec.memory_mb
    shares = {"/tmp": kilobytes // 4}
    if not spec.writable_root:
        shares[spec.workdir or WORKDIR] = kilobytes - kilobytes // 4
    if podman:  # knows neither owners nor numbers of files; memory_mb bounds those too
        return {folder: f"rw,exec,nosuid,nodev,mode=1777,size={size}k" for folder, size in shares.items()}
    common = f"rw,exec,nosuid,nodev,mode=0755,uid={AGENT_ID},gid={AGENT_ID}"
    return {folder: f"{common},size={size}k,nr_inodes={max(size, 1024)}" for folder, size in shares.items()}
