"""Names for everything that a recipe can select; nothing is imported before it is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from inspect import signature
from typing import Any, Literal, TypeVar, overload

from agentgym.errors import AgentgymError, UnknownNameError

Kind = Literal[
    "envs",
    "sandboxes",
    "engines",
    "schemes",
    "advantages",
    "losses",
    "guidance",
    "graders",
    "trackers",
    "policies",
    "trainers",
    "attacks",
]
_WORDS: dict[Kind, str] = {
    "envs": "environment",
    "sandboxes": "sandbox backend",
    "engines": "engine",
    "schemes": "reward scheme",
    "advantages": "advantage estimator",
    "losses": "loss",
    "guidance": "guidance strategy",
    "graders": "grader",
    "trackers": "tracker",
    "policies": "policy",
    "trainers": "trainer",
    "attacks": "attack",
}
KINDS: tuple[Kind, ...] = tuple(_WORDS)
Class = TypeVar("Class", bound=type)
_ENV_ID = re.compile(r"[\w-]+/[\w.-]+-v\d+")


@dataclass(slots=True)
class _Entry:
    target: str | Callable[..., Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)


_registered: dict[Kind, dict[str, _Entry]] = {kind: {} for kind in KINDS}
_installed: dict[Kind, dict[str, _Entry]] = {}


def add(kind: Kind, name: str, target: str | Callable[..., Any], **defaults: Any) -> None:
    """Give a name to a class or function, or to the `"module:attribute"` where it will be found.

    Raises:
        AgentgymError: if the name is taken by something else.
    """
    taken = _entries(kind).get(name)
    if taken is not None and (taken.target, dict(taken.defaults)) != (target, defaults):
        raise AgentgymError(
            f"the {_WORDS[kind]} name {name!r} is already taken by {taken.target!r}; choose another name"
        )
    _registered[kind][name] = _Entry(target, defaults)


@overload
def register(env_id: str, target: str | Callable[..., Any], **defaults: Any) -> None: ...
@overload
def register(env_id: str, **defaults: Any) -> Callable[[Class], Class]: ...
def register(env_id: str, target: str | Callable[..., Any] | None = None, **defaults: Any) -> Any:
    """Register an environment under `namespace/Name-vN`, with us and with Gymnasium; without a target, decorate one.

    >>> register("docs/Nothing-v0", "agentgym.env:AgentEnv")
    >>> register("nothing", "agentgym.env:AgentEnv")
    Traceback (most recent call last):
    agentgym.errors.AgentgymError: wanted an environment id like 'mine/Name-v0', found 'nothing'
    """
    if not _ENV_ID.fullmatch(env_id):
        raise AgentgymError(f"wanted an environment id like 'mine/Name-v0', found {env_id!r}")
    if target is None:
        return partial(_register_class, env_id, defaults)
    add("envs", env_id, target, **defaults)
    _tell_gymnasium(env_id)
    return None


def _register_class(env_id: str, defaults: Mapping[str, Any], owner: Class) -> Class:
    register(env_id, owner, **defaults)
    return owner


def names(kind: Kind) -> list[str]:
    """Return what is registered or installed under a kind, sorted."""
    return sorted(_entries(kind))


def lookup(kind: Kind, name: str) -> Callable[..., Any]:
    """Return the class or function behind a name, importing its module now.

    Raises:
        UnknownNameError: with the nearest known name.
    """
    entry = _find(kind, name)
    if callable(entry.target):
        return entry.target
    module, _, attribute = entry.target.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), attribute)
    return found


def create(kind: Kind, name: str, **options: Any) -> Any:
    """Call what a name stands for, with its registered defaults and these options.

    Raises:
        UnknownNameError: if nothing has that name.
        AgentgymError: if it does not take one of the options.
    """
    target = lookup(kind, name)
    merged = {**_find(kind, name).defaults, **options}
    try:
        signature(target).bind(**merged)
    except TypeError as error:
        accepted = ", ".join(signature(target).parameters) or "nothing"
        raise AgentgymError(f"the {_WORDS[kind]} {name!r} {error}; it takes: {accepted}") from error
    return target(**merged)


def make(env_id: str, **options: Any) -> Any:
    """Build a registered environment, without Gymnasium's wrappers.

    >>> make("agentgym/Cod-v0")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    agentgym.errors.UnknownNameError: no environment is registered as 'agentgym/Cod-v0'; did you mean 'agentgym/...
    """
    return create("envs", env_id, **options)


def register_gymnasium() -> None:
    """Tell Gymnasium about every installed environment."""
    for env_id in names("envs"):
        _tell_gymnasium(env_id)


def _tell_gymnasium(env_id: str) -> None:
    from gymnasium.envs.registration import register as gymnasium_register
    from gymnasium.envs.registration import registry

    if env_id not in registry:
        gymnasium_register(
            env_id, entry_point="agentgym.registry:make_for_gymnasium", kwargs={"env_id": env_id}, order_enforce=False
        )


def make_for_gymnasium(env_id: str, **options: Any) -> Any:
    """Build an environment for `gymnasium.make`."""
    return make(env_id, **options)


def _find(kind: Kind, name: str) -> _Entry:
    entries = _entries(kind)
    if name not in entries:
        raise UnknownNameError(_WORDS[kind], name, entries)
    return entries[name]


def _entries(kind: Kind) -> dict[str, _Entry]:
    if kind not in _installed:
        _installed[kind] = {point.name: _Entry(point.value) for point in entry_points(group=f"agentgym.{kind}")}
    return {**_installed[kind], **_registered[kind]}
