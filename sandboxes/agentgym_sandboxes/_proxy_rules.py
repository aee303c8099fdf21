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


def judge(call: Call) -> Verdict:
    """Say under which condition a call may pass, and in which form.

    Raises:
        Refusal: it may not.
    """
    for methods, pattern, owned, check in _ROUTES:
        if call.method in methods and (match := re.fullmatch(pattern, call.path)):
            checked = check(call)
            found = match.groupdict().get("id") or (_filters(call)["container"][0] if owned else "")
            return Verdict(checked, owned, found)
    raise Refusal(f"{call.method} {call.path} is not a call that sandboxes need")


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
    _require_plain_user(body, "a container")
    labels = {**(body.get("Labels") or {}), LABEL: "true"}
    return replace(call, body=json.dumps({**body, "HostConfig": host, "Labels": labels}).encode())


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
_REQUIRED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "NetworkMode": ("'none' or 'bridge'", lambda value: value in ("none", "bridge")),
    "ReadonlyRootfs": ("true", lambda value: value is True),
    "CapDrop": ("['ALL']", lambda value: value == ["ALL"]),
    "SecurityOpt": ("['no-new-privileges:true']", lambda value: value == ["no-new-privileges:true"]),
    "Memory": ("a number of bytes", lambda value: _is_count(value, 1 << 50)),
    "MemorySwap": ("a number of bytes", lambda value: _is_count(value, 1 << 50)),
    "PidsLimit": (f"1..{_MAX_PIDS}", lambda value: _is_count(value, _MAX_PIDS)),
    "LogConfig": ("of Type 'none'", lambda value: value == {"Type": "none", "Config": {}}),
    "OomScoreAdj": ("at least 0", lambda value: type(value) is int and value >= 0),
}
_HOST = frozenset((*_REQUIRED, "NanoCpus", "ShmSize", "Tmpfs", "Ulimits"))
_Route = tuple[tuple[str, ...], str, Literal["container", "exec"] | None, Callable[[Call], Call]]
_ROUTES: tuple[_Route, ...] = (
    (("GET", "HEAD"), r"/_ping", None, _as_it_is),
    (("GET",), r"/version", None, _as_it_is),
    (("GET",), rf"/images/{_IMAGE}/json", None, _as_it_is),
    (("GET",), r"/containers/json", None, _listing),
    (("POST",), r"/containers/create", None, _create),
    (("GET",), rf"/containers/{_ID}/json", "container", _as_it_is),
    (("GET",), rf"/containers/{_ID}/top", "container", _as_it_is),
    (("POST",), rf"/containers/{_ID}/(start|stop|kill|wait)", "container", _no_body),
    (("POST",), rf"/containers/{_ID}/update", "container", _update),
    (("POST",), rf"/containers/{_ID}/exec", "container", _exec),
    (("DELETE",), rf"/containers/{_ID}", "container", _as_it_is),
    (("POST",), rf"/exec/{_ID}/start", "exec", _start_exec),
    (("GET",), rf"/exec/{_ID}/json", "exec", _as_it_is),
    (("GET",), r"/events", "container", _events),
)
