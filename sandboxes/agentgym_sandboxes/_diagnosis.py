"""What Docker sandboxes need of this machine: what is there, what is missing, and how to mend it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import requests
from docker import APIClient
from docker.errors import DockerException, ImageNotFound

from agentgym.errors import AgentFault, SandboxError
from agentgym.sandbox import SandboxSpec
from agentgym.upkeep import Finding
from agentgym_sandboxes import _compile
from agentgym_sandboxes._daemon import has_quotas, reach
from agentgym_sandboxes._disk_room import disk_room
from agentgym_sandboxes._docker_host import host, knock
from agentgym_sandboxes._images import BASE_IMAGE
from agentgym_sandboxes._proxy_rules import GIVEN

_OLDEST_API = (1, 41)
_LITTLE_GB, _TOO_LITTLE_GB = 10.0, 2.0
_GB = 1 << 30


def diagnose(image: str, runtime: str | None) -> list[Finding]:
    """Look at everything that a sandbox needs, and then start one."""
    findings = [Finding("package", "ok", f"docker {docker.__version__}")]
    try:
        knock()
        api, info = reach()
    except SandboxError as error:
        denied = isinstance(error.__cause__, PermissionError)
        found, _, mend = str(error).partition(": ")
        return [*findings, Finding("permission" if denied else "daemon", "fail", found, mend)]
    try:
        findings += [*_daemon(api, info), *_machine(info), *_parts(api, info, image, runtime)]
    except (DockerException, requests.RequestException) as error:
        findings.append(Finding("daemon", "fail", f"it stopped answering: {error}", "look at its log"))
    finally:
        api.close()
    if not any(one.level == "fail" for one in findings):
        findings.append(_proof(image, runtime))
    return findings


def _daemon(api: APIClient, info: dict[str, Any]) -> Iterator[Finding]:
    where = f"Docker {info.get('ServerVersion')} at {host()}"
    yield Finding("daemon", "ok", where + (", behind the socket proxy" if GIVEN in info else ""))
    yield Finding("permission", "ok", "this user may use it")
    version = str(api.version()["ApiVersion"])
    if tuple(map(int, version.split("."))) < _OLDEST_API:
        yield Finding("API", "fail", f"version {version}", "install Docker 20.10 or newer")
    else:
        yield Finding("API", "ok", f"version {version}")


def _machine(info: dict[str, Any]) -> Iterator[Finding]:
    names = {"MemoryLimit": "memory", "PidsLimit": "processes", "CpuCfsQuota": "CPU", "SwapLimit": "swap"}
    lacking = [name for name in names if info.get(name) is False]
    version = f"version {info.get('CgroupVersion') or 1}"
    if not lacking:
        yield Finding("cgroups", "ok", version)
    else:
        found = f"{version}, and Docker cannot bound {', '.join(names[name] for name in lacking)}"
        mend = "boot with cgroup_enable=memory swapaccount=1; rootless Docker needs cgroup v2 with delegation"
        is_bad = bool({"MemoryLimit", "PidsLimit"} & set(lacking))
        yield Finding("cgroups", "fail" if is_bad else "warn", found, mend)
    driver = str(info.get("Driver"))
    if has_quotas(info):
        yield Finding("storage", "ok", f"{driver}, which can bound a writable root")
    else:
        mend = (
            "only tasks with both disk_mb and writable_root need it: overlay2 on XFS mounted with pquota, btrfs or zfs"
        )
        yield Finding("storage", "warn", f"{driver}, which cannot bound a writable root", mend)
    yield _disk(info)


def _disk(info: dict[str, Any]) -> Finding:
    free = disk_room(info)
    if free is None:
        return Finding("disk", "warn", "the daemon's disk cannot be seen from here", "see there that 10 GB are free")
    found = f"{free / _GB:.0f} GB free in {info['DockerRootDir']}"
    if free >= _LITTLE_GB * _GB:
        return Finding("disk", "ok", found)
    mend = "`agentgym sandbox gc --images`, `docker system prune`"
    return Finding("disk", "warn" if free >= _TOO_LITTLE_GB * _GB else "fail", found, mend)


def _parts(api: APIClient, info: dict[str, Any], image: str, runtime: str | None) -> Iterator[Finding]:
    known = sorted(info.get("Runtimes") or {})
    if runtime is None or runtime in known:
        yield Finding("runtimes", "ok", ", ".join(known))
    else:
        mend = f"install it and name it in the daemon's configuration; there are {', '.join(known)}"
        yield Finding("runtimes", "fail", f"{runtime} is not there", mend)
    try:
        found = api.inspect_image(image)  # type: ignore[no-untyped-call]
        yield Finding("base image", "ok", f"{image}, {found['Size'] / 1e6:.0f} MB")
    except ImageNotFound:
        mend = "`agentgym sandbox build-base`" if image == BASE_IMAGE else "pull or build it"
        yield Finding("base image", "fail", f"{image} is not there", mend)
    yield _supervisor(info)


def _supervisor(info: dict[str, Any]) -> Finding:
    if GIVEN in info:
        return Finding("supervisor", "ok", "the socket proxy brings it")
    try:
        machine = _compile.machine_of(info.get("Architecture"))
        if _compile.find(machine) is not None:
            return Finding("supervisor", "ok", f"built for {machine}")
        with_what = Path(_compile.compiler(machine)[0]).name
    except _compile.BuildError as error:
        found, _, mend = str(error).partition(": ")
        return Finding("supervisor", "fail", found, mend)
    return Finding("supervisor", "ok", f"not built for {machine} yet; {with_what} will do it")


def _proof(image: str, runtime: str | None) -> Finding:
    """Start a sandbox and run a command in it: all else only hints at whether that works."""
    from agentgym_sandboxes.docker import DockerBackend

    backend = DockerBackend(image=image, runtime=runtime, run="doctor")
    try:
        began = time.monotonic()
        with backend.start(SandboxSpec(memory_mb=64, ttl_s=120)) as box:
            said = box.exec("echo well").stdout
        if said != b"well\n":
            return Finding("sandbox", "fail", f"one started, and `echo` printed {said!r}", "report this")
        return Finding("sandbox", "ok", f"one started, ran a command and went in {time.monotonic() - began:.1f} s")
    except (SandboxError, AgentFault) as error:
        return Finding("sandbox", "fail", str(error), "the reason is Docker's own; mend what it names")
    finally:
        backend.close()
