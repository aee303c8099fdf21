"""Commands that installed packages bring to the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

Shell = Callable[..., CompletedProcess[str]]
MODULE = '''
import typer

app = typer.Typer(help="Weave things.")

@app.command()
def one(size: int = 1) -> None:
    """Weave one."""
    print("wove", size)

'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package with commands where Python finds installed packages."""
    folder = tmp_path / "site"
    (folder / "weaver-1.dist-info").mkdir(parents=True)
    (folder / "weaver_commands.py").write_text(MODULE)
    (folder / "weaver_broken.py").write_text("import no_such_module_anywhere\n")
    (folder / "weaver-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: weaver\nVersion: 1\n")
    (folder / "weaver-1.dist-info" / "entry_points.txt").write_text(
        "[agentgym.commands]\nweave = weaver_commands:app\nbroken = weaver_broken:app\n"
        "wrong = weaver_commands:typer\neval = weaver_commands:app\n"
    )
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.usefixtures("installed")
def test_a_packages_commands_are_listed_and_run(shell: Shell) -> None:
    assert "Weave things." in shell("--help").stdout
    assert "--size" in shell("weave", "one", "--help").stdout
    found = shell("weave", "one", "--size", 3)
    assert (found.returncode, found.stdout) == (0, "wove 3\n")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["broken", "wrong"])
def test_a_command_that_cannot_be_loaded_says_why_and_breaks_no_other(shell: Shell, name: str) -> None:
    assert "Cannot be loaded" in shell("--help").stdout
    found = shell(name, "anything", "--at-all")
    assert found.returncode == 2
    assert f"the command '{name}' (weaver_" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.usefixtures("installed")
def test_no_package_takes_the_programs_own_names(shell: Shell) -> None:
    assert "Evaluate a policy" in shell("eval", "--help").stdout
