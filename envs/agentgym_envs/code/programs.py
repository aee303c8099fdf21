r"""Read problems whose solution is a program: what it is given on standard input, and what it must print.

One JSON object per line:

    {"id": "sum", "prompt": "Add two numbers.", "language": "c",
     "tests": [{"input": "1 2\n", "output": "3\n", "public": true}, {"input": "20 -5\n", "output": "15\n"}],
     "solutions": {"c": "…"}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, JsonValue

from agentgym.errors import AgentgymError
from agentgym.graders.languages import Language, read
from agentgym.graders.stdio_cases import StdioShared
from agentgym.sandbox import SandboxSpec
from agentgym.task import SPLITS, Hidden, Public, Task
from agentgym.types import Record, Split
from agentgym_envs.code.refusals import FileTasks, Refused, Row
from agentgym_envs.code.splits import digest, split_of

VISIBLE = 1
"""How many tests are shown where the row does not say which."""
_SHOWN_EXAMPLES = 2
_LIMITS = ("build_s", "cpu_s", "case_s", "total_s", "output_kb")
_INPUTS, _OUTPUTS = ("input", "inputs", "stdin"), ("output", "outputs", "stdout")


class Toolchain(Record):
    """Which language programs are written in, where a row does not say, and where each language is found."""

    language: Annotated[tuple[str, ...], Field(min_length=1)] = ("python",)
    """Names; of several, the hash of a task's id chooses."""
    images: dict[str, str] = {}
    """The image of a language's sandboxes, by the language's name; others get the backend's own."""

    def choose(self, name: str, asked: Any = None) -> Language:
        """Return the language of a task: the one that it asks for, else one of these.

        Raises:
            ValueError: there is no such language, or its description is malformed.
        """
        given = asked or self.language[int(digest(name), 16) % len(self.language)]
        try:
            return read(given)
        except AgentgymError as error:
            raise ValueError(str(error)) from error


def tasks(path: Path, toolchain: Toolchain) -> FileTasks:
    """Return the tasks of a file; where a row names no split, the hash of its id decides."""
    return FileTasks("stdio", path, lambda row: convert(row, toolchain), lambda row: str(row["id"]))


def convert(row: Row, toolchain: Toolchain) -> Task:
    """Return the task of a row.

    Raises:
        Refused: no hidden test is left beside the visible ones.
    """
    visible, hidden = tests_of(row)
    return task_of(row, visible, hidden, toolchain, {"mode": "trailing"})


def task_of(
    row: Row, visible: Sequence[JsonValue], hidden: Sequence[JsonValue], toolchain: Toolchain, output: dict[str, Any]
) -> Task:
    """Return a program task; `output` is how outputs are compared where the row does not say."""
    name = str(row["id"])
    language = toolchain.choose(name, row.get("language"))
    asked = row.get("language")
    checker = row.get("checker")
    public: dict[str, Any] = {
        "languages": [asked if isinstance(asked, dict) else language.name],
        "examples": [*visible],
        **{limit: row[limit] for limit in _LIMITS if row.get(limit) is not None},
    }
    if checker is None:
        public["output"] = row.get("output") or output
    StdioShared.model_validate(public)
    reference = _reference(row, language.name)
    place = {"image": toolchain.images.get(language.name), **(row.get("sandbox") or {})}
    # The agent's own sandbox must hold the language's runtime, too; graders raise theirs by themselves.
    place.setdefault("memory_mb", max(SandboxSpec().memory_mb, language.memory_mb))
    return Task(
        id=name,
        split=split_in(row, name),
        public=Public(prompt=_told(str(row["prompt"]), language, visible), data=public),
        hidden=Hidden(
            data={"cases": [*hidden], **({"checker": checker} if checker is not None else {})},
            reference={"code": reference} if reference is not None else {},
        ),
        hints=hints_of(row),
        sandbox=SandboxSpec(**{key: one for key, one in place.items() if one is not None}),
        grader="stdio",
        difficulty=difficulty_of(row),
    )


def tests_of(row: Row) -> tuple[list[JsonValue], list[JsonValue]]:
    """Return the visible and the hidden cases of a row, each input once.

    Raises:
        Refused: no hidden test is left, or a program that always prints the same would pass.
    """
    shown: list[dict[str, Any]] = []
    hidden: list[dict[str, Any]] = []
    for case, public in pairs(row["tests"]):
        (shown if public else hidden).append(case)
    shown = [case for case, _ in pairs(row.get("public_tests") or [])] + shown
    if not shown:
        shown, hidden = hidden[:VISIBLE], hidden[VISIBLE:]
    known: set[str] = set()
    visible, decisive = _new(shown, known), _new(hidden, known)
    if not decisive:
        raise Refused(f"wanted a hidden test with an input of its own, found only {len(visible)} visible ones")
    if row.get("checker") is None and len({str(case["stdout"]).strip() for case in (*visible, *decisive)}) < 2:
        raise Refused("every test wants the same output")
    return [*visible], [*decisive]


