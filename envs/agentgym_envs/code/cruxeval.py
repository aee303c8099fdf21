"""Read CRUXEval tasks: say what a function returns for an input."""

from __future__ import annotations

from pathlib import Path

from agentgym.graders.sources import parse
from agentgym.graders.values import encode_literal
from agentgym.task import Hidden, Public, Task
from agentgym_envs.code.refusals import FileTasks, Refused, Row
from agentgym_envs.code.splits import digest, split_of

ENTRY = "answer"


def tasks(path: Path) -> FileTasks:
    """Return the tasks of a file; splits go by the hash of the id."""
    return FileTasks("cruxeval", path, convert, lambda row: f"cruxeval/{row['id']}")


def convert(row: Row) -> Task:
    """Return the task of a row; its solution computes the output, so that a wrong row shows.

    Raises:
        Refused: its output is no literal.
    """
    code, given, output = row["code"].strip(), row["input"].strip(), row["output"].strip()
    try:
        parse(f"f({given})")
        encode_literal(output)
    except (ValueError, SyntaxError) as error:
        raise Refused(f"wanted an input and an output that are literals, found {output[:60]!r}") from error
    name = f"cruxeval/{row['id']}"
    return Task(
        id=name,
        split=split_of(digest(name)),
        public=Public(
            prompt=f"What does `f({given})` return? Hand in a function `{ENTRY}()` that returns the value.\n\n{code}",
            data={"entry": [ENTRY], "comparison": {"mode": "python"}},
        ),
        hidden=Hidden(
            data={"cases": [{"call": f"{ENTRY}()", "literal": output}]},
            reference={
                "code": f"{code}\n\n\ndef {ENTRY}():\n    return f({given})\n",
                "stub": f"def {ENTRY}():\n    pass\n",
            },
        ),
    )
