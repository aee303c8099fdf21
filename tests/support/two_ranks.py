"""What two processes of torchrun do in a test.

`learn FILE` updates a learner, `update FILE URL` a server, and `train RUN` goes on with a run.
"""

from __future__ import annotations

import asyncio
import copy
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from token_rows import conversation
from torch.distributed.tensor import DTensor

from agentgym import registry
from agentgym.errors import AgentgymError
from agentgym.run import RunDirectory
from agentgym.tokens import TokenBuffer
from agentgym_envs.calculator import CalculatorEnv
from agentgym_trainers.batch import TokenBatch
from agentgym_trainers.engines.vllm_server import VLLMServerEngine
from agentgym_trainers.gae import ValueTargets
from agentgym_trainers.learner import Learner
from agentgym_trainers.lora import add_lora
from agentgym_trainers.losses import off_policy_codes
from agentgym_trainers.models import new_model
from agentgym_trainers.settings import (
    ComputeSettings,
    CriticSettings,
    LoraSettings,
    ModelSettings,
    OptimSettings,
    PolicySettings,
)
from agentgym_trainers.world import World


def attempt(group: int, number: int) -> TokenBuffer:
    """A conversation that begins like the others of its group, and goes on for longer or shorter."""
    buffer = conversation(group)
    own = [20 + number] * (2 + group + 3 * number)
    buffer.append_sampled(own, [-5.5] * len(own), 2)
    return buffer


BUFFERS = [attempt(group, number) for number in range(3) for group in range(4)]
BATCH = TokenBatch.of(BUFFERS)
ADVANTAGE = torch.randn(BATCH.ids_BL.shape, generator=torch.Generator().manual_seed(0)) * BATCH.sampled_BL
ON_POLICY = off_policy_codes(["none"] * len(BUFFERS))
TARGET = torch.rand(BATCH.ids_BL.shape, generator=torch.Generator().manual_seed(1)) * BATCH.sampled_BL
SHAPE = ModelSettings(vocab_size=300, hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, context_length=256)


VARIANTS: dict[str, tuple[Any, Any, bool]] = {
    "none": ("none", "own", False),
    "prefixes": ("prefixes", "own", False),
    **({"adapters": ("rows", "policy", True)} if find_spec("peft") else {}),
}
"""Packing, the critic's trunk, and whether adapters are trained."""


def made(world: World, variant: str) -> Learner:
    """A learner in the phase that the test trains in."""
    packing, trunk, adapters = VARIANTS[variant]
    model, _ = new_model(SHAPE, ["12+34"] * 3, seed=0, device="cpu")
    if adapters:
        add_lora(model, LoraSettings(rank=4), seed=0)
    learner = Learner(model, ComputeSettings(token_budget=60, packing=packing, recompute=packing != "none"), world)
    optim = OptimSettings(lr=1e-4)
    learner.begin(optim, 10)
    learner.sft_step(BUFFERS[:3])
    critic = CriticSettings(optim=optim, trunk=trunk)
    learner.begin(optim, 10, keep_reference=True, critic=critic, critic_steps=10)
    return learner


def learn(learner: Learner, steps: int) -> list[dict[str, float]]:
    """Take policy steps of two minibatches, critic and KL term included."""
    policy = PolicySettings(minibatches=2, loss_options={"kl_weight": 0.1})
    told = []
    for step in range(steps):
        values = ValueTargets(learner.values(BATCH), TARGET, BATCH.sampled_BL)
        order = torch.Generator().manual_seed(step)
        told.append(
            learner.policy_step(BATCH, ADVANTAGE, ON_POLICY, policy, values=values, generator=order, frozen=step == 0)
        )
    return told


def held(learner: Learner) -> dict[str, tuple[int, int]]:
    """How many numbers of each of a learner's sharded parameters this process holds, and how many there are."""
    assert learner.reference is not None
    networks = {"policy": learner._network, "reference": learner.reference}
    named = {f"{kind}.{name}": one for kind, made in networks.items() for name, one in made.named_parameters()}
    return {name: (one.to_local().numel(), one.numel()) for name, one in named.items() if isinstance(one, DTensor)}


class TwoVoices(CalculatorEnv):
    """Its tools print something else in each process, as a clock or a temporary folder would."""

    def step(self, action: Any) -> Any:
        """Act, and say more in the second process."""
        messages, *rest = super().step(action)
        said = " elapsed 97 ms, elapsed 98 ms elapsed" if os.environ.get("RANK") == "1" else " took 0.12 s"
        return tuple(one.model_copy(update={"content": one.content + said}) for one in messages), *rest


async def refusal(url: str) -> str:
    """Give a server the weights of a model; return what is wrong with it."""
    engine = VLLMServerEngine(new_model(SHAPE, ["12+34"], seed=0, device="cpu")[0], url=url)
    try:
        await engine.update_weights()
    except AgentgymError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        await engine.close()
    return "nothing"


def together(*arguments: str) -> None:
    """Run two ranks of this script under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, __file__, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def main() -> None:
    """Run one of them in this process."""
    torch.set_num_threads(1)
    what, path = sys.argv[1], Path(sys.argv[2])
    if what == "learn":
        world = World.join("cpu")
        found = {}
        for variant in VARIANTS:
            learner = made(world, variant)
            local = world.gather([held(learner)])
            metrics = learn(learner, 2)
            state = learner.state()
            again = made(world, variant)
            again.load_state(copy.deepcopy(state))
            more = learn(again, 2)
            found[variant] = {"metrics": metrics, "state": state, "more": more, "end": again.state(), "held": local}
        if world.main:
            torch.save(found, path)
        del learner, again
        world.leave()
        return
    if what == "update":
        world = World.join("cpu")
        told = world.gather([asyncio.run(refusal(sys.argv[3]))])
        if world.main:
            path.write_text("\n".join(told))
        world.leave()
        return
    from agentgym.recipe import Recipe
    from agentgym_trainers.native import NativeTrainer

    if "agentgym/Calculator-v0" not in registry.names("envs"):
        registry.register("agentgym/Calculator-v0", "agentgym_envs.calculator:CalculatorEnv")
    registry.register("tests/TwoVoices-v0", TwoVoices)
    run = RunDirectory.open(path)
    NativeTrainer().train(Recipe.parse(run.manifest.recipe).prepare(), run, resume=False)


if __name__ == "__main__":
    main()