def pairs(given: Any) -> list[tuple[dict[str, Any], bool]]:
    r"""Return tests as cases of the `stdio` grader, each with whether it is public.

    Tests are a list of objects with `input`, `output` and perhaps `args` and `public`; or one object with a list of
    inputs and a list of outputs, as many public sets have it; or the JSON text of either.

    >>> pairs('{"inputs": ["1", ["2", "3"]], "outputs": ["a", "b"]}')
    [({'stdin': '1', 'stdout': 'a'}, False), ({'stdin': '2\n3', 'stdout': 'b'}, False)]

    Raises:
        ValueError: they are of another form.
    """
    if isinstance(given, str):
        given = json.loads(given)
    if isinstance(given, Mapping):
        inputs, outputs = _named(given, _INPUTS), _named(given, _OUTPUTS)
        if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
            raise ValueError("wanted as many inputs as outputs in 'tests'")
        given = [{"input": one, "output": other} for one, other in zip(inputs, outputs, strict=True)]
    if not isinstance(given, list) or not all(isinstance(one, Mapping) for one in given):
        raise ValueError(f"wanted 'tests' as a list of objects with input and output, found {str(given)[:60]!r}")
    return [(_case(one), bool(one.get("public", False))) for one in given]


def split_in(row: Row, name: str) -> Split:
    """Return the row's own split, or one by the hash of the id.

    Raises:
        ValueError: it names one that does not exist.
    """
    named = row.get("split")
    if named is None:
        return split_of(digest(name))
    found = next((one for one in SPLITS if one == named), None)
    if found is None:
        raise ValueError(f"wanted a split among {', '.join(SPLITS)}, found {named!r}")
    return found


def hints_of(row: Row) -> tuple[str, ...]:
    """Return the row's own hints, weakest first."""
    given = row.get("hints") or ()
    return (given,) if isinstance(given, str) else tuple(map(str, given))


def difficulty_of(row: Row) -> float | None:
    """Return the row's difficulty where it is a number; words such as `easy` have no place on the dial."""
    given = row.get("difficulty")
    return float(given) if isinstance(given, int | float) else None


def _case(one: Mapping[str, Any]) -> dict[str, Any]:
    case: dict[str, Any] = {"stdin": _text(_named(one, _INPUTS)), "stdout": _text(_named(one, _OUTPUTS))}
    return {**case, "args": [str(word) for word in one["args"]]} if one.get("args") else case


def _named(one: Mapping[str, Any], names: Sequence[str]) -> Any:
    found = next((name for name in names if name in one), None)
    if found is None:
        raise KeyError(names[0])
    return one[found]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    raise ValueError(f"wanted an input or output as a text or a list of lines, found {str(value)[:60]!r}")


def _new(cases: Sequence[dict[str, Any]], known: set[str]) -> list[dict[str, Any]]:
    found = []
    for case in cases:
        key = json.dumps([case["stdin"], case.get("args")])
        if key not in known:
            known.add(key)
            found.append(case)
    return found


def _reference(row: Row, language: str) -> str | None:
    solutions = row.get("solutions") or {}
    if not isinstance(solutions, Mapping):
        raise ValueError(f"wanted 'solutions' by language, found {type(solutions).__name__}")
    found = solutions.get(language)
    return None if found is None else str(found)


def _told(prompt: str, language: Language, visible: Sequence[JsonValue]) -> str:
    examples = "".join(_example(case) for case in visible[:_SHOWN_EXAMPLES] if isinstance(case, dict))
    return (
        f"{prompt.strip()}\n\nWrite a program in {language.name} that reads standard input and prints the answer."
        f"{examples}"
    )


def _example(case: Mapping[str, JsonValue]) -> str:
    arguments = case.get("args")
    given = f" with the arguments {json.dumps(arguments, ensure_ascii=False)}" if arguments else ""
    stdin, stdout = str(case["stdin"]).rstrip("\n"), str(case["stdout"]).rstrip("\n")
    return f"\n\nInput{given}:\n{stdin}\nOutput:\n{stdout}"
