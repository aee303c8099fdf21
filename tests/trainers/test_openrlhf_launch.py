"""A recipe becomes OpenRLHF's options field by field; what OpenRLHF cannot do is refused before anything starts."""

from __future__ import annotations

import _thread
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from agentgym.errors import RecipeError
from agentgym.recipe import Recipe
from agentgym.run import RunDirectory
from agentgym.sampling import ShuffledSampler, derive_seed
from agentgym_trainers.bridges.openrlhf import fields, submit
from agentgym_trainers.bridges.openrlhf.argv import Files, arguments, spell
from agentgym_trainers.bridges.openrlhf.dataset import evaluation_rows, training_rows
from agentgym_trainers.bridges.openrlhf.events import Events, translate
from agentgym_trainers.bridges.openrlhf.follow import Follower
from agentgym_trainers.bridges.openrlhf.launch import Launch, OpenRLHFTrainer
from agentgym_trainers.bridges.openrlhf.options import Options, Settings
from agentgym_trainers.bridges.openrlhf.placement import Placement
from agentgym_trainers.bridges.openrlhf.refusals import refuse, refuse_parts
from agentgym_trainers.bridges.openrlhf.rows import Row, digest
from agentgym_trainers.bridges.openrlhf.start import native_recipe
from agentgym_trainers.bridges.openrlhf.submit import Job, TrainingFailedError, lines
from agentgym_trainers.checkpoint import Checkpoints
from agentgym_trainers.settings import TrainerSettings

FILES = Files(Path("/run/openrlhf"), "/models/start")
VALUED = {"policy": {"advantage": "gae", "advantage_options": {"lam": 1.0}}, "critic": {}}


def recipe(trainer: Mapping[str, Any] | None = None, **sections: Any) -> Recipe:
    base: dict[str, Any] = {
        "name": "calculator",
        "environment": {"id": "agentgym/Calculator-v0"},
        "tasks": {"train": 7, "test": 3},
        "trainer": {"name": "openrlhf", "sft": {"steps": 0}, **(trainer or {})},
    }
    return Recipe.parse({**base, **sections})


def words(one: Recipe, *, resume: bool = False) -> list[str]:
    settings = one.trainer_settings()
    refuse(one, settings)
    return arguments(one, settings, FILES, settings.model.context_length, resume=resume)


def options(one: Recipe) -> dict[str, list[str]]:
    """The options of a recipe, by name."""
    found: dict[str, list[str]] = {}
    for word in words(one):
        if word.startswith("--"):
            name = word.removeprefix("--")
            found[name] = []
        else:
            found[name].append(word)
    return found


def nested(path: str, value: Any) -> dict[str, Any]:
    head, _, rest = path.partition(".")
    return {head: nested(rest, value) if rest else value}


def test_every_field_of_the_trainers_settings_has_a_treatment() -> None:
    assert set(fields.FIELDS) == set(fields.leaves(TrainerSettings))


def test_the_documentation_tells_of_every_field() -> None:
    page = Path(__file__).parents[2] / "docs" / "openrlhf.md"
    assert fields.table() in page.read_text(encoding="utf-8")


