"""A new environment begins with files that are right and never overwrites yours."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentgym.errors import AgentgymError
from agentgym.scaffold import write


@pytest.mark.parametrize("sandbox", [False, True])
@pytest.mark.parametrize("name", ["a", "my-env", "my_env_2", "with-many-words-in-its-name"])
def test_the_files_compile_and_stay_within_thirty_lines_of_120_characters(
    tmp_path: Path, name: str, sandbox: bool
) -> None:
    code, test = write(name, tmp_path / "below", sandbox=sandbox)
    for path in (code, test):
        text = path.read_text()
        compile(text, str(path), "exec")
        assert len(text.splitlines()) <= 30
        assert max(len(line) for line in text.splitlines()) <= 120


@pytest.mark.parametrize("name", ["", "My-Env", "2fast", "a b", "../up", "class", "a.b", "-", "é"])
def test_a_name_that_cannot_name_a_module_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(AgentgymError, match="wanted a name of small letters"):
        write(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("existing", ["mine.py", "test_mine.py"])
def test_files_that_are_there_stay_as_they_are(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(AgentgymError, match=f"{existing} is there already"):
        write("mine", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "precious"
