"""The MCP page is true: somebody else's server, from the package index, is played in a sandbox to a verdict."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentgym import registry

PAGE = Path(__file__).resolve().parents[2] / "envs/agentgym_envs/mcp/README.md"
PROGRAM = f"""agentgym() {{ {sys.executable} -c 'from agentgym.cli import main; main()' "$@"; }}
pip() {{ {sys.executable} -m pip --disable-pip-version-check --quiet "$@"; }}
"""


def run(script: str, where: Path) -> subprocess.CompletedProcess[str]:
    command = ["/bin/bash", "-euc", PROGRAM + script]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=170, check=False)


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(360)
def test_a_server_from_the_package_index_is_played_as_the_page_says(tmp_path: Path) -> None:
    backend = registry.create("sandboxes", "docker")
    backend.check()
    backend.close()
    (script,) = re.findall(r"^```sh\n(mkdir .*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    making, line, playing = re.split(r"^(pip install .*\n)", script, flags=re.MULTILINE)
    installed = run(making + line, tmp_path)
    if installed.returncode:
        pytest.skip(f"cannot install mcp-server-time: {installed.stderr.strip().splitlines()[-1]}")
    played = run(playing, tmp_path)
    assert played.returncode == 0, played.stderr
    assert '"time_difference": "-3.5h"' in played.stdout
    assert "passed" in played.stdout, played.stdout