CHANGES: Mapping[str, Any] = {
    "model.context_length": 512,
    "policy.steps": 7,
    "policy.tasks_per_step": 8,
    "policy.attempts": 4,
    "policy.temperature": 0.7,
    "policy.advantage": "rloo",
    "policy.advantage_options": {"std": "none"},
    "policy.loss": "truncated",  # with a cap of its own, for 2 is what the correction of clip allows as well
    "policy.loss_options": {"clip_high": 0.3},
    "policy.epochs": 2,
    "policy.minibatches": 2,
    **{
        f"{place}.{name}": value
        for place in ("policy.optim", "critic.optim")
        for name, value in {
            "lr": 3e-6, "schedule": "cosine", "warmup_steps": 3, "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.99,
            "grad_clip": 0.5,
        }.items()
    },
    "critic.path": "/models/critic",
    "critic.clip": None,
    "compute.token_budget": 1024,
    "compute.packing": "rows",
    "compute.recompute": True,
    "schedule.max_staleness": 2,
    "checkpoint.every": 5,
    "checkpoint.keep": 4,
    "checkpoint.best": "eval/pass@1",
    "engine.options": {"max_batch": 3},
    "critic.trunk": "policy",
    "critic.lam": 0.9,
    "critic.warmup_steps": 2,
    "lora": {},
    "schedule.in_flight": 64,
    "schedule.spare_attempts": 1,
    "engine.name": "vllm",
    "compute.dtype": "bfloat16",
    "compute.max_batch": 8,
    "schedule.redo": 3,
    "chat.thinking": "keep",
    "chat.calls": "hermes",
    "watch.window": 8,
    "watch.stop": [{"metric": "rollout/reward", "below": 0.1}],
}  # fmt: skip
IMPLIED = {"critic", "critic.trunk_weight", "lora.rank", "lora.alpha", "lora.targets"}
"""Only together with another field of this list."""


@pytest.mark.parametrize(
    "path", [name for name, one in fields.FIELDS.items() if one.kind != "start" and name not in IMPLIED]
)
def test_a_field_does_what_its_treatment_says(path: str) -> None:
    base: Mapping[str, Any] = VALUED if path.startswith("critic") else {}
    if path == "schedule.in_flight" or path == "schedule.spare_attempts":
        base = {"schedule": {"max_staleness": 1}}
    kind = fields.FIELDS[path].kind
    before = recipe(base)
    trainer: dict[str, Any] = _merged(base, nested(path, CHANGES[path]))
    if path == "policy.loss":
        trainer["policy"]["loss_options"] = {"cap": 3.0}
    if kind == "refused":
        with pytest.raises(RecipeError, match=r"OpenRLHF cannot train this recipe"):
            words(recipe(trainer))
        return
    if path == "policy.steps":  # the number of rows says it
        rows = list(training_rows(recipe(trainer).prepare(), recipe(trainer).trainer_settings()))
        assert len(rows) == CHANGES[path] * before.trainer_settings().policy.tasks_per_step
        return
    if path == "critic.path":  # what is not there cannot be located
        changed = Files(FILES.folder, FILES.model, "/models/critic")
        settings = before.trainer_settings()
        assert "/models/critic" in arguments(before, settings, changed, 64)
        return
    assert (words(recipe(trainer)) != words(before)) == (kind == "option")


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    shared = below.keys() & above.keys()
    return {**below, **above, **{name: _merged(below[name], above[name]) for name in shared if below[name]}}


def test_grpo_with_a_kl_term_becomes_these_options() -> None:
    policy = {
        "steps": 10, "tasks_per_step": 4, "attempts": 8, "minibatches": 2,
        "loss_options": {"kl_weight": 0.001, "clip_high": 0.25}, "optim": {"lr": 1e-6, "warmup_steps": 5},
    }  # fmt: skip
    found = options(recipe({"policy": policy, "openrlhf": {"gpus_per_node": 4}}, seed=3))
    assert found["algo.advantage.estimator"] == ["group_norm"]
    assert (found["algo.kl.init_coef"], found["algo.kl.estimator"], found["algo.kl.use_loss"]) == (
        ["0.001"],
        ["k3"],
        [],
    )
    assert found["actor.eps_clip_low_high"] == ["0.2", "0.25"]
    assert (found["rollout.batch_size"], found["rollout.n_samples_per_prompt"]) == (["4"], ["8"])
    assert (found["train.batch_size"], found["train.micro_batch_size"]) == (["16"], ["4"])
    assert (found["actor.adam.lr"], found["train.seed"]) == (["0.000001"], ["3"])
    assert (found["actor.num_gpus_per_node"], found["ref.num_gpus_per_node"]) == (["4"], ["4"])
    assert (found["vllm.num_engines"], found["train.colocate_all"]) == (["4"], [])
    # OpenRLHF takes ceil(20 updates x ratio) steps to warm up.
    assert found["actor.lr_warmup_ratio"] == ["0.225"]
    assert found["reward.clip_range"] == ["-1000000", "1000000"]


