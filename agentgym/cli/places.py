"""What a user names on the command line, found: environments, files, sandboxes, policies."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import yaml

from agentgym import registry
from agentgym.errors import AgentgymError, UnknownNameError

if TYPE_CHECKING:
    from agentgym.env import AgentEnv
    from agentgym.policy import Policy, Sampling
    from agentgym.sandbox import SandboxBackend
    from agentgym.task import Task


@dataclass(frozen=True, slots=True)
class Place:
    """An environment as the command line names it."""

    name: str
    options: Sequence[str] = ()
    load: Sequence[Path] = ()
    sandbox: str = "process"
    """A backend, with options behind a colon where it takes some: `docker:warm=8,runtime=crun`."""
    trusted: bool = False
    _backends: list[SandboxBackend] = field(default_factory=list)

    def maker(self) -> Callable[[], AgentEnv]:
        """Return what builds the environment; its sandboxes come from one backend, checked if they are needed.

        Raises:
            AgentgymError: one sentence about what is missing or misspelt.
        """
        for file in self.load:
            load_file(file)
        backend = self._backend()
        make = partial(find_environment(self.name), sandbox=backend, **parse_options(self.options))
        try:
            sandboxed = make().sandboxed
        except (TypeError, ValueError) as error:
            if isinstance(error, AgentgymError):
                raise
            raise AgentgymError(f"the environment {self.name!r} cannot be built: {error}") from error
        if sandboxed:
            backend.check()
        return make

    def close(self) -> None:
        """End every sandbox that is still open."""
        for backend in self._backends:
            backend.close()

    def _backend(self) -> SandboxBackend:
        name, given = read_sandbox(self.sandbox)
        trusted = {"trusted": True} if self.trusted else {}
        backend: SandboxBackend = registry.create("sandboxes", name, **given, **trusted)
        self._backends.append(backend)
        return backend


def read_sandbox(text: str) -> tuple[str, dict[str, Any]]:
    """Return a backend's name and options, of `docker:warm=8,runtime=crun`.

    Raises:
        AgentgymError: for an option of another form.
    """
    name, _, options = text.partition(":")
    return name, parse_options([word for word in options.split(",") if word])


def find_environment(name: str) -> Callable[..., AgentEnv]:
    """Return the class or function that builds a registered environment, or one in a file.

    Raises:
        AgentgymError: with the nearest name that is known.
    """
    if name in registry.names("envs"):
        return partial(registry.make, name)
    path, _, attribute = name.partition(":")
    for file in (Path(path), Path(f"{path.replace('-', '_')}.py")):
        if file.suffix == ".py" and file.is_file():
            return _in_file(file, attribute)
    if path.endswith(".py"):
        raise AgentgymError(f"there is no file {path}")
    raise UnknownNameError("environment", name, registry.names("envs"))


def _in_file(file: Path, attribute: str) -> Callable[..., AgentEnv]:
    from agentgym.env import AgentEnv

    module = load_file(file)
    own = {
        name: one
        for name, one in vars(module).items()
        if isinstance(one, type) and issubclass(one, AgentEnv) and one.__module__ == module.__name__
    }
    if attribute:
        if attribute not in own:
            raise UnknownNameError(f"environment in {file.name}", attribute, own)
        return own[attribute]
    if len(own) != 1:
        names = ", ".join(sorted(own)) or "none"
        raise AgentgymError(f"wanted one environment in {file}, found {names}; name it as in {file}:Class")
    return next(iter(own.values()))


def load_file(file: Path) -> ModuleType:
    """Run a user's Python file once, with its folder and the working directory importable meanwhile.

    Raises:
        AgentgymError: if it is not there or does not run.
    """
    if not file.is_file():
        raise AgentgymError(f"there is no file {file}")
    whole = file.resolve()
    name = f"{whole.stem}_{hashlib.blake2b(bytes(whole), digest_size=4).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, whole)
    if spec is None or spec.loader is None:
        raise AgentgymError(f"{file} is not a Python file")
    module = sys.modules[name] = module_from_spec(spec)
    try:
        with _importable(str(Path.cwd()), str(whole.parent)):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        if isinstance(error, AgentgymError):
            raise
        raise AgentgymError(f"{file} does not run: {type(error).__name__}: {error}") from error
    return module


@contextmanager
def _importable(*folders: str) -> Iterator[None]:
    before = list(sys.path)
    sys.path[:0] = folders
    try:
        yield
    finally:
        sys.path[:] = before


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE words; values are YAML.

    >>> parse_options(["max_turns=3", "family=repair"])
    {'max_turns': 3, 'family': 'repair'}

    Raises:
        AgentgymError: for a word of another form.
    """
    found: dict[str, Any] = {}
    for option in options:
        name, sign, text = option.partition("=")
        if not sign or not name:
            raise AgentgymError(f"wanted an option like max_turns=3, found {option!r}")
        try:
            found[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise AgentgymError(f"{option!r}: {text!r} is not a YAML value") from error
    return found


def find_policy(
    name: str, make_env: Callable[[], AgentEnv], tasks: Sequence[Task], sampling: Sampling | None
) -> Policy:
    """Return the policy that a word such as `oracle`, `spam:answer` or `checkpoint:PATH` names.

    Raises:
        AgentgymError: with the nearest name that is known.
    """
    from agentgym.scripted import SCRIPTS

    kind, _, argument = name.partition(":")
    if kind in SCRIPTS:
        return SCRIPTS[kind](make_env(), tasks, argument)
    if kind not in registry.names("policies") and Path(name).is_dir():
        kind, argument = "checkpoint", name
    if kind not in registry.names("policies"):
        raise UnknownNameError("policy", kind, [*SCRIPTS, *registry.names("policies")])
    found: Policy = registry.lookup("policies", kind)(argument, sampling=sampling)
    return found
