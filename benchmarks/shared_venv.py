"""A virtual environment for a package that must not be installed here, which sees everything that is."""

from __future__ import annotations

import fcntl
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path


class InstallError(Exception):
    """A package cannot be installed, in one sentence."""


def shared_venv(*packages: str, without: Sequence[str] = ()) -> Path:
    """Return the Python of an environment with packages, such as `trl==1.16.0`, made once and then kept.

    What is installed in the present environment is seen there too, working trees included, so that neither PyTorch nor
    transformers is installed twice. What the packages drag in and nobody wants is named in `without`.

    Raises:
        InstallError: pip could not install it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentgym" / "benchmarks"
    ours = blake2b(sys.prefix.encode(), digest_size=4).hexdigest()
    folder = cache / f"{'-'.join(packages).replace('==', '-')}-py{sys.version_info[0]}.{sys.version_info[1]}-{ours}"
    cache.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            _make(folder, packages, without)
    return folder / "bin" / "python"


def _make(folder: Path, packages: Sequence[str], without: Sequence[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _run(sys.executable, "-m", "venv", str(folder))
    shared = [one for one in sys.path if one.endswith("site-packages")] or site.getsitepackages()
    target = next((folder / "lib").glob("python*")) / "site-packages" / "shared.pth"
    # Not plain paths: what those folders themselves add, such as a working tree, would be left out.
    target.write_text("".join(f"import site; site.addsitedir({one!r})\n" for one in shared))
    pip = (str(folder / "bin" / "pip"), "--quiet", "--disable-pip-version-check")
    _run(*pip, "install", *packages)
    if without:
        _run(*pip, "uninstall", "--yes", *without)
    (folder / "ready").touch()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InstallError(f"`{' '.join(command)}` failed: {done.stderr.strip()[-400:]}")
