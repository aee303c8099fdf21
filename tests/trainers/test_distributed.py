"""Two processes that share rows, weights and tasks end where one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import two_ranks
from safetensors.torch import load_file

from agentgym import registry
from agentgym.cli import training
from agentgym.errors import RecipeError
from agentgym.run import RunDirectory
from agentgym_trainers.native import NativeTrainer
from agentgym_trainers.world import World

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("ranks") / "found.pt"
    two_ranks.together("learn", str(file))
    found: dict[str, Any] = torch.load(file, weights_only=True)
    return found


def farthest(one: Any, other: Any) -> float:
    """The largest difference between two nested states of the same form."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((farthest(one[name], other[name]) for name in one), default=0.0)
    if isinstance(one, torch.Tensor):
        return float((one - other).abs().max())
    return 0.0


@pytest.mark.parametrize("variant", two_ranks.VARIANTS)
def test_two_ranks_end_with_the_weights_critic_and_metrics_of_one(shared: dict[str, Any], variant: str) -> None:
    found = shared[variant]
    alone = two_ranks.made(World(), variant)
    begun = {name: one.clone() for name, one in alone.model.state_dict().items()}
    metrics = two_ranks.learn(alone, 2)
    assert [sorted(one) for one in found["metrics"]] == [sorted(one) for one in metrics]
    for one, other in zip(found["metrics"], metrics, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    state = alone.state()
    assert farthest(begun, state["model"]) > 5e-5
    assert farthest(found["state"]["model"], state["model"]) < 1e-6
    assert farthest(found["state"]["critic"]["critic"], state["critic"]["critic"]) < 1e-6
    assert farthest(found["state"]["reference"], state["reference"]) < 1e-6


@pytest.mark.parametrize("variant", two_ranks.VARIANTS)
def test_each_of_two_ranks_holds_half_of_every_weight(shared: dict[str, Any], variant: str) -> None:
    alone = two_ranks.made(World(), variant)
    assert alone.reference is not None
    names = {
        f"{kind}.{name}": one.numel()
        for kind, network in (("policy", alone._network), ("reference", alone.reference))
        for name, one in network.named_parameters()
    }
    ranks = shared[variant]["held"]
    assert [{name: whole for name, (_, whole) in one.items()} for one in ranks] == [names, names]
    for name, whole in names.items():
        assert sum(one[name][0] for one in ranks) == whole
        # Weights are cut by their rows, of which a critic's head has one.
        assert ".critic.head." in name or {one[name][0] for one in ranks} == {whole // 2}


def test_what_two_ranks_saved_goes_on_in_two_and_in_one(shared: dict[str, Any]) -> None:
    found = shared["none"]
    alone = two_ranks.made(World(), "none")
    alone.load_state(found["state"])
    assert farthest(alone.state(), found["state"]) == 0
    two_ranks.learn(alone, 2)
    assert farthest(found["end"]["model"], alone.state()["model"]) < 1e-6


def test_a_run_of_two_ranks_writes_once_and_ends_like_a_run_of_one(lab: Any, tmp_path: Path) -> None:
    trainer = {
        "model": two_ranks.SHAPE.model_dump(),
        "sft": {"steps": 3, "batch_size": 8, "demonstrations": 20},
        "policy": {"steps": 2, "tasks_per_step": 3, "attempts": 4, "loss_options": {"kl_weight": 0.1}},
        "compute": {"threads": 1},
        "checkpoint": {"every": 1},
    }
    recipe = lab.recipe(trainer=trainer, tasks={"train": 30, "test": 5})
    runs = [RunDirectory.create(tmp_path, recipe, name=name) for name in ("one", "two")]
    NativeTrainer().train(recipe.prepare(), runs[0], resume=False)
    two_ranks.together("train", str(runs[1].path))
    for name in ("step", "rollout/sampled_tokens", "eval/pass@1"):
        assert lab.column(runs[0], name) == lab.column(runs[1], name)
    assert lab.column(runs[1], "train/loss") == pytest.approx(lab.column(runs[0], "train/loss"), rel=1e-3, abs=1e-6)
    assert [len(run.read_trajectories(5)) for run in runs] == [12, 12]
    weights = [load_file(lab.newest_model(run) / "model.safetensors") for run in runs]
    assert farthest(*weights) < 2e-6


def test_processes_learn_from_the_same_demonstrations_though_tools_print_something_else_in_each(
    lab: Any, tmp_path: Path
) -> None:
    trainer = {
        "model": two_ranks.SHAPE.model_dump(),
        "sft": {"steps": 2, "batch_size": 8, "demonstrations": 9},
        "policy": {"steps": 1, "tasks_per_step": 2, "attempts": 2, "loss_options": {"kl_weight": 0.1}},
        "compute": {"threads": 1},
    }
    registry.register("tests/TwoVoices-v0", two_ranks.TwoVoices)
    recipe = lab.recipe(environment={"id": "tests/TwoVoices-v0"}, trainer=trainer, tasks={"train": 20, "test": 2})
    run = RunDirectory.create(tmp_path, recipe, name="run")
    two_ranks.together("train", str(run.path))
    assert len(lab.column(run, "sft/loss")) == 2
    assert lab.column(run, "train/tokens")[0] > 0


def test_several_processes_do_not_train_asynchronously() -> None:
    World(0, 1).refuse_overlap(2)
    with pytest.raises(RecipeError, match=r"2 processes train in lock-step, found trainer.schedule.max_staleness 3"):
        World(0, 2).refuse_overlap(3)


def test_processes_of_the_command_line_agree_on_the_runs_folder(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = lab.recipe()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="2 processes train into one folder; name it with --run"):
        training._create(recipe, None)
    first = training._create(recipe, tmp_path / "shared")
    monkeypatch.setenv("RANK", "1")
    assert training._create(recipe, tmp_path / "shared").path == first.path


PATIENCE = """
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from agentgym_trainers.world import World

world = World.join("cpu")
if world.main:
    group = dist.group.WORLD._get_backend(torch.device("cpu"))
    Path(sys.argv[1]).write_text(str(group.options._timeout.total_seconds()))
world.leave()
"""


def test_processes_wait_for_the_slowest_of_them_longer_than_episodes_take(tmp_path: Path) -> None:
    script, found = tmp_path / "join.py", tmp_path / "found"
    script.write_text(PATIENCE)
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*ranks, str(script), str(found)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(found.read_text()) == 24 * 3600
