"""Guidance for software engineering, from general to particular, in the manner of Agent-RLVR.

Tiers of `task.hints`, weakest first: how to work, which files, which functions, a plan. They are made of the gold
change and quote no line of it; the plan alone speaks of what the new code is made of. What a failed attempt was told by
its judges is added by the guidance itself (`Guide(feedback=True)`).
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from agentgym.graders.patches import FilePatch, Hunk, PatchError, parse
from agentgym.graders.sources import parse as parse_source

WORK = """How to work on this: find the code that the issue speaks of with `search`; read it with `editor` before you \
change it; write a small script that shows the problem and run it with `bash`; make the smallest change that mends it; \
run the script and the tests beside that code again; then call `submit`. Changes of test files do not count."""
_MOST = 6
_CONTEXT = re.compile(r"^@@ [^@]* @@ (.+)$", re.MULTILINE)
_NAME = re.compile(r"\b(?:def|class)\s+(\w+)")
_SAID: dict[type[ast.AST], str] = {
    ast.If: "a condition",
    ast.For: "a loop",
    ast.While: "a loop",
    ast.Try: "an exception handler",
    ast.Raise: "a raised exception",
    ast.Return: "a return",
    ast.FunctionDef: "a function",
    ast.ClassDef: "a class",
    ast.Import: "an import",
    ast.ImportFrom: "an import",
    ast.With: "a with block",
    ast.Assign: "an assignment",
}


class Contents(Protocol):
    """What holds the files before the change."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """By path."""
        ...


def tiers(patch: str, repository: Contents | None = None) -> tuple[str, ...]:
    """Return hints for a gold change, weakest first; without the repository, functions are those that git names.

    Returns:
        How to work; which files; which functions, where any is known; the plan. Of no readable diff, the first alone.
    """
    try:
        changes = parse(patch)
    except PatchError:
        return (WORK,)
    base = repository.files if repository is not None else {}
    files = f"What has to change is in: {_listed([_file(one) for one in changes])}."
    places = [(one, _functions(one, base) or _named_by_git(patch, one)) for one in changes]
    functions = _listed([f"{name} in {_file(one)}" for one, names in places for name in names])
    found = [WORK, files]
    if functions:
        found.append(f"{files} Look at: {functions}.")
    found.append("\n".join([found[-1], "A plan:", *_plan(places)]))
    return tuple(found)


def _file(patch: FilePatch) -> str:
    return patch.new or patch.old or ""


def _listed(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - _MOST} more" if len(unique) > _MOST else ""
    return ", ".join(unique[:_MOST]) + more


def _functions(patch: FilePatch, base: Mapping[str, bytes]) -> list[str]:
    """Return the functions and classes of the old file in which lines change, the innermost of each hunk."""
    if patch.old is None or patch.old not in base or not patch.old.endswith(".py"):
        return []
    try:
        module = parse_source(base[patch.old].decode())
    except (SyntaxError, UnicodeDecodeError):
        return []
    found: dict[str, None] = {}
    for hunk in patch.hunks:
        for line in _changed_lines(hunk):
            name = ".".join(_around(module, line))
            if name:
                found[f"`{name}`"] = None
    return list(found)


def _changed_lines(hunk: Hunk) -> Iterator[int]:
    """Yield the numbers of old lines that go, or beside which something comes."""
    same_head = 0
    while same_head < min(len(hunk.old), len(hunk.new)) and hunk.old[same_head] == hunk.new[same_head]:
        same_head += 1
    same_tail = 0
    most = min(len(hunk.old), len(hunk.new)) - same_head
    while same_tail < most and hunk.old[-1 - same_tail] == hunk.new[-1 - same_tail]:
        same_tail += 1
    first, last = hunk.start + same_head, hunk.start + len(hunk.old) - same_tail
    yield from range(first, max(last, first + 1))


def _around(home: ast.AST, line: int) -> list[str]:
    for one in ast.iter_child_nodes(home):
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if one.lineno <= line <= (one.end_lineno or one.lineno):
                return [one.name, *_around(one, line)]
        elif isinstance(one, ast.stmt) and one.lineno <= line <= (one.end_lineno or one.lineno):
            return _around(one, line)
    return []


def _named_by_git(patch: str, one: FilePatch) -> list[str]:
    """Return what git wrote behind this file's hunk headers."""
    part = next((text for text in re.split(r"(?m)^(?=diff --git )", patch) if f" b/{_file(one)}\n" in text), "")
    found = (_NAME.search(said) for said in _CONTEXT.findall(part))
    return list(dict.fromkeys(f"`{name[1]}`" for name in found if name is not None))


def _plan(places: Sequence[tuple[FilePatch, Sequence[str]]]) -> Iterator[str]:
    for number, (one, names) in enumerate(places, start=1):
        where = f" ({_listed(names)})" if names else ""
        if one.old is None:
            what = "create it"
        elif one.new is None:
            what = "delete it"
        elif one.old != one.new and not one.hunks:
            what = f"rename it from {one.old}"
        else:
            what = _sized(one.hunks)
        made = _made_of(one.hunks)
        yield f"{number}. {_file(one)}{where}: {what}{f'; the new code has {made}' if made else ''}."


def _sized(hunks: Sequence[Hunk]) -> str:
    gone = sum(len(_only(hunk.old, hunk.new)) for hunk in hunks)
    come = sum(len(_only(hunk.new, hunk.old)) for hunk in hunks)
    places = f" in {len(hunks)} places" if len(hunks) > 1 else ""
    if not gone:
        return f"add about {come} lines{places}"
    if not come:
        return f"remove about {gone} lines{places}"
    return f"replace about {gone} lines by {come}{places}"


def _only(lines: Sequence[str], others: Sequence[str]) -> list[str]:
    return list((Counter(lines) - Counter(others)).elements())


def _made_of(hunks: Sequence[Hunk]) -> str:
    """Return what kinds of statements the new lines begin."""
    kinds: dict[str, None] = {}
    for hunk in hunks:
        for line in _only(hunk.new, hunk.old):
            kind = _kind(line.strip())
            if kind:
                kinds[kind] = None
    return _listed(list(kinds))


def _kind(line: str) -> str | None:
    opened = line if not line.endswith(":") else f"{line} pass"
    if line.startswith("elif "):
        opened = opened[2:]
    elif line == "try:":
        opened = "try: pass\nfinally: pass"
    try:
        body = parse_source(opened).body
    except (SyntaxError, ValueError, RecursionError):
        return None
    return _SAID.get(type(body[0])) if body else None
