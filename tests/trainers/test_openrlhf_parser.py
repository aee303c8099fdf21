"""The installed OpenRLHF's own option parser, and Ray's, take what the launcher writes."""

from __future__ import annotations

from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path

import pytest
from openrlhf_recipes import VALUED, options, recipe, words

from agentgym.errors import RecipeError
from agentgym_trainers.bridges.openrlhf.submit import Job

pytestmark = pytest.mark.skipif(
    find_spec("openrlhf") is None, reason="needs OpenRLHF; `make test-openrlhf` installs it"
)


def test_every_recipe_that_can_be_trained_is_accepted() -> None:
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


def test_an_option_that_it_does_not_have_is_refused() -> None:
    from agentgym_trainers.bridges.openrlhf.parser import check

    with pytest.raises(RecipeError, match=r"unrecognized arguments: --ckpt\.save_stepz 3"):
        check([*words(recipe()), "--ckpt.save_stepz", "3"])
    with pytest.raises(RecipeError, match=r"requires n_samples_per_prompt > 1"):
        check([*words(recipe()), "--rollout.n_samples_per_prompt", "1"])


def test_ray_takes_the_job_that_a_cluster_is_given(tmp_path: Path) -> None:
    from ray.dashboard.modules.job.cli import stop, submit

    job = Job(words(recipe()), "http://head:8265", "run-0", tmp_path / "log.txt")
    begin = job.command.index("submit")
    given = submit.make_context("submit", job.command[begin + 1 :]).params
    assert (given["address"], given["submission_id"]) == ("http://head:8265", "run-0")
    assert given["entrypoint"] == ("python3", "-m", "openrlhf.cli.train_ppo_ray", *words(recipe()))
    ended = stop.make_context("stop", job.stop[job.stop.index("stop") + 1 :]).params
    assert (ended["address"], ended["job_id"]) == ("http://head:8265", "run-0")


def test_no_option_is_an_abbreviation_of_one_that_it_has() -> None:
    from agentgym_trainers.bridges.openrlhf.parser import check

    found = check(words(recipe()))
    for name in options(recipe()):
        assert hasattr(attrgetter(name.rpartition(".")[0])(found), name.rpartition(".")[2])
    assert (found.algo.kl.init_coef, found.data.max_len, found.eval.n_samples_per_prompt) == (0.0, 1024, 1)
    assert found.actor.lr_scheduler == "constant_with_warmup"
