"""Asks a task's own checker about outputs, inside a sandbox where no submission has ever run.

Sent as text: `python3 -I -S -c <this file>`. Standard input is one Python literal written by the grader; standard
output is one line per item: `1` right, `0` wrong, `!` and a reason: the checker itself is malformed.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs milliseconds to import
    from typing import Any


def judge(names: dict[str, Any], item: tuple[str, str, str]) -> str:
    """Return the line that tells whether one output is right."""
    try:
        found = names["check"](*item)
    except (NameError, ImportError) as error:
        return f"!{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 -- an output that the checker cannot read is wrong
        return "0"
    return f"!it returned {type(found).__name__}, wanted True or False" if type(found) is not bool else f"{found:d}"


def main() -> None:
    """Judge every item of the request."""
    request = eval(sys.stdin.buffer.read(), {})  # text of others stands in it only as quoted strings
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the checker prints is not a verdict
    names: dict[str, Any] = {"__name__": "checker"}
    try:
        exec(compile(request["checker"], "<checker>", "exec"), names)
        problem = "" if callable(names.get("check")) else "it defines no function check(stdin, wanted, found)"
    except BaseException as error:  # noqa: BLE001
        problem = f"{type(error).__name__}: {error}"
    for item in request["items"]:
        line = f"!{problem}" if problem else judge(names, item)
        os.write(out, line.replace("\n", " ").encode("utf-8", "replace")[:300] + b"\n")


if __name__ == "__main__":
    main()
