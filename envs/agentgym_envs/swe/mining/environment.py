"""What a repository's tests need around them: an image for its whole history, and what its build would have made."""

from __future__ import annotations

import configparser
import re
import shlex
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from agentgym.image import ImageSpec
from agentgym_envs.swe.mining.git import Repository

_COMPAT = "/opt/agentgym/agentgym_compat.py"
_METADATA = "/opt/agentgym/METADATA"
_PLACE = "import sysconfig; print(sysconfig.get_path('purelib'))"
_INSTALL = f"""
cd "$(python3 -c {shlex.quote(_PLACE)})"
cp {_COMPAT} .
echo 'import agentgym_compat' >agentgym_compat.pth
"""
_INSTALL_METADATA = """
mkdir {folder}
cp /opt/agentgym/METADATA {folder}/METADATA
echo agentgym >{folder}/INSTALLER
: >{folder}/RECORD
"""
_GENERATED = """__version__ = version = {version!r}
__version_tuple__ = version_tuple = {parts!r}
"""


def image_for(repository: Repository, revision: str, given: ImageSpec | None = None) -> ImageSpec:
    """Return the image in which every commit of a repository is tested, without the repository itself.

    What is wanted of pip are the dependencies that the project names at that revision, unless an image is given. Added
    are a shim for names that newer Pythons took away, and metadata of an installed project, for code that reads its
    own version.
    """
    tree = _texts(repository.snapshot(revision).files)
    spec = given if given is not None else ImageSpec(pip=dependencies(tree))
    files = {_COMPAT: resources.files(__package__).joinpath("_compat.py").read_text(encoding="utf-8")}
    script = _INSTALL
    name = project_name(tree)
    if name is not None:
        version = version_at(repository, revision)
        files[_METADATA] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        script += _INSTALL_METADATA.format(folder=f"{re.sub(r'[-_.]+', '_', name).lower()}-{version}.dist-info")
    return spec.model_copy(update={"files": {**spec.files, **files}, "run": (*spec.run, script)})


def version_at(repository: Repository, revision: str) -> str:
    """Return the version that the nearest tag names, else 0."""
    found = re.search(r"\d+(\.\d+)*$", repository.tag(revision) or "")
    return found[0] if found else "0"


def generated(tree: Mapping[str, bytes], version: str) -> dict[str, bytes]:
    """Return the files that a build would write from the version control's tags, such as `_version.py`."""
    tool = _pyproject(_texts(tree)).get("tool", {})
    scm = tool.get("setuptools_scm", {})
    hooks = tool.get("hatch", {}).get("build", {}).get("hooks", {})
    paths = (scm.get("write_to"), scm.get("version_file"), hooks.get("vcs", {}).get("version-file"))
    parts = tuple(int(one) for one in version.split("."))
    text = _GENERATED.format(version=version, parts=parts).encode()
    return {path: text for path in paths if isinstance(path, str) and path.endswith(".py") and path not in tree}


def import_roots(tree: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return the folders from which a repository's modules are imported.

    >>> import_roots({"src/pkg/__init__.py": b"", "tests/test_a.py": b""})
    ('src', '.')
    """
    has_src = any(re.fullmatch(r"src/(\w+\.py|\w+/__init__\.py)", name) for name in tree)
    return ("src", ".") if has_src else (".",)


def project_name(tree: Mapping[str, str]) -> str | None:
    """Return the name under which a project is installed."""
    project = _pyproject(tree)
    named = project.get("project", {}).get("name") or project.get("tool", {}).get("poetry", {}).get("name")
    named = named or _setup_cfg(tree).get("metadata", "name", fallback=None)
    if named is None and (found := re.search(r"\bname\s*=\s*['\"]([\w.-]+)['\"]", tree.get("setup.py", ""))):
        named = found[1]
    return str(named) if named and re.fullmatch(r"[A-Za-z0-9][\w.-]*", str(named)) else None


def dependencies(tree: Mapping[str, str]) -> tuple[str, ...]:
    """Return the requirements that a project names, for pip."""
    named = _pyproject(tree).get("project", {}).get("dependencies")
    if named is None:
        named = _setup_cfg(tree).get("options", "install_requires", fallback="").splitlines()
    return tuple(re.sub(r"\s+", "", str(one)) for one in named if str(one).strip())


def _pyproject(tree: Mapping[str, str]) -> dict[str, Any]:
    try:
        return tomllib.loads(tree.get("pyproject.toml", ""))
    except tomllib.TOMLDecodeError:  # a repository that was broken at this commit
        return {}


def _setup_cfg(tree: Mapping[str, str]) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(tree.get("setup.cfg", ""))
    except configparser.Error:
        return configparser.ConfigParser()
    return parser


def _texts(tree: Mapping[str, bytes]) -> dict[str, str]:
    wanted = ("pyproject.toml", "setup.cfg", "setup.py")
    return {name: tree[name].decode("utf-8", "replace") for name in wanted if name in tree}
