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


def test_importing_the_package_loads_little_more_than_gymnasium() -> None:
    def modules(script: str) -> int:
        """Return how much is loaded: a time would say what else the machine does."""
        return int(run_python(f"import sys; {script}; print(len(sys.modules))"))

    floor = modules("import gymnasium")
    assert modules("import agentgym") < floor + 100
    assert modules("from agentgym import AgentEnv") < floor + 300


def test_everything_exported_is_there() -> None:
    for name in agentgym.__all__:
        assert getattr(agentgym, name) is not None