def test_numbers_are_spelled_in_full() -> None:
    assert spell({"actor.adam.lr": 1e-14, "a": 2.0, "b": 0.1, "c": 1e-6}) == [
        "--actor.adam.lr", "0.00000000000001", "--a", "2.0", "--b", "0.1", "--c", "0.000001",
    ]  # fmt: skip


def test_without_a_kl_term_no_reference_is_kept() -> None:
    found = options(recipe())
    assert found["algo.kl.init_coef"] == ["0.0"]  # its own default is another
    assert not {name for name in found if name.startswith("ref.")}


def test_overlap_takes_gpus_apart_and_a_critic_takes_some_too() -> None:
    apart = options(recipe({"schedule": {"max_staleness": 2}}))
    assert (apart["actor.num_gpus_per_node"], apart["vllm.num_engines"]) == (["4"], ["4"])
    assert (apart["train.async_queue_size"], "train.colocate_all" in apart) == (["2"], False)
    valued = options(recipe({**VALUED, "schedule": {"max_staleness": 1}, "openrlhf": {"tensor_parallel": 2}}))
    assert (valued["actor.num_gpus_per_node"], valued["critic.num_gpus_per_node"]) == (["2"], ["2"])
    assert valued["vllm.num_engines"] == ["2"]


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"openrlhf": {"engines": 3}}, "must fill them: .* found 3 x 1 and 1 x 8"),
        (
            {"openrlhf": {"colocate": False, "engines": 5}},
            "4 are left for engines of 1, found",
        ),
        ({"openrlhf": {"colocate": True}, "schedule": {"max_staleness": 1}}, "cannot do both at once"),
        ({"openrlhf": {"learner_gpus_per_node": 3, "engines": 3}}, "128 cannot be divided by 3"),
        ({"policy": {"minibatches": 3}}, "128 cannot be divided by 3, the trainer.policy.minibatches"),
        ({"openrlhf": {"ring": 2}}, "ring needs packed rows"),
        ({"openrlhf": {"attention": "eager"}, "compute": {"packing": "rows"}}, "'eager' attention cannot pack"),
        ({"openrlhf": {"partial": True}}, "partial needs sampling that overlaps"),
        ({"policy": {"advantage": "gigpo"}}, "advantage is 'gigpo': OpenRLHF takes one number per attempt"),
        ({"policy": {"advantage_options": {"per_turn": "to_go"}}}, "one number per attempt"),
        ({"policy": {"advantage_options": {"std": "batch"}}}, "whitens over tokens"),
        ({"policy": {"advantage": "reinforce"}}, "subtracts the batch's mean"),
        ({"policy": {"loss": "cispo"}}, "loss is 'cispo': it has none like it"),
        ({"policy": {"loss_options": {"clip_loww": 1}}}, "loss_options has clip_loww"),
        ({"policy": {"loss": "truncated", "epochs": 2}}, "set epochs and minibatches to 1"),
        ({**VALUED, "policy": {"advantage": "gae"}}, "lam is 0.95: it discounts over what the environment printed"),
        ({**VALUED, "policy": {"advantage": "gae", "advantage_options": {"level": "turn"}}}, "no credit of turns"),
        ({"lora": {"rank": 4}}, "does not hand them to vLLM"),
        ({"policy": {"steps": 0}}, "steps is 0, which leaves nothing to it"),
        ({"policy": {"steps": 2, "optim": {"warmup_steps": 5}}}, "warmup_steps is 5, .* the training's 2 updates"),
        (
            {"schedule": {"max_staleness": 1}, "checkpoint": {"best": "eval/pass@1"}},
            "chosen among the steps that have a checkpoint, every 10, and an evaluation, every 0",
        ),
        ({"checkpoint": {"best": "eval/pass@2"}}, "its evaluations report eval/pass@1"),
        ({"watch": {"stop": [{"metric": "train/drift", "above": 1.0}]}}, "it does not report train/drift"),
    ],
)
def test_what_openrlhf_cannot_do_is_refused_with_the_reason(trainer: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        words(recipe(trainer))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("code-grpo", None),
        ("search-grpo", None),
        ("swe-agent-rlvr", None),
        ("demo", None),
        ("code-ppo", "no credit of turns"),
        ("tools-ppo", "no credit of turns"),
    ],
)
def test_a_bundled_recipe_is_trained_by_groups_or_refused_for_its_credit_of_turns(
    name: str, reason: str | None
) -> None:
    small = ["environment.options.count=30", "tasks.train=4", "tasks.test=1"]
    one = Recipe.load(name, small, backend="openrlhf")
    if reason is None:
        assert "--rollout.n_samples_per_prompt" in words(one)
        refuse_parts(one.prepare(), one.trainer_settings())
    else:
        with pytest.raises(RecipeError, match=reason):
            words(one)


