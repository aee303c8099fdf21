"""Task folders of Harbor (task.toml) and of terminal-bench before it (task.yaml), read as they are.

Their containers are built from their own Dockerfile, and on that one layer that gives the working directory to the
agent's user, who is not root here. There is no internet unless the user says so.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import JsonValue, ValidationError

from agentgym.errors import TaskError
from agentgym.image import BUILD, ImageSpec
from agentgym.sandbox import SandboxSpec
from agentgym.task import Hidden, Public, Task
from agentgym.types import Record, Split
from agentgym_envs.code.refusals import Placed, Refused, Row, RowTasks, reason_of
from agentgym_envs.terminal.spec import VerifierSpec, encoded

SOLUTION = "/solution"
_AGENT = 1000
_GIVE = f"""
work=$(pwd)
mkdir -p /tests /logs/verifier /logs/agent {SOLUTION}
chown -R {_AGENT}:{_AGENT} /tests /logs {SOLUTION}
[ "$work" = / ] || chown -R {_AGENT}:{_AGENT} "$work"
"""
_MOST_TEST_BYTES = 1 << 24
_UNITS = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}
_FORBIDDEN = ("privileged", "devices", "cap_add", "ports", "network_mode", "gpus", "runtime", "pid", "ipc")


class Wanted(Record):
    """What a user asks of task folders beyond what they say."""

    verifier: Literal["separate", "shared"] = "separate"
    network: Literal["none", "full"] = "none"
    reward: str = "reward"
    split: Split | None = None


def tasks(path: Path, wanted: Wanted) -> RowTasks:
    """Return the tasks of a folder of task folders; `refused()` says which cannot be run here, and why.

    Raises:
        TaskError: while reading, naming the folder that is malformed; or there is none.
    """

    def rows() -> list[Placed]:
        found = sorted({one.parent for name in ("task.toml", "task.yaml") for one in path.glob(f"*/{name}")})
        if not found:
            raise TaskError(f"{path} holds no task folders; wanted NAME/task.toml or NAME/task.yaml in it")
        return [(str(one), {"folder": str(one)}) for one in found]

    return RowTasks("harbor", rows, lambda row: _task(row, path, wanted), lambda row: Path(row["folder"]).name)


def _task(row: Row, root: Path, wanted: Wanted) -> Task:
    folder = Path(row["folder"])
    read = _harbor if (folder / "task.toml").is_file() else _terminal_bench
    try:
        about, place, spec, solution = read(folder, root, wanted)
    except ValidationError as error:
        raise TaskError(f"the task folder {folder} is malformed: {reason_of(error)}") from error
    reference: dict[str, JsonValue] = {"solution": {**solution}} if solution else {}
    return Task(
        id=folder.name,
        split=wanted.split or "test",
        public=about,
        hidden=Hidden(data=spec.model_dump(mode="json", exclude_defaults=True), reference=reference),
        sandbox=place,
    )


_Read = tuple[Public, SandboxSpec, VerifierSpec, dict[str, str]]


def _harbor(folder: Path, root: Path, wanted: Wanted) -> _Read:
    about = _toml(folder / "task.toml")
    environment, verifier = _section(about, "environment", folder), _section(about, "verifier", folder)
    _refuse(about, environment, wanted)
    tests = _below(folder / "tests")
    if "test.sh" not in tests:
        raise TaskError(f"the task folder {folder} has no tests/test.sh")
    image = _image(folder / "environment", root, environment.get("docker_image"))
    memory = environment.get("memory_mb") or _megabytes(environment.get("memory"), folder) or 2048
    place = SandboxSpec(
        image=image,
        network=wanted.network,
        memory_mb=int(memory),
        pids=512,
        cpus=environment.get("cpus"),
        writable_root=True,
        env=_env(environment),
    )
    named = [str(one if isinstance(one, str) else one.get("source", "")) for one in about.get("artifacts", [])]
    handed_in: list[JsonValue] = [one.rstrip("/") for one in named if one.startswith("/")]
    public = Public(prompt=_prompt(folder / "instruction.md"), data={"handed_in": handed_in} if handed_in else {})
    spec = VerifierSpec(
        verifier=wanted.verifier,
        tests=encoded(tests),
        env=_env(verifier),
        total_s=verifier.get("timeout_sec", 600.0),
        reward=wanted.reward,
    )
    solution = encoded(_below(folder / "solution"))
    return public, place, spec, solution


def _terminal_bench(folder: Path, root: Path, wanted: Wanted) -> _Read:
    about = _yaml(folder / "task.yaml")
    parser = about.get("parser_name", "pytest")
    if parser != "pytest":
        raise Refused(f"its results are read by the parser {parser!r}, and only pytest's exit code is known here")
    tests = _below(folder / "tests")
    script = folder / "run-tests.sh"
    if not script.is_file():
        raise TaskError(f"the task folder {folder} has no run-tests.sh")
    image = _image(folder, root, None)
    spec = VerifierSpec(
        verifier=wanted.verifier,
        tests=encoded({**tests, script.name: script.read_bytes()}),
        script=script.name,
        result="code",
        total_s=about.get("max_test_timeout_sec", 180.0),
    )
    place = SandboxSpec(image=image, network=wanted.network, memory_mb=2048, pids=512, writable_root=True)
    solution = folder / "solution.sh"
    reference = encoded({"solve.sh": solution.read_bytes()}) if solution.is_file() else {}
    return Public(prompt=str(about.get("instruction", "")).strip()), place, spec, reference


def _refuse(about: Mapping[str, Any], environment: Mapping[str, Any], wanted: Wanted) -> None:
    if environment.get("gpus"):
        raise Refused(f"it wants {environment['gpus']} GPUs, and sandboxes have none")
    if environment.get("allow_internet") is True and wanted.network == "none":
        raise Refused("it wants the internet (allow_internet = true): give it with network=full")
    if environment.get("mcp_servers"):
        raise Refused("it wants MCP servers beside its container, which are not started here")
    if about.get("steps"):
        raise Refused("it has several steps, and only tasks of one are run here")
    if str(environment.get("os", "linux")).lower() != "linux":
        raise Refused(f"it wants {environment['os']}, and sandboxes are Linux")
    if environment.get("healthcheck"):
        raise Refused("it waits for a service of its container (healthcheck), and none is started here")


def _image(context: Path, root: Path, given: str | None) -> str:
    """Return the name of the image: what a Dockerfile or a registry gives, with the agent's folders."""
    for name in ("docker-compose.yaml", "docker-compose.yml", "compose.yaml"):
        if (context / name).is_file():
            _check_compose(_yaml(context / name), name)
    if given:
        base = given
    elif (context / "Dockerfile").is_file():
        base = BUILD + context.resolve().relative_to(root.resolve()).as_posix()
    else:
        raise Refused("it has neither environment/Dockerfile nor docker_image")
    try:
        return ImageSpec(base=base, run=(_GIVE,)).name
    except ValidationError as error:
        raise Refused(f"its image cannot be named: {reason_of(error)}") from error


