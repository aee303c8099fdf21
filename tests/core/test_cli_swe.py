"""`agentgym swe mine`, in real containers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml
from histories import History

from agentgym import registry
from agentgym.errors import SandboxError

Shell = Callable[..., CompletedProcess[str]]
OLD = """
from collections import Mapping
from importlib.metadata import version

VERSION = version("oldie")


def size(thing):
    return len(thing) if isinstance(thing, Mapping) else None
"""
TESTS = """
import socket
from oldie import VERSION, size


def test_version():
    assert VERSION == "3.1"


def test_size():
    assert size([1]) == 1


def test_this_machine_alone_can_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=5)
    except OSError as error:
        assert "unreachable" in str(error)
"""


@pytest.fixture
def docker() -> None:
    backend = registry.create("sandboxes", "docker")
    try:
        backend.check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    finally:
        backend.close()


@pytest.mark.docker
@pytest.mark.usefixtures("docker")
def test_old_code_is_mined_in_an_image_with_what_newer_pythons_took_away(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "oldie").mkdir()
    history = History(tmp_path / "oldie")
    setup = "from setuptools import setup\nsetup(name='oldie')\n"
    history.commit("Begin", {"oldie/__init__.py": OLD, "setup.py": setup})
    history.tag("v3.1")
    history.commit("Write it down", {"README.md": "# oldie\n"})
    new = OLD.replace("if isinstance(thing, Mapping) else None", "if hasattr(thing, '__len__') else None")
    fixed = history.commit("Lists have a size", {"oldie/__init__.py": new, "tests/test_oldie.py": TESTS})
    found = shell("swe", "mine", "oldie", "--out", "set", "--jobs", 1)
    assert found.returncode == 0, found.stderr
    assert "refused: changes no source" in found.stdout
    assert "1 tasks of oldie in set/tasks" in found.stdout
    folder = tmp_path / "set" / "tasks" / f"oldie-{fixed[:10]}"
    tests = json.loads((folder / "tests.json").read_text())
    assert tests == {
        "FAIL_TO_PASS": ["tests/test_oldie.py::test_size"],
        "PASS_TO_PASS": [f"tests/test_oldie.py::{name}" for name in
                         ("test_this_machine_alone_can_be_reached", "test_version")],
    }  # fmt: skip
    about = yaml.safe_load((folder / "task.yaml").read_text())
    assert about["environment"]["image"].startswith("build:{")
    assert about["fix_commit"] == fixed
    report = json.loads((tmp_path / "set" / "mining" / "oldie.report.json").read_text())
    assert (report["commits"], report["refused"]) == (2, {"changes no source": 1})


def test_what_cannot_be_mined_is_one_sentence(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "image.yaml").write_text("apt: python3-yaml")
    asked = ("swe", "mine", "nowhere", "--sandbox", "process:trusted=true")
    for words, sentence in (
        ((), "there is no git repository at nowhere; clone it first"),
        (("--split", "dev"), "no split is registered as 'dev'"),
        (("--issues", "gpt"), "wanted --issues openai:MODEL@http://HOST/v1, found 'gpt'"),
        (("--image", "image.yaml"), "image.yaml describes no image: Input should be a valid tuple"),
        (("--module", "data"), "wanted --module PLACE=CLONE such as tests/data=./data, found 'data'"),
    ):
        found = shell(*asked, *words)
        assert found.returncode != 0
        assert sentence in found.stderr