def test_step_rewards_under_gae_and_weighed_resets_are_refused() -> None:
    gated = {
        "ladder": {"no_submission": 0, "failed": 0, "passed": 1},
        "threshold": 0,
        "step_weights": {"valid_calls": 0.1},
    }
    one = recipe(VALUED, reward={"name": "g_ra", "options": gated})
    with pytest.raises(RecipeError, match="valid_calls earned in a turn would be paid at the attempt's end"):
        refuse_parts(one.prepare(), one.trainer_settings())
    reset = recipe(guidance={"name": "guide", "options": {"ratio": "reset"}})
    with pytest.raises(RecipeError, match="say correction: none"):
        refuse_parts(reset.prepare(), reset.trainer_settings())
    told = recipe({"openrlhf": {"correction": "none"}}, guidance=reset.guidance.model_dump())
    refuse_parts(told.prepare(), told.trainer_settings())


@pytest.mark.parametrize(
    ("correction", "options", "advantage"), [("backward", {}, "grpo"), ("forward", {"rescale": False}, "rloo")]
)
def test_corrections_that_the_advantage_would_undo_are_refused(
    correction: str, options: dict[str, Any], advantage: str
) -> None:
    rates = {"by": "grader", "rates": {"grade": {"rho0": 0.25, "rho1": 0.25}}, "learn_after": None}
    reward = {"name": correction, "options": {**rates, **options}}
    one = recipe({"policy": {"advantage": advantage}}, reward=reward)
    with pytest.raises(RecipeError, match=f"the advantage '{advantage}' cancels"):
        refuse_parts(one.prepare(), one.trainer_settings())


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


def test_environments_that_only_this_process_knows_are_refused(tmp_path: Path) -> None:
    from agentgym import registry
    from agentgym.testing import ToyEnv

    registry.register("tests/OnlyHere-v0", ToyEnv)
    one = recipe({"model": {"path": "/models/start"}}, environment={"id": "tests/OnlyHere-v0"})
    run = RunDirectory.create(tmp_path, one, name="run")
    with pytest.raises(RecipeError, match=r"'tests/OnlyHere-v0' is known to this process alone"):
        OpenRLHFTrainer().plan(one.prepare(), run)


def test_the_warm_start_is_the_recipe_without_its_policy_phase() -> None:
    one = recipe({"sft": {"steps": 4}, "policy": {"steps": 9, "attempts": 4}, "openrlhf": {"nodes": 2}})
    found = native_recipe(one)
    assert found.trainer["name"] == "native"
    settings = found.trainer_settings()
    assert (settings.sft.steps, settings.policy.steps, settings.policy.attempts) == (4, 0, 4)
    assert (found.environment, found.tasks, found.seed) == (one.environment, one.tasks, one.seed)


