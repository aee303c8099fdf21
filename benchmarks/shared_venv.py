"""Virtual environments, made once: of what a project needs alone, or of what is in another one, and more."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Sequence
from hashlib import blake2b
from importlib.metadata import Distribution, distributions
from pathlib import Path


class InstallError(Exception):
    """A package cannot be installed, in one sentence."""


def shared_venv(*packages: str, without: Sequence[str] = (), beside: Path | None = None) -> Path:
    """Return the Python of an environment with packages, such as `trl==1.16.0`, made once and then kept.

    What is installed in the present environment, or beside the Python named, is seen there too, working trees included,
    so that neither PyTorch nor transformers is installed twice. What the packages drag in and nobody wants is named in
    `without`.

    Raises:
        InstallError: pip could not install it.
    """
    name = f"{'-'.join(packages).replace('==', '-')}-py{sys.version_info[0]}.{sys.version_info[1]}"
    if beside is None:
        seen = [one for one in sys.path if one.endswith("site-packages")] or site.getsitepackages()
    else:
        seen = [str(one) for one in (beside.parents[1] / "lib").glob("python*/site-packages")]
    prefix = sys.prefix if beside is None else str(beside.parents[1])
    return _kept(f"{name}-{_digest(prefix)}", packages, without=without, seen=seen)


def own_venv(project: Path, *extras: str) -> Path:
    """Return the Python of an environment with a project's working tree and these extras alone, made once and kept.

    Nothing else is seen there; what is installed has the version that it has in the present environment.

    Raises:
        InstallError: pip could not install it.
    """
    asked = f"{project}[{','.join(extras)}]"
    here = {f"{one.name}=={one.version.partition('+')[0]}" for one in distributions() if not _is_working_tree(one)}
    name = f"{project.name}-{_digest(asked, (project / 'pyproject.toml').read_text(), *sorted(here))}"
    return _kept(name, ("--editable", asked), versions=sorted(here))


def _kept(
    name: str,
    asked: Sequence[str],
    *,
    without: Sequence[str] = (),
    versions: Sequence[str] = (),
    seen: Sequence[str] = (),
) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentgym" / "benchmarks"
    folder = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            _make(folder, asked, without, versions, seen)
    return folder / "bin" / "python"


def _make(
    folder: Path, asked: Sequence[str], without: Sequence[str], versions: Sequence[str], seen: Sequence[str]
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _run(sys.executable, "-m", "venv", str(folder))
    target = next((folder / "lib").glob("python*")) / "site-packages" / "shared.pth"
    # Not plain paths: what those folders themselves add, such as a working tree, would be left out.
    target.write_text("".join(f"import site; site.addsitedir({one!r})\n" for one in seen))
    pip = (str(folder / "bin" / "pip"), "--quiet", "--disable-pip-version-check")
    constraints = folder / "versions.txt"
    constraints.write_text("".join(f"{one}\n" for one in versions))
    _run(*pip, "install", "--constraint", str(constraints), *asked)
    if without:
        _run(*pip, "uninstall", "--yes", *without)
    (folder / "ready").touch()


def _digest(*texts: str) -> str:
    return blake2b("\n".join(texts).encode(), digest_size=4).hexdigest()


def _is_working_tree(one: Distribution) -> bool:
    origin = json.loads(one.read_text("direct_url.json") or "{}")
    return bool(origin.get("dir_info", {}).get("editable"))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InstallError(f"`{' '.join(command)}` failed: {done.stderr.strip()[-400:]}")
