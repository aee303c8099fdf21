"""The repository's shape: what a newcomer and a packager rely on."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["agentgym", "envs/agentgym_envs", "sandboxes/agentgym_sandboxes", "trainers/agentgym_trainers"]


@pytest.mark.parametrize("folder", ["envs", "sandboxes", "trainers", "tests"])
def test_a_source_root_is_not_a_package(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_every_package_is_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == PACKAGES


def test_every_entry_point_leads_somewhere() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    for name, target in ((name, target) for group in groups.values() for name, target in group.items()):
        module = target.partition(":")[0].replace(".", "/")
        places = [ROOT / source / f"{module}{end}" for source in (".", "envs", "sandboxes", "trainers")
                  for end in (".py", "/__init__.py")]  # fmt: skip
        assert any(place.is_file() for place in places), f"{name} = {target}"


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = "import sys, agentgym; print(*(sys.modules.keys() & {'torch', 'docker', 'vllm', 'transformers'}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_links_between_documents_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "envs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
