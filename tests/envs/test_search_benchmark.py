"""The benchmark of search measures both systems on the same passages."""

from __future__ import annotations

import pytest

from agentgym_envs.search.world import world
from benchmarks import search


def test_both_systems_are_measured_and_agree() -> None:
    pytest.importorskip("bm25s", reason="bm25s is not installed")
    passages = world(0, 100)
    found = search.run(passages, [f"What of {one.title}?" for one in passages[:30]], rounds=1)
    assert found["systems"].keys() == {"ours", "bm25s"}
    assert all(value > 0 for figures in found["systems"].values() for value in figures.values())
    assert all(figures["p95_ms"] >= figures["p50_ms"] for figures in found["systems"].values())
    assert found["overlap"] > 0.5
