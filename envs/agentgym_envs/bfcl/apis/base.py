"""What every tool class shares: a state of plain data that is its own, and what of it is compared."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import yaml


@cache
def facts() -> Mapping[str, Any]:
    """Return the tables that the tools answer from, such as distances and prices; they are BFCL's (Apache-2.0)."""
    found: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("facts.yaml").read_text(encoding="utf-8"))
    return found


class Api:
    """One class of tools. Subclasses mark methods `@tool`; what these return is plain data, a ValueError is told."""

    defaults: ClassVar[Mapping[str, Any]] = {}
    """The state where a row configures nothing else."""
    private: ClassVar[frozenset[str]] = frozenset()
    """What of the state is not compared."""
    seed: ClassVar[int] = 141053
    """Numbers that a class makes up follow from this seed, so that the ids in BFCL's gold calls come out."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Begin with a row's configuration; names in it that this class does not know are left aside, as in BFCL."""
        self.state = copy.deepcopy({name: config.get(name, value) for name, value in self.defaults.items()})
        self.random = random.Random(config.get("random_seed", self.seed))

    def compared(self) -> dict[str, Any]:
        """Return what two worlds must agree on."""
        return {name: value for name, value in self.state.items() if name not in self.private}

    def require(self, name: str, sentence: str) -> Any:
        """Return a part of the state that must be set.

        Raises:
            ValueError: with the sentence, where it is not.
        """
        if not self.state[name]:
            raise ValueError(sentence)
        return self.state[name]
