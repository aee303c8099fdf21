"""The installed package's own option parser and checks, taken out of its script, so that no word reaches it unread."""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from agentgym.errors import RecipeError
from agentgym.graders.sources import parse
from agentgym_trainers.bridges.openrlhf.options import PACKAGE, VERSION


def installed() -> str | None:
    """Return the version of the package here; None where it is not installed."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


def check(words: Sequence[str]) -> Any:
    """Parse a command line as `train_ppo_ray` does, its assertions included, without importing Ray or PyTorch.

    Args:
        words: what follows the script's name.

    Returns:
        The script's options as it would train with them: nested namespaces.

    Raises:
        RecipeError: another version is installed, or it does not accept the words.
    """
    found = installed()
    if found != VERSION:
        raise RecipeError(
            f"this bridge speaks to {PACKAGE} {VERSION}, found {found or 'none'}; pip install {PACKAGE}=={VERSION}"
        )
    code, names = _parsing()
    said = io.StringIO()
    try:
        with _arguments(words), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            exec(code, names)
    except SystemExit as error:
        raise RecipeError(f"{PACKAGE} {VERSION} refuses its options: {_last(said.getvalue())}") from error
    except AssertionError as error:
        raise RecipeError(f"{PACKAGE} {VERSION} refuses its options: {error}") from error
    return names["args"]


def _parsing() -> tuple[Any, dict[str, Any]]:
    """Return the script's main part but for the training, compiled, and the names that it needs."""
    root = _root()
    script = root / "cli" / "train_ppo_ray.py"
    tree = parse(script.read_text(encoding="utf-8"))
    main = [one for one in tree.body if isinstance(one, ast.If) and "__main__" in ast.dump(one.test)]
    if len(main) != 1 or not _trains(main[0].body[-1]):
        raise RecipeError(f"{script} is not the script of {PACKAGE} {VERSION}: it does not end in train(args)")
    body: list[ast.stmt] = [one for one in main[0].body[:-1] if not _imports_own(one)]
    names = {"argparse": argparse, "os": os, "datetime": datetime, "hierarchize": _hierarchize(root)}
    return compile(ast.Module(body, type_ignores=[]), str(script), "exec"), names


def _root() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(f"{PACKAGE} is installed, and its files are not there; install it anew")
    return Path(next(iter(spec.submodule_search_locations)))


def _trains(last: ast.stmt) -> bool:
    return isinstance(last, ast.Expr) and ast.unparse(last) == "train(args)"


def _imports_own(one: ast.stmt) -> bool:
    return isinstance(one, ast.ImportFrom) and (one.module or "").startswith(f"{PACKAGE}.")


def _hierarchize(root: Path) -> Any:
    """Load the one helper that the script imports, by its path: its package would import PyTorch."""
    spec = spec_from_file_location("agentgym_openrlhf_config", root / "utils" / "config.py")
    if spec is None or spec.loader is None:
        raise RecipeError(f"{root / 'utils' / 'config.py'} cannot be loaded; install {PACKAGE} anew")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.hierarchize


@contextlib.contextmanager
def _arguments(words: Sequence[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = ["train_ppo_ray", *words]
    try:
        yield
    finally:
        sys.argv = before


def _last(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it gives no reason")
