"""Names are unique, typos are answered, and nothing is imported before it is asked for."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import pytest

from agentgym import registry
from agentgym.errors import AgentgymError, UnknownNameError
from agentgym.rewards import GatedRewards
from agentgym.testing import ToyEnv


def test_an_environment_registered_by_its_class_is_made_with_options() -> None:
    registry.register("test/Made-v0", ToyEnv, max_turns=3)
    assert registry.make("test/Made-v0").max_turns == 3
    assert registry.make("test/Made-v0", max_turns=5).max_turns == 5


def test_a_class_may_be_registered_by_a_decorator() -> None:
    @registry.register("test/Decorated-v0", max_turns=2)
    class Decorated(ToyEnv):
        """The toy."""

    assert type(registry.make("test/Decorated-v0")) is Decorated
    assert registry.make("test/Decorated-v0").max_turns == 2


def test_gymnasium_makes_our_environments_too() -> None:
    registry.register("test/Gym-v0", "agentgym.testing:ToyEnv")
    made = gymnasium.make("test/Gym-v0", max_turns=2)
    assert isinstance(made.unwrapped, ToyEnv)
    observation, _ = made.reset(seed=0)
    assert observation[0].role == "user"


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("import agentgym, gymnasium; assert 'agentgym/Code-v0' in gymnasium.registry", id="us-first"),
        pytest.param("import gymnasium, agentgym; assert 'agentgym/Code-v0' in gymnasium.registry", id="us-last"),
        pytest.param("import gymnasium; gymnasium.make('agentgym:agentgym/Code-v0')", id="by-module"),
    ],
)
def test_importing_us_makes_installed_environments_known_to_gymnasium(script: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def test_a_name_can_be_given_again_to_the_same_thing_only() -> None:
    registry.register("test/Twice-v0", "agentgym.testing:ToyEnv")
    registry.register("test/Twice-v0", "agentgym.testing:ToyEnv")
    with pytest.raises(AgentgymError, match="the environment name 'test/Twice-v0' is already taken"):
        registry.register("test/Twice-v0", "elsewhere:Env")


def test_an_installed_name_cannot_be_taken_by_something_else() -> None:
    with pytest.raises(AgentgymError, match="already taken"):
        registry.add("schemes", "g_ra", ToyEnv)


@pytest.mark.parametrize("wrong", ["Name-v0", "mine/Name", "mine/Name-v", "mine/other/Name-v0", "", "mine/Name-v0 "])
def test_an_environment_id_of_another_form_is_refused(wrong: str) -> None:
    with pytest.raises(AgentgymError, match="wanted an environment id like 'mine/Name-v0'"):
        registry.register(wrong, ToyEnv)


def test_a_typo_is_answered_with_the_nearest_name_of_its_kind() -> None:
    with pytest.raises(UnknownNameError, match="no reward scheme is registered as 'gra'; did you mean 'g_ra'"):
        registry.lookup("schemes", "gra")
    with pytest.raises(UnknownNameError, match="known: jsonl"):
        registry.lookup("trackers", "zzz")


def test_an_option_that_nothing_takes_is_one_sentence() -> None:
    registry.register("test/Option-v0", ToyEnv)
    with pytest.raises(AgentgymError, match=r"the environment 'test/Option-v0' .*'max_turn'.*it takes: .*max_turns"):
        registry.make("test/Option-v0", max_turn=3)


def test_built_in_names_come_from_the_same_entry_points_as_a_strangers() -> None:
    assert {"g_ra", "outcome", "ungated"} <= set(registry.names("schemes"))
    assert registry.lookup("schemes", "g_ra") is GatedRewards
    assert {"process"} <= set(registry.names("sandboxes"))


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_registered_name_leads_somewhere(kind: registry.Kind) -> None:
    for name in registry.names(kind):
        assert callable(registry.lookup(kind, name))
