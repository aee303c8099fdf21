"""How packages are built: a wheel brings the sandboxes' supervisor, compiled for each machine type it may meet.

Both the build backend, which asks for the compiler only when a wheel is built, and the hook that runs it: an editable
installation needs neither and compiles on first use, with what the machine has.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from hatchling import build
from hatchling.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
)
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

__all__ = [
    "SupervisorHook",
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]

_COMPILER = "ziglang>=0.13"
_PACKAGE = "agentgym_sandboxes"


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """Return what must be installed before a wheel is built."""
    return [*build.get_requires_for_build_wheel(config_settings), _COMPILER]


class SupervisorHook(BuildHookInterface[Any]):
    """Compiles the supervisor into a wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build for every machine type; an editable installation is left alone."""
        if self.target_name != "wheel" or version != "standard":
            return
        self._folder = tempfile.TemporaryDirectory(prefix="agentgym-supervisor-")
        compile_module = _load(Path(self.root, "sandboxes", _PACKAGE, "_compile.py"))
        for machine in compile_module.MACHINES:
            name = compile_module.file_name(machine)
            made = Path(self._folder.name, name)
            compile_module.build(machine, made, portable=True)
            build_data["force_include"][str(made)] = f"{_PACKAGE}/supervisor/bin/{name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove what was built, now that it is in the wheel."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def _load(path: Path) -> Any:
    """Import a module by its file: the package itself is not installed yet."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
