"""Runs that vLLM samples for, in processes of its own and at a server: what is trained on is what its weights say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import two_ranks
from torch import Tensor
from vllm_process import vllm_server

from agentgym.recipe import Recipe
from agentgym.run import RunDirectory
from agentgym.tokens import TokenBuffer, TokenKind
from agentgym.types import Turn
from agentgym_trainers.checkpoint import Checkpoints, model_folder
from agentgym_trainers.models import load_model
from agentgym_trainers.native import NativeTrainer

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM; `make test-vllm` installs its CPU build"),
    pytest.mark.filterwarnings("default"),  # of vLLM and what it imports
    pytest.mark.timeout(600),
]

STEPS = 3
TOLERANCE = 1e-4
DRIFT = 1e-5
MOVED = 0.05
"""How much an update changes some logprob at least, else nothing was tested."""


class Server(NamedTuple):
    engine: dict[str, Any]
    log: Path


@pytest.fixture(scope="module")
def base(lab: Any) -> str:
    """A model after its warm start, so that episodes take several turns."""
    shape = {"vocab_size": 320, "hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate": 96}
    trainer = {
        "model": {**shape, "context_length": 256},
        "sft": {"steps": 20, "demonstrations": 64},
        "policy": {"steps": 0},
    }
    return str(model_folder(lab.train(trainer=trainer, tasks={"test": 1}).path))


@pytest.fixture(scope="module")
def server(base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with vllm_server(load_model(base, "cpu")[0], folder, "--logprobs-mode", "processed_logprobs") as url:
        yield Server({"name": "vllm-server", "options": {"url": url}}, folder / "server.log")


def recipe(lab: Any, base: str, engine: dict[str, Any], steps: int = STEPS, **trainer: Any) -> Recipe:
    policy = {
        "steps": steps, "tasks_per_step": 4, "attempts": 4, "optim": {"lr": 1e-2},
        "advantage": "reinforce",  # groups without variance teach, too
    }  # fmt: skip
    ladder = {"no_submission": 0, "failed": 0.5, "passed": 1}
    reward = {"name": "ungated", "options": {"ladder": ladder, "step_weights": {"malformed": 0.3}}}
    fixed = {"model": {"path": base}, "engine": engine, "policy": policy, "checkpoint": {"every": 1, "keep": 9}}
    made: Recipe = lab.recipe(trainer={**fixed, **trainer}, tasks={"train": 60, "test": 2}, reward=reward)
    return made


def train(chosen: Recipe, folder: Path) -> RunDirectory:
    run = RunDirectory.create(folder, chosen, name="run")
    NativeTrainer().train(chosen.prepare(), run, resume=False)
    return run


def logprobs(model: Any, row: TokenBuffer) -> Tensor:
    """Of every token but the first after all before it, by one forward pass of transformers: [L - 1]."""
    ids_1L = torch.tensor([row.ids])
    with torch.no_grad():
        logp_1LV = torch.log_softmax(model(ids_1L).logits.float()[:, :-1], -1)
    return logp_1LV.gather(-1, ids_1L[:, 1:, None])[0, :, 0]


def check_tokens(run: RunDirectory, staleness: int) -> list[set[int]]:
    """Hold every sampled token against the checkpoint of the weights that are told to have sampled it.

    Returns the versions that each step's turns tell of.
    """
    models = {one.step: load_model(one.model_path, "cpu")[0] for one in Checkpoints(run.checkpoints, keep=9).all()}
    told: list[set[int]] = []
    for step in run.steps():
        attempts = run.read_trajectories(step)
        told.append({turn.weight_version for one in attempts for turn in one.turns})
        assert told[-1] <= {*range(max(0, step - 1 - staleness), step)}
        rows = [(row, one.turns) for one in attempts if one.tokens for row in one.tokens.rows()]
        assert max(check_row(row, turns, models, step) for row, turns in rows) > MOVED
    return told


def check_row(row: TokenBuffer, turns: Sequence[Turn], models: dict[int, Any], step: int) -> float:
    """Do so for one row, and return how far the step moved any of its logprobs.

    A turn tells of the weights that began it; those of later updates, up to the step's own, may have gone on with it.
    """
    by_version = {version: logprobs(models[version], row) for version in models if version <= step}
    mask, turn = torch.tensor(row.mask(TokenKind.SAMPLED))[1:], torch.tensor(row.turns)[1:]
    sampled, moved = torch.tensor(row.logprobs)[1:], 0.0
    for number in {*turn[mask].tolist()}:
        here, first = mask & (turn == number), turns[number].weight_version
        off = torch.stack([(by_version[version] - sampled)[here].abs() for version in range(first, step)])
        assert off[0, 0] < TOLERANCE
        assert off.amin(0).max() < TOLERANCE
        moved = max(moved, float((by_version[step] - sampled)[here].abs().max()))
    return moved


@pytest.mark.parametrize("staleness", [0, 1])
@pytest.mark.parametrize("name", ["vllm", "vllm-server"])
def test_every_step_trains_on_what_the_weights_say_that_it_tells_of(
    lab: Any, base: str, tmp_path: Path, request: pytest.FixtureRequest, name: str, staleness: int
) -> None:
    engine = {"name": name} if name == "vllm" else request.getfixturevalue("server").engine
    run = train(recipe(lab, base, engine, schedule={"max_staleness": staleness}), tmp_path)
    told = check_tokens(run, staleness)
    assert lab.column(run, "step")[-1] == STEPS
    assert all(tokens > 0 for tokens in lab.column(run, "train/tokens"))
    drift = lab.column(run, "train/drift")
    assert len(drift) == len(told) == STEPS
    if staleness:
        assert drift[0] < DRIFT  # later steps train on older weights' tokens too, which have drifted by right
        assert max(lab.column(run, "schedule/staleness_max")) == 1
    else:
        assert max(drift) < DRIFT
        assert told == [{0}, {1}, {2}]


class Stopped(Exception):  # noqa: N818 -- nothing went wrong
    """Somebody ends the run."""


def test_a_run_that_is_stopped_goes_on_with_its_checkpoints_weights_and_trains_each_step_once(
    lab: Any, base: str, server: Server, tmp_path: Path
) -> None:
    def stop(phase: str, done: int, steps: int, metrics: dict[str, Any]) -> None:
        del steps, metrics
        if (phase, done) == ("policy", 2):  # not in a checkpoint yet, and the next episodes are under way
            raise Stopped

    chosen = recipe(lab, base, server.engine, steps=4, schedule={"max_staleness": 1})
    run = RunDirectory.create(tmp_path, chosen, name="run")
    with pytest.raises(Stopped):
        NativeTrainer().train(chosen.prepare(), run, resume=False, progress=stop)
    assert [one.step for one in Checkpoints(run.checkpoints, keep=9).all()] == [0, 1]
    NativeTrainer().train(chosen.prepare(), run, resume=True)
    assert [line["step"] for line in run.metrics() if "train/loss" in line] == run.steps() == [1, 2, 3, 4]
    told = check_tokens(run, staleness=1)
    assert told[1] == {1}
    trained = [{one.task_id for one in run.read_trajectories(step)} for step in run.steps()]
    assert len(set.union(*trained)) == sum(map(len, trained)) == 4 * 4


def test_adapters_reach_the_engine_as_part_of_their_layers(lab: Any, base: str, server: Server, tmp_path: Path) -> None:
    run = train(recipe(lab, base, server.engine, lora={"rank": 4}), tmp_path)
    assert check_tokens(run, staleness=0) == [{0}, {1}, {2}]
    # Checkpoints hold base and adapters added up, the learner has them apart.
    assert max(lab.column(run, "train/drift")) < DRIFT


def test_processes_of_torchrun_share_a_server_to_which_one_of_them_gives_weights(
    lab: Any, base: str, server: Server, tmp_path: Path
) -> None:
    before = updates(server)
    run = RunDirectory.create(tmp_path, recipe(lab, base, server.engine), name="run")
    two_ranks.together("train", str(run.path))
    assert updates(server) - before == 1 + STEPS
    assert check_tokens(run, staleness=0) == [{0}, {1}, {2}]
    assert max(lab.column(run, "train/drift")) < DRIFT
    assert [len(run.read_trajectories(step)) for step in run.steps()] == [16] * STEPS


def updates(server: Server) -> int:
    return len(re.findall(r'"POST /pause\?mode=abort HTTP/1\.1" 200', server.log.read_text(errors="replace")))
