"""The hunks that lead from one text to another, at a cost that whoever wrote the texts cannot drive up."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence

_AROUND = 3
"""Lines of context."""
_MOST_LINES = 100_000
"""Lines beyond which none are aligned."""
_MOST_STEPS = 300_000_000
"""How many comparisons `difflib` may need at worst, for all texts together."""

_Code = tuple[str, int, int, int, int]


def least(before: str, after: str) -> int:
    """Return how many characters the hunks have at least: all of a text that comes or goes, with a sign per line."""
    return len(before) + len(after) + before.count("\n") + after.count("\n") if not (before and after) else 0


class Hunks:
    """Makes the hunks of many texts; those that would take too long to align are replaced as one hunk each."""

    def __init__(self) -> None:
        self._left = _MOST_STEPS

    def of(self, before: str, after: str, *, room: int) -> str:
        r"""Return the hunks of a unified diff, nothing for equal texts.

        >>> print(Hunks().of("1\n2\n", "1\n3\n", room=100), end="")
        @@ -1,2 +1,2 @@
         1
        -2
        +3

        Raises:
            ValueError: they would have more than `room` characters.
        """
        if before == after:
            return ""
        head, tail = _shared(before, after)
        first, last = _back(before, head), _forth(before, len(before) - tail)
        shift = before.count("\n", 0, first)
        chars = last - first + len(after) - tail - head
        is_long = before.count("\n", first, last) + after.count("\n", head, len(after) - tail) > _MOST_LINES
        if is_long and chars > room:
            raise ValueError(f"the change is too large: a file of it differs in {chars} characters; make it smaller")
        old, new = _lines(before[first:last]), _lines(after[first : len(after) - len(before) + last])
        above = before.count("\n", first, head)
        below = len(_lines(before[len(before) - tail : last]))
        codes = self._codes(old[above : len(old) - below], new[above : len(new) - below], above, is_long=is_long)
        ends = ("equal", len(old) - below, len(old), len(new) - below, len(new))
        groups = _Known([("equal", 0, above, 0, above), *codes, ends]).get_grouped_opcodes(_AROUND)
        return "".join(_hunk(group, old, new, shift) for group in groups)

    def _codes(self, old: Sequence[str], new: Sequence[str], at: int, *, is_long: bool) -> list[_Code]:
        if is_long or (steps := _steps(old, new)) > self._left:
            return [("replace", at, at + len(old), at, at + len(new))]
        self._left -= steps
        found = difflib.SequenceMatcher(None, old, new).get_opcodes()
        return [(tag, at + i1, at + i2, at + j1, at + j2) for tag, i1, i2, j1, j2 in found]


class _Known(difflib.SequenceMatcher[str]):
    """Groups opcodes that were found before."""

    def __init__(self, codes: Sequence[_Code]) -> None:
        super().__init__()
        self._known = [one for one in codes if one[1] < one[2] or one[3] < one[4]]

    def get_opcodes(self) -> list[_Code]:  # type: ignore[override]
        return self._known


def _steps(old: Sequence[str], new: Sequence[str]) -> int:
    """Return a bound: each match may need a look at every pair of equal lines; `difflib` passes over popular ones."""
    counts = Counter(new)
    most = len(new) // 100 + 1 if len(new) >= 200 else len(new)
    pairs = sum(counts[line] for line in old if counts[line] <= most)
    return min(len(old), len(new)) * (len(old) + pairs)


def _hunk(group: Sequence[_Code], old: Sequence[str], new: Sequence[str], shift: int) -> str:
    (_, i1, _, j1, _), (_, _, i2, _, j2) = group[0], group[-1]
    lines = [f"@@ -{_range(i1 + shift, i2 + shift)} +{_range(j1 + shift, j2 + shift)} @@\n"]
    for tag, i1, i2, j1, j2 in group:
        if tag == "equal":
            lines += [f" {one}" for one in old[i1:i2]]
            continue
        lines += [f"-{one}" for one in old[i1:i2]]
        lines += [f"+{one}" for one in new[j1:j2]]
    return "".join(one if one.endswith("\n") else f"{one}\n\\ No newline at end of file\n" for one in lines)


def _range(start: int, end: int) -> str:
    """Return a range of lines as a hunk's head has it: from 1, an empty one after its line, a single one bare."""
    count = end - start
    return f"{start + 1}" if count == 1 else f"{start + 1 if count else start},{count}"


def _shared(before: str, after: str) -> tuple[int, int]:
    """Return how many characters of whole lines both texts begin with, and how many they end with after those."""
    head = before.rfind("\n", 0, _common(before, after)) + 1
    rest, other = before[head:], after[head:]
    tail = _common(rest[::-1], other[::-1])
    starts = [one[: len(one) - tail] for one in (rest, other)]
    if all(one.endswith("\n") or not one for one in starts):
        return head, tail
    end = rest.find("\n", len(rest) - tail)
    return head, 0 if end < 0 else len(rest) - end - 1


def _common(one: str, other: str) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _back(text: str, at: int) -> int:
    for _ in range(_AROUND):
        at = text.rfind("\n", 0, max(0, at - 1)) + 1
    return at


def _forth(text: str, at: int) -> int:
    for _ in range(_AROUND):
        end = text.find("\n", at)
        at = len(text) if end < 0 else end + 1
    return at


def _lines(text: str) -> list[str]:
    """Split at newlines only: a diff knows no other line ends."""
    *whole, last = text.split("\n")
    return [f"{one}\n" for one in whole] + ([last] if last else [])
