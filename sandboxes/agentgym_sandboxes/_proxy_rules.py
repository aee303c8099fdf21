"""Which calls of the Docker API the socket proxy lets through: those of our own backend, on its own containers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode

LABEL = "agentgym.proxy"
"""The proxy writes it on every container that it lets somebody create, and lets nobody touch another."""
MOUNT = "/.agentgym"
"""Where containers see the supervisor."""
GIVEN = "AgentgymSupervisor"
"""The field of `/info` by which the proxy says that it fills this volume itself, and which it is."""

INFO = "/info"
"""The one answer that the proxy does not pass on as it is."""
_FIELDS = ("Architecture", "CgroupVersion", "Driver", "MemTotal", "NCPU", "OSType", "ServerVersion")
_LIMITS = ("CpuCfsQuota", "MemoryLimit", "PidsLimit", "SwapLimit")
_STORAGE = ("Backing Filesystem", "Supports pquota")
_ID = r"(?P<id>[A-Za-z0-9][A-Za-z0-9_.-]{0,127})"
_IMAGE = r"[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,255}"
_MAX_PIDS = 1 << 15


class Refusal(Exception):  # noqa: N818 - it is an answer, not a fault
    """Why a call does not pass, as a sentence for the caller."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request, as far as it decides anything."""

    method: str
    path: str
    """Without the version in front and the query behind."""
    query: Mapping[str, str]
    body: bytes
    version: str = ""

    @classmethod
    def parse(cls, method: str, target: str, body: bytes) -> Call:
        """Split a request's target."""
        path, _, query = target.partition("?")
        version = re.match(r"/v1\.\d+(?=/)", path)
        prefix = version.group() if version else ""
        if ".." in path or "//" in path:
            raise Refusal(f"{path} is not a plain path")
        return cls(method, path.removeprefix(prefix), dict(parse_qsl(query)), body, prefix)

    @property
    def target(self) -> str:
        """The target written anew, so that Docker cannot read it in another way than we do."""
        query = urlencode(self.query)
        return f"{self.version}{self.path}{'?' + query if query else ''}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The call to pass on, and what must be true before."""

    call: Call
    owned: Literal["container", "exec"] | None
    id: str
    makes: NewContainer | None = None


@dataclass(frozen=True, slots=True)
class NewContainer:
    """What a container that is to be created needs to be there."""

    image: str
    volume: str


def judge(call: Call) -> Verdict:
    """Say under which condition a call may pass, and in which form.

    Raises:
        Refusal: it may not.
    """
    for methods, pattern, owned, check in _ROUTES:
        if call.method in methods and (match := re.fullmatch(pattern, call.path)):
            checked = check(call)
            found = match.groupdict().get("id") or (_filters(call)["container"][0] if owned else "")
            return Verdict(checked, owned, found, _needs(checked) if check is _create else None)
    raise Refusal(f"{call.method} {call.path} is not a call that sandboxes need")


