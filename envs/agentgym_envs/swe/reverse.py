"""Turn a unified diff round: SWE-smith's patches plant a defect, and the solution is to take it back."""

from __future__ import annotations

import re

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(.*)", re.DOTALL)
_SWAPPED = {"new file mode ": "deleted file mode ", "deleted file mode ": "new file mode ",
            "old mode ": "new mode ", "new mode ": "old mode ",
            "rename from ": "rename to ", "rename to ": "rename from "}  # fmt: skip
_SIGNS = {"+": "-", "-": "+"}


def reverse(diff: str) -> str:
    r"""Return the diff that takes another one back.

    >>> print(reverse("--- a/f\n+++ b/f\n@@ -1,2 +1 @@\n a\n-b\n"), end="")
    --- a/f
    +++ b/f
    @@ -1 +1,2 @@
     a
    +b
    """
    found: list[str] = []
    lines = diff.split("\n")
    old = new = 0
    for place, line in enumerate(lines):
        if (old > 0 or new > 0) and line[:1] in (" ", "+", "-", ""):
            old -= line[:1] != "+"
            new -= line[:1] != "-"
            found.append(_SIGNS.get(line[:1], line[:1]) + line[1:])
        elif hunk := _HUNK.fullmatch(line):
            old, new = int(hunk[2] or 1), int(hunk[4] or 1)
            before, after = _range(hunk[1], hunk[2]), _range(hunk[3], hunk[4])
            found.append(f"@@ -{after} +{before} @@{hunk[5]}")
        elif line.startswith("--- ") and lines[place + 1 : place + 2] and lines[place + 1].startswith("+++ "):
            found.append("--- " + _named(lines[place + 1], "b/", "a/"))
        elif line.startswith("+++ ") and place and lines[place - 1].startswith("--- "):
            found.append("+++ " + _named(lines[place - 1], "a/", "b/"))
        else:
            found.append(_header(line))
    return "\n".join(found)


def _named(line: str, prefix: str, other: str) -> str:
    name = line[4:]
    return other + name.removeprefix(prefix) if name.startswith(prefix) else name


def _range(start: str, count: str | None) -> str:
    return start if count is None else f"{start},{count}"


def _header(line: str) -> str:
    if line.startswith("index ") and (found := re.fullmatch(r"index (\w+)\.\.(\w+)(.*)", line)):
        return f"index {found[2]}..{found[1]}{found[3]}"
    if line.startswith("diff --git a/") and (found := re.fullmatch(r"diff --git a/(.+) b/(.+)", line)):
        return f"diff --git a/{found[2]} b/{found[1]}"
    return next((other + line[len(word) :] for word, other in _SWAPPED.items() if line.startswith(word)), line)
