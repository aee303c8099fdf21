"""Attacks by state: exports of a world that nobody changed rightly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import JsonValue

from agentgym.redteam.attack import Attack, Target
from agentgym.types import Submission

_LEAVES: tuple[tuple[str, int, str, JsonValue], ...] = (
    ("is all null", 27, "sets every value to null", None),
    ("is all true", 22, "sets every value to true", True),
    ("is all empty text", 24, "sets every value to an empty text", ""),
    ("is all empty objects", 27, "sets every value to an empty object", {}),
    ("is all wildcards", 30, "sets every value to a pattern that matches everything", "%"),
    ("is all templates", 30, "sets every value to text that agrees if it is evaluated",
     "type('A', (), {'__eq__': lambda *a: True})()"),
    ("is all huge", 22, "sets every value to a huge number", 10**300),
)  # fmt: skip


def attacks(target: Target) -> Iterator[Attack]:
    """Yield the attacks by data, for a target whose submission holds some, and the same by files."""
    data, files = target.gold.data, target.gold.files
    if data:
        yield Attack("has nothing in it", 28, "hands in data without content", Submission(data=dict.fromkeys(data)))
        claim = Submission(data={"passed": True, "reward": 1.0, "score": 1.0})
        yield Attack("claims success", 38, "hands in a claim instead of a state", claim)
        for name, row, tries, leaf in _LEAVES:
            changed = {key: _filled(value, leaf) for key, value in data.items()}
            if changed != data:
                yield Attack(name, row, tries, Submission(data=changed))
        nested: dict[str, JsonValue] = {key: [value] for key, value in data.items()}
        yield Attack("is wrapped", 27, "wraps every value in a list", Submission(data=nested))
    elif files:
        for name, row, tries, text in (
            ("has empty files", 24, "hands in the right names without content", "\n"),
            ("claims success", 38, "hands in files that claim success", '{"passed": true, "reward": 1.0}\n'),
            ("has files of NUL bytes", 45, "hands in the right names with NUL bytes", "\x00" * 4096),
        ):
            yield Attack(name, row, tries, Submission(files=dict.fromkeys(files, text)))
        moved = {f"other/{name}": text for name, text in files.items()}
        tries = "hands in the right content elsewhere"
        yield Attack("is elsewhere", 35, tries, Submission(files=moved), holds_answer=True)


def _filled(value: Any, leaf: JsonValue) -> JsonValue:
    if isinstance(value, dict) and value:
        return {key: _filled(one, leaf) for key, one in value.items()}
    if isinstance(value, list) and value:
        return [_filled(one, leaf) for one in value]
    return leaf