def _check_compose(found: Mapping[str, Any], name: str) -> None:
    services = found.get("services") or {}
    if len(services) != 1:
        raise Refused(f"its {name} has {len(services)} services ({', '.join(services)}), and one container is run here")
    (service,) = services.values()
    for word in _FORBIDDEN:
        if service.get(word):
            raise Refused(f"its {name} asks for {word!r}, which no sandbox gives")
    build = service.get("build", ".")
    context = build if isinstance(build, str) else build.get("context", ".")
    if context not in (".", "./") and not str(context).startswith("${"):
        raise Refused(f"its {name} is built from {context!r}, and only the folder's own Dockerfile is used here")


def _env(section: Mapping[str, Any]) -> dict[str, str]:
    found = section.get("env") or {}
    for name, value in found.items():
        if re.search(r"\$\{\w+", str(value)):
            raise Refused(f"its variable {name} is taken from the user's own environment, which no sandbox sees")
    return {str(name): str(value) for name, value in found.items()}


def _megabytes(value: Any, folder: Path) -> int | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])i?B?", str(value), re.I)
    if found is None:
        raise TaskError(f"the task folder {folder} is malformed: wanted memory like '2G', found {value!r}")
    return max(16, int(float(found[1]) * _UNITS[found[2].upper()]))


def _section(about: Mapping[str, Any], name: str, folder: Path) -> dict[str, Any]:
    found = about.get(name, {})
    if not isinstance(found, dict):
        raise TaskError(f"the task folder {folder} is malformed: wanted [{name}] as a table")
    return found


def _prompt(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise TaskError(f"the task folder {file.parent} has no {file.name}") from error


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TaskError(f"{file} is not TOML: {error}") from error


def _yaml(file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise TaskError(f"{file} is not YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(found, dict):
        raise TaskError(f"{file} is malformed; wanted a mapping")
    return found


def _below(folder: Path) -> dict[str, bytes]:
    """Return the regular files of a folder by relative path; links lead elsewhere and are left out."""
    found = {}
    for one in sorted(folder.rglob("*")):
        if one.is_file() and not one.is_symlink():
            found[one.relative_to(folder).as_posix()] = one.read_bytes()
    if sum(map(len, found.values())) > _MOST_TEST_BYTES:
        raise Refused(f"its {folder.name} folder has more than {_MOST_TEST_BYTES >> 20} MB")
    return found
