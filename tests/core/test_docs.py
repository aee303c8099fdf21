"""The README is true: its Python runs, its commands exist."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agentgym import registry
from agentgym.graders.judge_settings import read_settings

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
GRADERS = Path(__file__).resolve().parents[2] / "docs/graders.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
COMMANDS = sorted(
    set(re.findall(r"^agentgym (\w+)", "\n".join(text for kind, text in BLOCKS if kind == "sh"), re.MULTILINE))
)


def test_the_ten_lines_end_in_a_reward() -> None:
    (program,) = [text for kind, text in BLOCKS if kind == "python"]
    assert len(program.strip().splitlines()) <= 11
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "1.0 passed rpc\n", done.stderr


def test_the_first_screen_has_both_commands() -> None:
    first = "\n".join(README.splitlines()[:40])
    assert "make demo" in first
    assert "make test" in first


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists_and_its_help_has_an_example(command: str) -> None:
    program = [sys.executable, "-c", "from agentgym.cli import main; main()"]
    done = subprocess.run([*program, command, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"agentgym {command}" in done.stdout


def test_the_commands_of_the_readme_were_found() -> None:
    assert {"envs", "new", "play", "train", "eval", "show"} <= set(COMMANDS)


def test_the_code_familys_example_passes() -> None:
    page = (Path(__file__).resolve().parents[2] / "envs/agentgym_envs/code/README.md").read_text()
    program = page.partition("```python\n")[2].partition("```\n\n")[0]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "1.0 passed\n", done.stderr


@pytest.mark.usefixtures("needs_sandbox")
def test_the_swe_familys_example_passes() -> None:
    page = (Path(__file__).resolve().parents[2] / "envs/agentgym_envs/swe/README.md").read_text()
    program = page.partition("```python\n")[2].partition("```\n\n")[0]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    wanted = "initials('ada lovelace') is 'al'; it should be in capitals.\n1.0 passed\n"
    assert done.stdout == wanted, done.stderr


@pytest.mark.usefixtures("needs_sandbox")
def test_every_example_of_a_grader_gives_what_the_page_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTGYM_JUDGE", raising=False)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testfile(str(GRADERS), module_relative=False, optionflags=flags)
    assert found.attempted >= 18
    assert found.failed == 0


def test_the_table_of_graders_is_complete_and_names_their_rungs() -> None:
    rows = re.findall(r"^\| ((?:`\w+` ?)+)\|(?:[^|]*\|){3} ((?:`\w+` ?)+)\|$", GRADERS.read_text(), re.MULTILINE)
    named = {name: rungs for names, rungs in rows for name in re.findall(r"\w+", names)}
    assert sorted(named) == registry.names("graders")
    for name, rungs in named.items():
        assert ("no_submission", *re.findall(r"\w+", rungs)) == registry.lookup("graders", name).levels, name  # type: ignore[attr-defined]


def test_the_settings_shown_for_a_judge_are_settings() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)^```$", GRADERS.read_text(), re.DOTALL | re.MULTILINE)
    assert read_settings(yaml.safe_load(shown)).model == "my-model"


@pytest.mark.parametrize("page", ["sandboxes.md"])
def test_the_examples_of_a_page_print_what_they_say(page: str) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / page).read_text()
    programs = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert programs
    for program in programs:
        said = re.findall(r"^ *print\(.*\)  # (.*)$", program, re.MULTILINE)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout.splitlines() == said, done.stderr
