"""A small git repository with one commit of each kind that mining meets."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

CORE = """from .version import version


def double(number):
    return number + number


def half(number):
    return number / 3


class Box:
    def get(self):
        return None
"""
TESTS = "from calc.core import double\n\n\ndef test_double():\n    assert double(2) == 4\n"
HALF = """
from calc.core import half


def test_half():
    assert half(4) == 2


def test_half_of_nothing():
    assert half(0) == 0
"""
CLOCK = """
import time
import pytest
from calc.core import Box


@pytest.mark.parametrize("now", [time.time()])
def test_now(now):
    assert Box().get() == 7


def test_get():
    assert Box().get() == 7


def test_loopback():
    import socket
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
"""
TURN = """
import os
from calc.core import double


def test_turns():
    assert double(3) == 6.5 or int.from_bytes(os.urandom(1), "big") < 0
"""


class History:
    """Writes commits, each a day after the one before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._git("init", "-q", "-b", "main")

    def commit(self, message: str, files: Mapping[str, str | None]) -> str:
        """Write files, or delete those that are None, and return the commit's id."""
        for name, text in files.items():
            file = self.path / name
            if text is None:
                file.unlink()
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)
        self.count += 1
        self._git("add", "-A")
        self._git("commit", "-q", "-m", message)
        return self._git("rev-parse", "HEAD")

    def submodule(self, place: str, commit: str) -> None:
        """Commit a link to another repository's commit."""
        self._git("update-index", "--add", "--cacheinfo", f"160000,{commit},{place}")
        self._git("commit", "-q", "-m", "Module")

    def tag(self, name: str) -> None:
        """Tag the last commit."""
        self._git("tag", name)

    def _git(self, *words: str) -> str:
        date = f"2020-01-{self.count + 1:02d}T12:00:00+0000"
        who = {f"GIT_{one}_{part}": "t@example.org" for one in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
        env = {
            **os.environ,
            **who,
            "GIT_AUTHOR_DATE": date,
            "GIT_COMMITTER_DATE": date,
            "GIT_CONFIG_GLOBAL": "/dev/null",
        }
        done = subprocess.run(
            ["git", "-C", str(self.path), *words], env=env, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()


def calc(path: Path) -> dict[str, str]:
    """Write a repository and return its commits by what they are."""
    path.mkdir()
    history, core = History(path), CORE
    pyproject = '[project]\nname = "calc"\n[tool.setuptools_scm]\nversion_file = "calc/version.py"\n'
    start = {"calc/__init__.py": "", "calc/core.py": core, "tests/test_core.py": TESTS, "pyproject.toml": pyproject}
    found = {"start": history.commit("Begin", {**start, "setup.cfg": "[tool:pytest]\naddopts = --no-such-option\n"})}
    history.tag("v1.2")
    found["docs"] = history.commit("Tell more", {"README.md": "# calc\n"})
    found["untested"] = history.commit("Say what it is", {"calc/core.py": (core := core + "\n# the end\n")})
    core = core.replace("number / 3", "number / 2")
    found["half"] = history.commit(
        "Halve by two (#3)\n\nCo-authored-by: A <a@example.org>",
        {"calc/core.py": core, "tests/test_half.py": HALF, "CHANGELOG.md": "half\n"},
    )
    core = core.replace("return number + number", "return 2 * number")
    found["same"] = history.commit("Double by twice", {"calc/core.py": core, "tests/test_core.py": TESTS + "\n\n"})
    core = core.replace("return None", "return 7")
    found["clock"] = history.commit("Boxes hold seven", {"calc/core.py": core, "tests/test_clock.py": CLOCK})
    core += "\n\ndef triple(number):\n    return 3 * number\n"
    triple = TESTS.replace("double", "triple").replace("4", "6")
    found["feature"] = history.commit("Triple", {"calc/core.py": core, "tests/test_triple.py": triple})
    found["hopeless"] = history.commit("Try", {"calc/core.py": core + "# more\n", "tests/test_turn.py": TURN})
    return found
