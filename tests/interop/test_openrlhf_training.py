"""OpenRLHF's whole Ray trainer, on this machine's CPU, in sandboxes that Ray's nodes lend; a killed run goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from agentgym.run import RunDirectory

pytestmark = [
    pytest.mark.skipif(
        find_spec("openrlhf") is None or find_spec("ray") is None,
        reason="needs OpenRLHF; `make test-openrlhf` installs it",
    ),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap"),
    pytest.mark.timeout(1500),
]

WARM, STEPS = 150, 6
RECIPE = (
    "code-grpo", "--backend", "openrlhf", "--profile", "tiny", "sandbox={name: ray, options: {backend: process}}",
    "environment.options={family: repair, count: 60, difficulty: 1, max_turns: 2, bad: 0.5}",
    "trainer.model={path: null, vocab_size: 384, hidden: 64, layers: 2, heads: 2, kv_heads: 1, intermediate: 128, "
    "context_length: 256}",
    f"trainer.sft.steps={WARM}", "trainer.sft.batch_size=16", "trainer.sft.demonstrations=60",
    "trainer.sft.optim.lr=0.005", f"trainer.policy.steps={STEPS}", "trainer.policy.tasks_per_step=4",
    "trainer.policy.attempts=4", "trainer.policy.optim.lr=0.003", "trainer.policy.loss=truncated",
    "limits.max_tokens_per_turn=40", "limits.max_tokens=80",
)  # fmt: skip
"""Few and small, but so that attempts differ: what does not vary teaches nothing."""
HINTS = "guidance={name: guide, options: {ratio: 'true', attempts: 2, feedback: true}}"
_PATIENCE_S = 600


@dataclass(frozen=True, slots=True)
class Trained:
    """What two starts of one training left behind."""

    run: RunDirectory
    interrupted: int
    """The exit code of the first."""
    first_log: str
    left: str
    """Processes of the first that outlived it."""
    resumed: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    from ray_on_cpu import ray_on_cpu

    place = tmp_path_factory.mktemp("openrlhf") / "run"
    short = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        with ray_on_cpu(short, gpus=2, resources={"agentgym_sandboxes": 16}) as environment:
            interrupted = _interrupt_after_a_checkpoint(place, environment)
            log = (place / "openrlhf" / "log.txt").read_text(encoding="utf-8", errors="replace")
            left = _processes_of(place)
            _forget_guidance(place)
            resumed = _agentgym("train", *RECIPE, "--resume", str(place), environment=environment)
            yield Trained(RunDirectory.open(place), interrupted, log, left, resumed)
    finally:
        shutil.rmtree(short, ignore_errors=True)


def _forget_guidance(place: Path) -> None:
    """Make a run one that was begun without hints, so that one run shows what both do: no other recipe resumes it."""
    manifest = place / "manifest.json"
    kept = json.loads(manifest.read_text())
    kept["recipe"]["guidance"] = {"name": "none", "options": {}}
    manifest.write_text(json.dumps(kept))


def _command(*words: str) -> list[str]:
    return [sys.executable, "-c", "from agentgym.cli import main; main()", *words]


def _agentgym(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*words), env=environment, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
    )


def _interrupt_after_a_checkpoint(place: Path, environment: dict[str, str]) -> int:
    """Train with guidance, press Ctrl-C once OpenRLHF has saved, and return the exit code."""
    latest = place / "openrlhf" / "checkpoints" / "_actor" / "latest"
    log = place.with_suffix(".log")
    with log.open("wb") as sink:
        process = subprocess.Popen(
            _command("train", *RECIPE, HINTS, "--run", str(place)), env=environment, stdout=sink,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + _PATIENCE_S
    while process.poll() is None and not latest.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert latest.exists(), log.read_text(errors="replace")[-3000:]
    process.send_signal(signal.SIGINT)
    return process.wait(120)


def _processes_of(place: Path) -> str:
    """Return the command lines that name a run's folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it ended meanwhile
                continue
            if str(place) in words:
                found.append(words)
    return "\n".join(found)


def test_ctrl_c_ends_openrlhf_with_us(trained: Trained) -> None:
    assert trained.interrupted != 0
    assert not trained.left


def test_groups_that_fail_are_guided_in_openrlhfs_workers(trained: Trained) -> None:
    shares = [float(one) for one in re.findall(r"'hinted': ([\d.e-]+)", trained.first_log)]
    assert shares
    assert max(shares) > 0


def test_a_resumed_run_goes_on_after_openrlhfs_checkpoint_to_the_last_step(trained: Trained) -> None:
    assert trained.resumed.returncode == 0, trained.resumed.stdout[-3000:] + trained.resumed.stderr[-3000:]
    steps = [line["step"] for line in trained.run.metrics() if "rollout/reward" in line]
    assert steps[-1] == WARM + STEPS
    assert steps == list(range(steps[0], WARM + STEPS + 1))


def test_every_step_learns_and_hands_its_weights_to_vllm(trained: Trained) -> None:
    import torch

    from agentgym_trainers.models import load_model

    lines = [line for line in trained.run.metrics() if "train/loss" in line]
    assert any(line["train/grad_norm"] > 0 for line in lines)
    assert all(line["rollout/unscored"] == 0 and line["rollout/sampled_tokens"] > 0 for line in lines)
    # The mean log of what vLLM and the learner say of a sampled token; both compute in bfloat16.
    apart = [abs(line["openrlhf/vllm_kl"]) for line in lines if line["openrlhf/hinted"] == 0]
    assert apart
    assert max(apart) < 0.02
    # So far would vLLM be off with the weights that it loaded as it started.
    start, _ = load_model(trained.run.path / "openrlhf" / "model", "cpu")
    end, tokenizer = load_model(trained.run.checkpoints / f"step-{WARM + STEPS:06}" / "model", "cpu")
    ids = torch.tensor([tokenizer.encode("f=lambda x:x*37+? f(0): got 0, want 47 submit")])
    with torch.no_grad():
        logp_start, logp_end = (one(ids).logits.log_softmax(-1) for one in (start, end))
    assert float((logp_start - logp_end).abs().mean()) > 0.2


def test_its_checkpoint_is_one_of_ours(trained: Trained) -> None:
    assert trained.run.path.joinpath("checkpoints", "latest").read_text().strip() == f"step-{WARM + STEPS:06}"
    found = _agentgym(
        "eval", "agentgym/Code-v0", "family=repair", "count=60", "difficulty=1", "max_turns=2", "--limit", "2",
        "--policy", f"checkpoint:{trained.run.path}", "--run", f"{trained.run.path}-evaluated",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "2 tasks (2 test), 1 attempts each" in found.stdout
    shown = _agentgym("show", str(trained.run.path))
    assert re.search(r"rollout/reward\s+-?\d", shown.stdout)
