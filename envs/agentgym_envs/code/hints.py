"""Guidance material for code tasks, in tiers: how to work, what to plan, what a known solution is made of.

After Agent-RLVR's plans and interaction hints; its third kind, feedback from failing tests, comes from the attempts
themselves (`agentgym.guidance.Guide.feedback`). No tier holds a line of a solution, a name or value of its own, or
anything of a hidden test: every word is the public part's, Python's, or stands in this file.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator
from typing import Any

from agentgym.graders.sources import parse
from agentgym.graders.twins import tests_of
from agentgym.task import Public, Task

_LOOPS = (ast.For, ast.While)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_METHODS = frozenset(name for kind in (str, list, dict, set, tuple, bytes) for name in dir(kind) if name[0] != "_")
_BUILTINS = frozenset(name for name in dir(builtins) if name[0] != "_" and name.islower())
_MAX_NAMES = 8

INTERACTION = (
    "Do not hand in at once. Send your code with `test`, read what it got and what was wanted, change what makes the "
    "difference, and test again. Use `submit` when the answer is `ok`."
)
_EDGES = "Then think of what hidden tests could try: nothing at all, repeated, negative and large inputs."


def with_hints(task: Task) -> Task:
    """Return the task with hints, weakest first, each holding those before it; hints of its own stay as they are."""
    if task.hints:
        return task
    tiers = [INTERACTION, _plan(task), _shape(task)]
    kept = [tier for tier in tiers if tier]
    return task.model_copy(update={"hints": tuple("\n".join(kept[: end + 1]) for end in range(len(kept)))})


def _plan(task: Task) -> str:
    """Return what to do, from the public part alone."""
    if task.grader == "stdio":
        return _program_plan(task.public)
    if task.grader == "unittest":
        return _suite_plan(task.public)
    return _function_plan(task.public)


def _function_plan(public: Public) -> str:
    entry, examples = public.data.get("entry"), public.data.get("examples")
    names = ", ".join(f"`{name}`" for name in entry) if isinstance(entry, list) else ""
    define = f"Plan: define {names}." if names else "Plan: define what the tests call."
    if not isinstance(examples, list) or not examples or not isinstance(examples[0], dict):
        return define
    return f"{define} Work `{examples[0]['call']}` out by hand before you write code. {_EDGES}"


def _suite_plan(public: Public) -> str:
    visible = public.data.get("visible")
    sources = [str(one) for one in visible.values()] if isinstance(visible, dict) else []
    suites = list(dict.fromkeys(suite for source in sources for suite, _ in tests_of(source)))
    if len(suites) > 1:
        return f"Plan: write one part at a time and test after each, in the order of its tests: {', '.join(suites)}."
    tests = [method for source in sources for _, method in tests_of(source)]
    return f"Plan: make the visible tests pass one after another: {', '.join(tests)}. {_EDGES}" if tests else ""


def _program_plan(public: Public) -> str:
    examples = public.data.get("examples")
    inputs = [str(one["stdin"]) for one in examples if isinstance(one, dict)] if isinstance(examples, list) else []
    counts = {len(one.splitlines()) for one in inputs}
    lines = f"{min(counts)} line{'s' if min(counts) != 1 else ''}" if len(counts) == 1 else "all lines"
    return f"Plan: read {lines} of input, compute, and print nothing but the answer. {_EDGES}"


def _shape(task: Task) -> str:
    """Return how long a known solution is, and which of Python's own means it uses; empty where none is known."""
    code = task.hidden.reference.get("code")
    if not isinstance(code, str) or not code.strip():
        return ""
    size = f"A known solution has {sum(bool(line.strip()) for line in code.splitlines())} lines"
    if task.grader == "stdio":
        return f"{size}."
    means = _means(code)
    return f"{size}, with {', '.join(means)}." if means else f"{size}."


def _means(code: str) -> list[str]:
    try:
        nodes = list(ast.walk(parse(code)))
    except SyntaxError:
        return []
    kinds = {
        "a loop": any(isinstance(one, _LOOPS) for one in nodes),
        "a comprehension": any(isinstance(one, _COMPREHENSIONS) for one in nodes),
        "recursion": any(_calls_itself(one) for one in nodes),
        "an exception": any(isinstance(one, ast.Raise) for one in nodes),
    }
    names = list(dict.fromkeys(_names(nodes)))[:_MAX_NAMES]
    return [*(kind for kind, there in kinds.items() if there), *(f"`{name}`" for name in names)]


def _names(nodes: list[ast.AST]) -> Iterator[str]:
    """Yield the names that are Python's own: modules, built-in functions, methods of built-in types."""
    for one in nodes:
        match one:
            case ast.Import(names=aliases):
                yield from (alias.name for alias in aliases if _standard(alias.name))
            case ast.ImportFrom(module=str(module)) if _standard(module):
                yield module
            case ast.Call(func=ast.Name(id=name)) if name in _BUILTINS:
                yield name
            case ast.Call(func=ast.Attribute(attr=name)) if name in _METHODS:
                yield name


def _standard(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def _calls_itself(node: Any) -> bool:
    return isinstance(node, ast.FunctionDef) and any(
        isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id == node.name
        for one in ast.walk(node)
    )
