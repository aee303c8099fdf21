"""TRL's GRPOTrainer, in its own virtual environment, really trains a tiny model on our environments."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from agentgym.tokens import TokenKind
from agentgym_envs.calculator import CalculatorEnv, calculator_tasks
from benchmarks.shared_venv import InstallError, shared_venv
from benchmarks.trainer import TRL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
GROUP = 6
Facts = dict[str, Any]


class Lab:
    """Runs programs with TRL."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._python = shared_venv(TRL)
        except InstallError as error:
            pytest.skip(str(error))

    def run(self, *words: str) -> str:
        """Run a program; return what it prints."""
        quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(
            [str(self._python), *words], capture_output=True, text=True, cwd=self.folder, check=False,
            env={**os.environ, **quiet, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("trl"))


@pytest.fixture(scope="module")
def facts(lab: Lab) -> Facts:
    found: Facts = json.loads(lab.run(str(ROOT / "tests" / "support" / "trl_runs.py"), str(lab.folder)))
    return found


def rows(run: Facts) -> Iterator[Facts]:
    """Each attempt: what the bridge returned, what our driver played, what TRL made of it."""
    played = iter(run["played"])
    for call, made in zip(run["calls"], run["made"], strict=True):
        for index, prompt in enumerate(call["prompt_ids"]):
            shown = {"prompt_ids": prompt, "training": call["training"], "episode": next(played)}
            shown |= {name: call[name][index] for name in ("completion_ids", "logprobs", "env_mask", "reward", "fresh")}
            names = ("rewards", "advantages", "completion_ids", "completion_mask", "tool_mask")
            yield shown | {"trl": {name: made[name][index] for name in names}}
    assert next(played, None) is None


def kept(values: list[int], mask: list[int]) -> list[int]:
    return [value for value, one in zip(values, mask, strict=True) if one]


def test_rollouts_train_the_model(facts: Facts) -> None:
    run = facts["rollouts"]
    assert run["steps"] == len(run["calls"]) == 3
    assert len(run["changed"]) > 20
    assert max(float(one["grad_norm"]) for one in run["log"] if "grad_norm" in one) > 0
    assert all(row["training"] for row in rows(run))


def test_a_completion_is_the_drivers_own_buffer_and_only_sampled_tokens_are_trained(facts: Facts) -> None:
    turns = 0
    for row in rows(facts["rollouts"]):
        ids, kinds = row["episode"]["ids"], row["episode"]["kinds"]
        whole = [*row["prompt_ids"], *row["completion_ids"]]
        sampled = [int(kind == TokenKind.SAMPLED) for kind in kinds]
        assert whole == ids[: len(whole)]
        assert [0] * len(row["prompt_ids"]) + row["env_mask"] == sampled[: len(whole)]
        assert not any(sampled[len(whole) :])
        assert row["env_mask"][0] == row["env_mask"][-1] == 1
        turns += 0 in row["env_mask"]
    assert turns > 5  # episodes with a tool's answer in the middle


def test_trl_trains_on_what_the_bridge_returned(facts: Facts) -> None:
    for row in rows(facts["rollouts"]):
        theirs = row["trl"]
        assert kept(theirs["completion_ids"], theirs["completion_mask"]) == row["completion_ids"]
        assert kept(theirs["tool_mask"], theirs["completion_mask"]) == row["env_mask"]


@pytest.mark.parametrize("run", ["rollouts", "lora"])
def test_logprobs_are_those_of_a_fresh_forward_pass(facts: Facts, run: str) -> None:
    for row in rows(facts[run]):
        for said, fresh, sampled in zip(row["logprobs"], row["fresh"], row["env_mask"], strict=True):
            assert said == pytest.approx(fresh, abs=1e-4) if sampled else said == 0.0


def test_rewards_are_the_verdicts(facts: Facts) -> None:
    found = [(row["reward"], row["trl"]["rewards"], row["episode"]["value"]) for row in rows(facts["rollouts"])]
    assert all(reward == theirs == value for reward, theirs, value in found)
    assert {value for _, _, value in found} == {0.0, 1.0}


def test_an_unscored_attempt_is_in_no_mean_and_in_no_loss(facts: Facts) -> None:
    everything = list(rows(facts["moody"]))
    mixed = 0
    for start in range(0, len(everything), GROUP):
        group = everything[start : start + GROUP]
        assert len({row["episode"]["task"] for row in group}) == 1
        scored = [row for row in group if row["reward"] is not None]
        for row in group:
            unscored = row["episode"]["value"] is None
            assert unscored == (row["reward"] is None) == (row["trl"]["rewards"] is None)
            if unscored:
                assert row["trl"]["advantages"] == 0.0
                assert not any(kept(row["trl"]["tool_mask"], row["trl"]["completion_mask"]))
        # Counted as zeros they would shift the mean, and this sum.
        assert sum(row["trl"]["advantages"] for row in scored) == pytest.approx(0, abs=1e-4)
        mixed += len(scored) < GROUP and len({row["reward"] for row in scored}) == 2
    assert mixed


def test_adapters_alone_are_trained_where_there_are_some(facts: Facts) -> None:
    assert facts["lora"]["changed"]
    assert all(".lora_" in name for name in facts["lora"]["changed"])


@pytest.mark.usefixtures("facts")  # which writes the model
def test_processes_play_groups_of_their_own_and_end_with_one_model(lab: Lab) -> None:
    worker = str(ROOT / "tests" / "support" / "trl_runs.py")
    lab.run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", worker, str(lab.folder))
    first, second = (json.loads((lab.folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["changed"]
    assert first["sum"] == second["sum"]
    for one, other in zip(first["made"], second["made"], strict=True):
        assert (len(set(one["tasks"])), len(one["tasks"])) == (1, GROUP)
        assert set(one["tasks"]) != set(other["tasks"])
    for run in (first, second):
        assert all(row["reward"] == row["episode"]["value"] for row in rows(run))


def test_what_cannot_be_trained_on_is_refused_in_a_sentence(facts: Facts) -> None:
    said = facts["refused"]
    assert re.fullmatch(
        r"HeldOutError: task 'calculator/.*' belongs to the 'test' split and cannot .*", said["held out"]
    )
    assert "train on TrlBridge.dataset()" in said["no task"]
    assert "leave out GRPOConfig's top_k, found 5" in said["top_k"]
    assert "leave out GRPOConfig's chat_template_kwargs" in said["template"]
    assert "ForwardCorrection corrects rewards, and TRL's advantage, which subtracts a group's mean" in said["shift"]
    assert said["scale"].endswith("say scale_rewards='none' in GRPOConfig")


def test_environments_train_the_model(facts: Facts) -> None:
    run = facts["environments"]
    assert run["steps"] == 3
    assert len(run["changed"]) > 20
    assert run["names"] == ["HermesCalculator"]
    for made, prompt in zip(run["made"], run["prompts"], strict=True):
        assert made["tasks"][0].removeprefix("calculator/") in prompt


def test_rewards_of_environments_are_what_a_replay_of_the_transcript_earns(facts: Facts, lab: Lab) -> None:
    tokenizer = AutoTokenizer.from_pretrained(lab.folder / "model")
    env, found = CalculatorEnv(calculator_tasks(train=2, validation=2, test=2, difficulty=0)), []
    for made in facts["environments"]["made"]:
        for index, name in enumerate(made["tasks"]):
            length = sum(made["completion_mask"][index])
            tokens = list(zip(made["completion_ids"][index], made["tool_mask"][index], strict=True))[:length]
            said = [[id_ for id_, _ in part] for own, part in groupby(tokens, key=lambda one: one[1]) if own]
            env.reset(options={"task": name})
            reward, over = 0.0, False
            for ids in said:
                if not over:
                    _, reward, terminated, truncated, _ = env.step(tokenizer.decode(ids, skip_special_tokens=True))
                    over = terminated or truncated
            assert made["rewards"][index] == reward
            found.append(reward)
    assert {0.0, 1.0} == set(found)


def test_an_environment_that_cannot_be_judged_moves_nothing(facts: Facts) -> None:
    run = facts["moody environments"]
    told = [reward for made in run["made"] for reward in made["rewards"]]
    assert told == [one["reward"] for one in run["graded"]]
    assert None in told
    for made in run["made"]:
        pairs = list(zip(made["rewards"], made["advantages"], strict=True))
        assert all(advantage == 0.0 for reward, advantage in pairs if reward is None)
        for start in range(0, len(pairs), GROUP):
            scored = [advantage for reward, advantage in pairs[start : start + GROUP] if reward is not None]
            assert sum(scored) == pytest.approx(0, abs=1e-4)


def test_an_agent_that_stops_early_has_handed_in_nothing(facts: Facts) -> None:
    left = [one["reward"] for one in facts["stopping"]["graded"] if one["open"]]
    assert left
    assert set(left) == {0.0}


def test_trl_shows_the_model_our_tools(facts: Facts) -> None:
    ours = {one["function"]["name"]: one["function"] for one in facts["warm"]["ours"]}
    theirs = {one["function"]["name"]: one["function"] for one in facts["warm"]["theirs"]}
    assert ours.keys() == theirs.keys() == {"calc", "merge", "answer"}
    for name, one in ours.items():
        assert theirs[name]["description"] == one["description"]
        assert theirs[name]["parameters"]["required"] == one["parameters"]["required"]


@pytest.mark.usefixtures("facts")  # which writes the model
def test_the_pages_programs_train(lab: Lab) -> None:
    page = (ROOT / "docs" / "trl.md").read_text()
    programs = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(programs) == 2
    small = (
        f'output_dir="{lab.folder / "out"}", use_cpu=True, bf16=False, report_to=[], save_strategy="no", max_steps=1, '
        "per_device_train_batch_size=8, gradient_accumulation_steps=1"
    )
    joined = "\n".join(programs).replace("Qwen/Qwen2.5-1.5B-Instruct", str(lab.folder / "model"))
    joined = joined.replace('output_dir="out"', small).replace("max_completion_length=512", "max_completion_length=64")
    ran = joined.replace("trainer.train()", 'trainer.train()\nprint("steps", trainer.state.global_step)')
    assert re.findall(r"steps (\d+)", lab.run("-c", ran)) == ["1", "1"]
