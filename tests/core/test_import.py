"""Importing does nothing and is quick; what a package exports exists."""

from __future__ import annotations

import subprocess
import sys

import agentgym

HEAVY = ("torch", "docker", "vllm", "transformers", "pyarrow", "matplotlib", "scipy", "rich", "typer")


def run_python(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = f"import sys, agentgym; print([name for name in {HEAVY} if name in sys.modules])"
    assert run_python(script) == "[]\n"


def test_environments_and_rollouts_need_no_torch_and_no_docker() -> None:
    script = "import sys, agentgym.rollout, agentgym.recipe; print({'torch', 'docker', 'vllm'} & set(sys.modules))"
    assert run_python(script) == "set()\n"


def test_importing_the_package_takes_well_under_half_a_second() -> None:
    def seconds(script: str) -> float:
        """Return processor time, which a busy machine does not change."""
        return min(float(run_python(f"import time; {script}; print(time.process_time())")) for _ in range(3))

    assert seconds("import agentgym") < 0.5
    assert seconds("from agentgym import AgentEnv") < 1.0


def test_everything_exported_is_there() -> None:
    for name in agentgym.__all__:
        assert getattr(agentgym, name) is not None
