"""Compares mathematical expressions, each pair in a process of its own that can run nothing and is ended in time.

A program, started by `answer_math`: standard input holds one JSON request a line, standard output one JSON reply a
line. What an agent wrote is only ever parsed as LaTeX, by a grammar; should a library still try to execute a text,
open a file for writing, start a program or use the network, an audit hook refuses.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import resource
import select
import signal
import sys
import time
from types import FrameType
from typing import Any

REFUSED = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "urllib.", "ftplib.", "pty.", "webbrowser.")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# sympy evaluates the source text of every number, after an import that it executes; the grammar lets only digits in.
NUMERAL = re.compile(
    rb"from sympy import \*|\s*-?\s*(Integer|Float|Rational) *\( *'?[0-9.]+([eE][+-]?[0-9]+)?'? *\)\s*"
)
GENERATING = "sympy/polys/monomials.py"  # makes functions of so many arguments; nothing else enters their text
MEMORY_BYTES = 2 << 30
PATIENCE = 4.0  # how many times its processor time a comparison may last on the clock of a crowded machine


def refuse(event: str, details: tuple[Any, ...]) -> None:
    """Raise for whatever a parser of LaTeX has no business to do; what a module does while it loads is its own."""
    written = event == "open" and isinstance(details[2], int) and bool(details[2] & WRITING)
    compiled = event == "compile" and not (numeral(details[0]) or _caller(2).endswith(GENERATING))
    if (written or compiled or event.startswith(REFUSED)) and not importing():
        raise PermissionError(event)


def _caller(depth: int) -> str:
    return sys._getframe(depth).f_code.co_filename


def numeral(source: Any) -> bool:
    """Whether a source is one of those that sympy itself makes of a number's digits."""
    text = source.encode() if isinstance(source, str) else source
    return isinstance(text, bytes) and NUMERAL.fullmatch(text) is not None


def importing() -> bool:
    """Whether a module is being loaded."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def read(latex: str) -> Any:
    """Return the expression that a text is, as `math-verify` understands it; None if it understands nothing."""
    from math_verify import LatexExtractionConfig, parse

    found = parse(
        f"\\boxed{{{latex}}}",
        extraction_config=[LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    return found[0] if found and not isinstance(found[0], str) else None


def compare(out: int, gold: str, answer: str, digits: int) -> None:
    """Write one letter for each step that succeeds: the gold is an expression, the answer is one, they are the same."""
    from math_verify import verify

    wanted = read(gold)
    if wanted is None or not verify(wanted, wanted, float_rounding=digits, timeout_seconds=None):
        return
    os.write(out, b"g")
    found = read(answer)
    if found is None:
        return
    os.write(out, b"a")
    same = verify(wanted, found, float_rounding=digits, timeout_seconds=None)
    os.write(out, b"1" if same is True else b"0")


def judge(request: dict[str, Any]) -> dict[str, Any]:
    """Return the steps that one comparison came through, and how it ended."""
    seconds = request["seconds"]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.setpgid(0, 0)
            whole = max(1, int(seconds + 0.999))
            resource.setrlimit(resource.RLIMIT_CPU, (whole, whole))
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            sys.addaudithook(refuse)
            compare(writer, request["gold"], request["answer"], request["digits"])
        os._exit(0)
    os.close(writer)
    steps, ended = b"", False
    until = time.monotonic() + PATIENCE * seconds
    while not ended and (left := until - time.monotonic()) > 0:
        if select.select([reader], [], [], left)[0]:
            chunk = os.read(reader, 16)
            steps, ended = steps + chunk, not chunk
    os.close(reader)
    if not ended:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return {"steps": steps.decode("ascii", "replace"), "ended": ended and status == 0}


def main() -> None:
    """Answer requests until there are no more."""
    sys.dont_write_bytecode = True
    sys.setrecursionlimit(5000)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is not a reply
    logging.disable(logging.CRITICAL)
    # Once, so that no comparison pays for imports: the libraries load many of their parts at their first use.
    devnull = os.open(os.devnull, os.O_WRONLY)
    for gold, answer in (("\\frac{1}{2}+\\sin^2 x", "1.5-\\cos^2 x"), ("\\{1,2\\}", "2,1"), ("[1,\\infty)", "x\\ge 1")):
        compare(devnull, gold, answer, 6)
    out.write(b"ready\n")
    for line in sys.stdin.buffer:
        out.write(json.dumps(judge(json.loads(line))).encode() + b"\n")


if __name__ == "__main__":
    main()