def test_event_files_become_metrics_a_step_later_or_at_the_end(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    events = Events(tmp_path)
    for step in (1, 2):
        writer.add_scalar("train/rollout/reward_mean", step / 4, step)
        writer.add_scalar("train/rollout/num_samples", 8, step)
        writer.add_scalar("train/sampled_tokens", 3, step)
    writer.add_scalar("eval/eval_test_pass4", 0.5, 2)
    writer.flush()
    assert [one.step for one in events.read()] == [1]
    rest = list(events.read(all_written=True))
    assert [(one.step, one.metrics.get("eval/pass@4")) for one in rest] == [(2, None), (2, 0.5)]
    assert rest[0].metrics["rollout/reward"] == 0.5
    assert rest[0].metrics["rollout/sampled_tokens"] == 24
    assert not list(events.read(all_written=True))
    writer.close()


def test_event_files_that_did_not_grow_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    reads, reload = [], EventAccumulator.Reload

    def counted(self: Any) -> Any:
        reads.append(self)
        return reload(self)

    monkeypatch.setattr(EventAccumulator, "Reload", counted)
    with SummaryWriter(str(tmp_path)) as writer:
        events = Events(tmp_path)
        for step in (1, 2):
            writer.add_scalar("train/outcome", 0.5, step)
            writer.flush()
            told = [one.step for _ in range(3) for one in events.read()]
    assert (told, len(reads)) == ([1], 2)
    assert [one.step for one in events.read(all_written=True)] == [2]


def follower(tmp_path: Path, trainer: Mapping[str, Any], **sections: Any) -> tuple[Launch, Follower]:
    """A run whose model is a folder of two files, and what follows its training."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        (model / name).write_text("{}")
    one = recipe({"model": {"path": str(model)}, **trainer}, **sections)
    launch = Launch.of(one.prepare(), RunDirectory.create(tmp_path, one, name="run"))
    return launch, Follower(launch.prepared, launch.run, launch.settings, launch.files, None)


def saved(launch: Launch, step: int) -> None:
    """What OpenRLHF leaves of a step."""
    folder = launch.files.checkpoints
    shutil.copytree(launch.files.model, folder / f"global_step{step}_hf")
    (folder / "_actor").mkdir(exist_ok=True)
    (folder / "_actor" / "latest").write_text(f"global_step{step}")


def test_where_sampling_overlaps_learning_a_checkpoint_waits_for_its_evaluation(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    policy = {"steps": 8, "tasks_per_step": 4, "attempts": 2}
    trainer = {
        "policy": policy, "schedule": {"max_staleness": 2}, "checkpoint": {"every": 2, "keep": 3, "best": "eval/pass@1"}
    }  # fmt: skip
    launch, following = follower(tmp_path, trainer, evaluation={"every": 2})
    assert options(launch.prepared.recipe)["ckpt.best_metric_key"] == ["none"]
    with following.begin(0), SummaryWriter(str(launch.files.metrics / "run")) as writer:
        saved(launch, 2)
        for step in range(1, 6):
            writer.add_scalar("train/rollout/reward_mean", 0.5, step)
            if step == 4:  # told after the steps that were ready before it
                writer.flush()
                following.look()
                writer.add_scalar("eval/eval_test_pass1", 0.75, 2)
        writer.flush()
        following.look()
    (kept,) = Checkpoints(launch.run.checkpoints, 3).all()
    assert (kept.step, kept.score) == (2, 0.75)


def test_a_training_that_is_done_is_not_begun_anew(tmp_path: Path) -> None:
    launch, _ = follower(tmp_path, {"policy": {"steps": 2, "tasks_per_step": 4}, "checkpoint": {"every": 2}})
    saved(launch, 2)
    launch.train(resume=True, progress=None)
    assert [one.step for one in Checkpoints(launch.run.checkpoints, 2).all()] == [2]
    assert not (launch.files.folder / "log.txt").exists()


def test_files_that_only_this_folder_knows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").touch()
    for path, fine in (("rows/a.jsonl", False), (str(tmp_path / "rows" / "a.jsonl"), True), ("rows", True)):
        environment = {"id": "agentgym/Calculator-v0", "options": {"files": [{"path": path}]}}
        one = Recipe.parse({**recipe().model_dump(mode="json"), "environment": environment})
        if fine:
            refuse(one, one.trainer_settings())
            continue
        with pytest.raises(RecipeError, match=rf"environment.options.files.path is .* say '{tmp_path}/rows/a.jsonl'"):
            refuse(one, one.trainer_settings())


def test_a_figure_without_a_name_of_ours_keeps_its_own() -> None:
    assert translate({"train/vllm_kl": 0.1, "eval/eval_num_samples": 4.0}) == {
        "openrlhf/vllm_kl": 0.1, "openrlhf/eval/eval_num_samples": 4.0,
    }  # fmt: skip


def test_a_training_that_fails_says_the_last_error_of_its_log(tmp_path: Path) -> None:
    job = Job(["--no.such.option"], None, "name", tmp_path / "log.txt")
    with job.running() as process:
        process.wait(60)
        with pytest.raises(TrainingFailedError, match=r"ended with code [12]: .*; its log is"):
            job.check(process)


def test_a_job_ends_with_its_block(tmp_path: Path) -> None:
    script = tmp_path / "openrlhf" / "cli" / "train_ppo_ray.py"
    script.parent.mkdir(parents=True)
    script.write_text(
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    )
    (tmp_path / "openrlhf" / "__init__.py").touch()
    job = Job([], None, "name", tmp_path / "log.txt")  # runs where the log is, and so finds the script above
    with job.running() as process:
        assert process.poll() is None
    assert process.returncode is not None


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import time; time.sleep(600)", "no answer within 1 s"),
        ("raise SystemExit('no such cluster')", "no such cluster"),
    ],
)
def test_a_cluster_that_does_not_end_a_job_is_told_and_nothing_goes_on_here(
    program: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(submit, "_GRACE_S", 1.0)
    monkeypatch.setattr(submit, "_RAY", (sys.executable, "-c", program))
    job = Job(["--a"], "http://head:8265", "name", tmp_path / "log.txt")
    with pytest.raises(KeyboardInterrupt), job.running() as process:
        raise KeyboardInterrupt
    assert process.returncode is not None
    assert f"the job name may go on, for http://head:8265 did not end it: {reason}; end it with:" in caplog.text


def test_an_impatient_second_interrupt_leaves_nothing_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "openrlhf" / "cli" / "train_ppo_ray.py"
    script.parent.mkdir(parents=True)
    script.write_text("import signal, time\nsignal.signal(2, signal.SIG_IGN)\nprint('deaf')\ntime.sleep(600)\n")
    (tmp_path / "openrlhf" / "__init__.py").touch()
    job = Job([], None, "name", tmp_path / "log.txt")
    running = job.running()
    process = running.__enter__()
    while "deaf" not in job.log.read_text():
        time.sleep(0.05)
    threading.Timer(0.5, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        running.__exit__(None, None, None)
    assert process.poll() is not None


def test_settings_are_the_native_ones_and_one_section_more() -> None:
    assert set(Settings.model_fields) - set(TrainerSettings.model_fields) == {"openrlhf"}


def test_portions_fill_the_token_budget_and_divide_the_batch() -> None:
    trainer = {"compute": {"token_budget": 4096}, "policy": {"tasks_per_step": 6, "attempts": 2}}
    found = Placement.of(recipe({**trainer, "openrlhf": {"gpus_per_node": 2}}).trainer_settings(), 1000)
    assert (found.samples, found.batch, found.rollout_portion, found.train_portion) == (12, 12, 3, 3)


@pytest.mark.skipif(find_spec("openrlhf") is None, reason="needs OpenRLHF; `make test-openrlhf` installs it")
class TestItsOwnParser:
    def test_every_recipe_that_can_be_trained_is_accepted(self) -> None:
        from agentgym_trainers.bridges.openrlhf.parser import check

        for trainer in (
            {},
            VALUED,
            {"schedule": {"max_staleness": 2}, "openrlhf": {"partial": True, "nodes": 2}},
            {"compute": {"packing": "rows", "recompute": True}, "openrlhf": {"ring": 2, "zero_stage": 3}},
            {"policy": {"loss_options": {"level": "sequence", "kl_weight": 0.01}, "optim": {"schedule": "cosine"}}},
            {"policy": {"loss": "truncated", "loss_options": {"cap": 3.0}}, "openrlhf": {"deterministic": True}},
            {"openrlhf": {"correction": "sequence", "offload": True, "cuda_graphs": False}},
            {"openrlhf": {"correction": "none"}},
        ):
            one = recipe(trainer)
            found = check(words(one, resume=True))
            policy = one.trainer_settings().policy
            assert found.rollout.n_samples_per_prompt == policy.attempts
            assert found.actor.adam.lr == pytest.approx(policy.optim.lr)
            assert found.reward.remote_url == ["agent"]
            assert found.ckpt.load_enable

    def test_an_option_that_it_does_not_have_is_refused(self) -> None:
        from agentgym_trainers.bridges.openrlhf.parser import check

        with pytest.raises(RecipeError, match=r"unrecognized arguments: --ckpt\.save_stepz 3"):
            check([*words(recipe()), "--ckpt.save_stepz", "3"])
        with pytest.raises(RecipeError, match=r"requires n_samples_per_prompt > 1"):
            check([*words(recipe()), "--rollout.n_samples_per_prompt", "1"])

    def test_ray_takes_the_job_that_a_cluster_is_given(self, tmp_path: Path) -> None:
        from ray.dashboard.modules.job.cli import stop, submit

        job = Job(words(recipe()), "http://head:8265", "run-0", tmp_path / "log.txt")
        begin = job.command.index("submit")
        given = submit.make_context("submit", job.command[begin + 1 :]).params
        assert (given["address"], given["submission_id"]) == ("http://head:8265", "run-0")
        assert given["entrypoint"] == ("python3", "-m", "openrlhf.cli.train_ppo_ray", *words(recipe()))
        ended = stop.make_context("stop", job.stop[job.stop.index("stop") + 1 :]).params
        assert (ended["address"], ended["job_id"]) == ("http://head:8265", "run-0")

    def test_no_option_is_an_abbreviation_of_one_that_it_has(self) -> None:
        from agentgym_trainers.bridges.openrlhf.parser import check

        found = check(words(recipe()))
        for name in options(recipe()):
            assert hasattr(attrgetter(name.rpartition(".")[0])(found), name.rpartition(".")[2])
        assert (found.algo.kl.init_coef, found.data.max_len, found.eval.n_samples_per_prompt) == (0.0, 1024, 1)
        assert found.actor.lr_scheduler == "constant_with_warmup"


def test_where_openrlhf_is_not_installed_training_says_so(tmp_path: Path) -> None:
    if find_spec("openrlhf") is not None:
        pytest.skip("OpenRLHF is installed here")
    one = recipe({"model": {"path": "/models/start"}})
    run = RunDirectory.create(tmp_path, one, name="run")
    with pytest.raises(RecipeError, match=r"speaks to openrlhf 0\.11\.2, found none; pip install openrlhf==0\.11\.2"):
        OpenRLHFTrainer().train(one.prepare(), run, resume=False)
    assert sys.modules.get("openrlhf") is None