def reduced(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return of Docker's `/info` what sandboxes need, and nothing of the machine beside."""
    status = [pair for pair in info.get("DriverStatus") or [] if pair[0] in _STORAGE]
    kept = {name: info[name] for name in (*_FIELDS, *_LIMITS) if name in info}
    return {**kept, "DriverStatus": status, "Runtimes": {name: {} for name in info.get("Runtimes") or {}}}


def _as_it_is(call: Call) -> Call:
    return call


def _listing(call: Call) -> Call:
    filters = _filters(call)
    filters["label"] = [*filters.get("label", []), LABEL]
    return replace(call, query={**call.query, "filters": json.dumps(filters)})


def _events(call: Call) -> Call:
    filters = _filters(call)
    if len(filters.get("container", [])) != 1 or not call.query.get("until"):
        raise Refusal("events may be read only of one container and only up to a time")
    return replace(call, query={**call.query, "filters": json.dumps(filters)})


def _filters(call: Call) -> dict[str, list[str]]:
    filters = _json_object(call.query.get("filters", "{}").encode())
    if not all(isinstance(value, list) for value in filters.values()):
        raise Refusal("each filter must be a list")
    return {name: [str(one) for one in value] for name, value in filters.items()}


def _exec(call: Call) -> Call:
    body = _known(_json_object(call.body), _EXEC, "the command's")
    _require_plain_user(body, "a command")
    return replace(call, body=json.dumps(body).encode())


def _start_exec(call: Call) -> Call:
    return replace(call, body=json.dumps(_known(_json_object(call.body), _START, "the start's")).encode())


def _no_body(call: Call) -> Call:
    return replace(call, body=b"")


def _attach(call: Call) -> Call:
    for name, value in call.query.items():
        if name not in _STREAMS and name != "detachKeys":  # that one says how a terminal lets go, and there is none
            raise Refusal(f"an attachment's {name}={value[:40]} may not be set")
    return replace(call, query=dict.fromkeys(_STREAMS, "1"), body=b"")


def _stats(call: Call) -> Call:
    return replace(call, query={"stream": "0", "one-shot": "1"})


def _update(call: Call) -> Call:
    body = _known(_json_object(call.body), frozenset(("PidsLimit",)), "the update's")
    if not _is_count(body.get("PidsLimit"), _MAX_PIDS):
        raise Refusal(f"only PidsLimit may be updated, to 1..{_MAX_PIDS}")
    return replace(call, body=json.dumps(body).encode())


def _create(call: Call) -> Call:
    if call.query:
        raise Refusal("containers may not be given a name or a platform")
    body = _known(_json_object(call.body), _BODY, "the container's")
    if not isinstance(body.get("HostConfig"), dict):
        raise Refusal("a container needs a HostConfig that bounds it")
    host = _known(body["HostConfig"], _HOST, "HostConfig's")
    for name, (wanted, holds) in _REQUIRED.items():
        if not holds(host.get(name)):
            raise Refusal(f"HostConfig's {name} must be {wanted}, not {host.get(name)!r}")
    (mount,) = host["Mounts"]
    host["Mounts"] = [{name: mount[name] for name in (*_MOUNT, "Source")}]
    _require_plain_user(body, "a container")
    labels = {**(body.get("Labels") or {}), LABEL: "true"}
    return replace(call, body=json.dumps({**body, "HostConfig": host, "Labels": labels}).encode())


def _needs(call: Call) -> NewContainer:
    body = json.loads(call.body)
    image = body.get("Image")
    if not isinstance(image, str) or not re.fullmatch(_IMAGE, image):
        raise Refusal(f"{str(image)[:80]!r} is not an image's name")
    return NewContainer(image, body["HostConfig"]["Mounts"][0]["Source"])


def _is_supervisor(mounts: object) -> bool:
    """Whether the only mount is a volume with the supervisor, read-only, by fields that are spelt as Docker does."""
    if not isinstance(mounts, list) or len(mounts) != 1 or not isinstance(mounts[0], dict):
        return False
    given = {name: value for name, value in mounts[0].items() if value not in (None, "", [], {})}
    source = given.pop("Source", None)
    # As text, because in Python 1 equals True.
    is_ours = json.dumps(given, sort_keys=True) == json.dumps(_MOUNT, sort_keys=True)
    return is_ours and bool(re.fullmatch(_VOLUME, str(source)))


def _known(given: Mapping[str, Any], known: frozenset[str], whose: str) -> dict[str, Any]:
    """Keep the known fields by their exact names; Docker's parser would take others for them, whatever their case."""
    for name, value in given.items():
        if value and name not in known:
            raise Refusal(f"{whose} {name} may not be set")
    return {name: value for name, value in given.items() if name in known}


def _require_plain_user(body: Mapping[str, Any], what: str) -> None:
    if not re.fullmatch(r"[1-9]\d{0,8}(:[1-9]\d{0,8})?", str(body.get("User"))):
        raise Refusal(f"{what} must name a user by number that is not root")


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refusal("the call needs a JSON object")
    return value


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 0 < value <= most


_BODY = frozenset(
    (
        *("AttachStderr", "AttachStdin", "AttachStdout", "Cmd", "Entrypoint", "Env", "Healthcheck", "HostConfig"),
        *("Hostname", "Image", "Labels", "OpenStdin", "StdinOnce", "User", "WorkingDir"),
    )
)
_EXEC = frozenset(("AttachStderr", "AttachStdin", "AttachStdout", "Cmd", "Container", "Env", "User", "WorkingDir"))
_START = frozenset(("Detach",))
_STREAMS = ("stdin", "stdout", "stderr", "stream")
_MOUNT = {"Type": "volume", "Target": MOUNT, "ReadOnly": True, "VolumeOptions": {"NoCopy": True}}
_VOLUME = r"agentgym-supervisor-(x86_64|aarch64)-[0-9a-f]{16}"
_REQUIRED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "NetworkMode": ("'none' or 'bridge'", lambda value: value in ("none", "bridge")),
    "ReadonlyRootfs": ("true", lambda value: value is True),
    "CapDrop": ("['ALL']", lambda value: value == ["ALL"]),
    "SecurityOpt": ("['no-new-privileges:true']", lambda value: value == ["no-new-privileges:true"]),
    "Memory": ("a number of bytes", lambda value: _is_count(value, 1 << 50)),
    "MemorySwap": ("a number of bytes", lambda value: _is_count(value, 1 << 50)),
    "PidsLimit": (f"1..{_MAX_PIDS}", lambda value: _is_count(value, _MAX_PIDS)),
    "LogConfig": ("of Type 'none'", lambda value: value == {"Type": "none", "Config": {}}),
    "Mounts": (f"a read-only volume with the supervisor at {MOUNT} and nothing else", _is_supervisor),
    "OomScoreAdj": ("at least 0", lambda value: type(value) is int and value >= 0),
}
_HOST = frozenset((*_REQUIRED, "NanoCpus", "ShmSize", "Tmpfs", "Ulimits"))
_Route = tuple[tuple[str, ...], str, Literal["container", "exec"] | None, Callable[[Call], Call]]
_ROUTES: tuple[_Route, ...] = (
    (("GET", "HEAD"), r"/_ping", None, _as_it_is),
    (("GET",), r"/version", None, _as_it_is),
    (("GET",), INFO, None, _no_body),
    (("GET",), rf"/images/{_IMAGE}/json", None, _as_it_is),
    (("GET",), r"/containers/json", None, _listing),
    (("POST",), r"/containers/create", None, _create),
    (("GET",), rf"/containers/{_ID}/json", "container", _as_it_is),
    (("GET",), rf"/containers/{_ID}/top", "container", _as_it_is),
    (("POST",), rf"/containers/{_ID}/(start|stop|kill|wait)", "container", _no_body),
    (("GET",), rf"/containers/{_ID}/stats", "container", _stats),
    (("POST",), rf"/containers/{_ID}/attach", "container", _attach),
    (("POST",), rf"/containers/{_ID}/update", "container", _update),
    (("POST",), rf"/containers/{_ID}/exec", "container", _exec),
    (("DELETE",), rf"/containers/{_ID}", "container", _as_it_is),
    (("POST",), rf"/exec/{_ID}/start", "exec", _start_exec),
    (("GET",), rf"/exec/{_ID}/json", "exec", _as_it_is),
    (("GET",), r"/events", "container", _events),
)
