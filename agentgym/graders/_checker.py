"""Evaluates a task's own conditions on values, inside a sandbox that holds no code of the agent's.

Sent as text: `python3 -I -S -c <this file>`. Standard input is one Python literal written by the grader; standard
output is one line per condition: `1` it holds, `0` it does not, `!` and a reason: the condition itself is malformed.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs milliseconds to import
    from typing import Any


def decode(tree: Any) -> Any:
    """Build the value that a tree of `(tag, payload)` pairs stands for."""
    tag, payload = tree
    if tag == "x":
        return decode(payload[1])
    if tag == "c":
        return complex(*payload)
    if tag == "d":
        return {decode(key): decode(value) for key, value in payload}
    if tag in "ltez":
        return {"l": list, "t": tuple, "e": set, "z": frozenset}[tag](decode(one) for one in payload)
    return bool(payload) if tag == "o" else payload


def judge(setup: str, tree: Any, condition: str) -> str:
    """Return the line that tells whether one condition holds."""
    names: dict[str, Any] = {"__name__": "conditions"}
    try:
        value = decode(tree)
        exec(setup, names)
        names["_"] = value
        return "1" if eval(compile(condition, "<condition>", "eval"), names) else "0"
    except (NameError, SyntaxError, ImportError) as error:
        return f"!{type(error).__name__}: {error}".replace("\n", " ")[:300]
    except BaseException:  # noqa: BLE001
        return "0"


def main() -> None:
    """Judge every item of the request."""
    request = eval(sys.stdin.buffer.read(), {"inf": float("inf"), "nan": float("nan")})
    for tree, condition in request["items"]:
        sys.stdout.write(judge(request["setup"], tree, condition) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
