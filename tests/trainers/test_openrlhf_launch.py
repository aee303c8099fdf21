"""The launcher writes what OpenRLHF reads, and tells what a person would type."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from openrlhf_recipes import recipe

from agentgym.run import RunDirectory
from agentgym.sampling import ShuffledSampler, derive_seed
from agentgym_trainers.bridges.openrlhf.dataset import evaluation_rows, training_rows
from agentgym_trainers.bridges.openrlhf.launch import OpenRLHFTrainer
from agentgym_trainers.bridges.openrlhf.options import Options
from agentgym_trainers.bridges.openrlhf.rows import Row, digest
from agentgym_trainers.bridges.openrlhf.start import native_recipe
from agentgym_trainers.bridges.openrlhf.submit import lines


def test_rows_follow_the_native_trainers_order_and_seeds() -> None:
    one = recipe({"sft": {"steps": 5}, "policy": {"steps": 3, "tasks_per_step": 4}}, seed=9)
    prepared = one.prepare()
    rows = list(training_rows(prepared, one.trainer_settings()))
    sampler = ShuffledSampler([task.id for task in prepared.train], derive_seed(9, "sampler"))
    for step in range(3):
        part = rows[4 * step : 4 * step + 4]
        assert [row.task for row in part] == sampler.next(4)
        assert {row.seed for row in part} == {derive_seed(9, "rollout", 5 + step)}
        assert [row.number for row in part] == [0, 1, 2, 3]
    assert {row.recipe for row in rows} == {digest(one)}
    held_out = list(evaluation_rows(prepared))
    assert [row.task for row in held_out] == [task.id for task in prepared.held_out]
    assert len({row.input for row in held_out}) == 3


def test_a_plan_writes_what_openrlhf_reads_and_starts_nothing(tmp_path: Path) -> None:
    one = recipe({"model": {"path": "/models/start"}, "policy": {"steps": 2, "tasks_per_step": 8}})
    run = RunDirectory.create(tmp_path, one, name="run")
    said = OpenRLHFTrainer().plan(one.prepare(), run)
    folder = run.path / "openrlhf"
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert [Row.read(row["label"]).split for row in rows] == ["train"] * 16
    assert len((folder / "held-out.jsonl").read_text().splitlines()) == 3
    compile((folder / "agent.py").read_text(), "agent.py", "exec")
    assert "ray start --head --node-ip-address 0.0.0.0 --num-gpus 8" in said
    assert "  --actor.model_name_or_path /models/start \\" in said
    script = (folder / "launch.sh").read_text()
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert not list(run.checkpoints.iterdir())


def test_several_machines_are_told_of_each_other() -> None:
    said = "\n".join(lines(Options(nodes=3, gpus_per_node=4, address="http://head:8265"), ["--a.b", "1", "--c"]))
    assert "ray start --address HEAD:6379 --num-gpus 4" in said
    assert "each of the other 2" in said
    assert "--resources" not in said
    lending = lines(Options(), ["--a.b", "1"], {"agentgym_sandboxes": 32})
    assert """--num-gpus 8 --resources '{"agentgym_sandboxes": 32}'""" in lending[1]
    assert said.endswith(
        "ray job submit --address http://head:8265 -- python3 -m openrlhf.cli.train_ppo_ray \\\n  --a.b 1 \\\n  --c"
    )


def test_the_warm_start_is_the_recipe_without_its_policy_phase() -> None:
    one = recipe({"sft": {"steps": 4}, "policy": {"steps": 9, "attempts": 4}, "openrlhf": {"nodes": 2}})
    found = native_recipe(one)
    assert found.trainer["name"] == "native"
    settings = found.trainer_settings()
    assert (settings.sft.steps, settings.policy.steps, settings.policy.attempts) == (4, 0, 4)
    assert (found.environment, found.tasks, found.seed) == (one.environment, one.tasks, one.seed)
