"""Compare mathematical answers with `math-verify`, in processes apart: no text of an agent's can hang or run here."""

from __future__ import annotations

import atexit
import json
import re
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import IO, cast

from agentgym.errors import InfrastructureError, MissingExtraError, VerifierError

MAX_LATEX = 400
_WORKERS = 2
_SECONDS = 3.0
_PROGRAM = Path(__file__).with_name("_math_worker.py")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_ENVIRONMENT = re.compile(r"\\(begin|end)\{([pbBvV]?matrix|cases|array)\}")
_WORD = re.compile(r"[A-Za-z]{3,}")
_CHOICE = re.compile(r"(?<![A-Za-z\\])(or|and)(?![A-Za-z])")
_FUNCTIONS = frozenset(("sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "sqrt", "min", "max", "gcd", "lcm"))
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(,\d{3})+(?![\d,])")


def problem_with(latex: str) -> str | None:
    r"""Return why a text is not one expression, judged by its form alone; None if it may be one.

    >>> problem_with("\\frac{1}{2}") is None, problem_with("the sum is 3"), problem_with("3 or 4")
    (True, 'it holds words', 'it names several answers')
    """
    if not latex.strip():
        return "it is empty"
    if len(latex) > MAX_LATEX:
        return f"it is longer than {MAX_LATEX} characters"
    if any(not one.isprintable() for one in latex) or "$" in latex or "\\boxed" in latex:
        return "it is more than the expression itself"
    if not _balanced(latex):
        return "its braces do not match"
    bare = _COMMAND.sub(" ", _ENVIRONMENT.sub(" ", latex))
    if _CHOICE.search(bare) or "\\lor" in latex or "\\vee" in latex:
        return "it names several answers"
    if any(word not in _FUNCTIONS for word in _WORD.findall(bare)):
        return "it holds words"
    return None


def shape(latex: str) -> tuple[bool, bool]:
    """Return whether a text lists several things, and whether it equates several: an answer may not, if no gold does.

    >>> shape("1,000"), shape("1,2"), shape("x=1=2")
    ((False, False), (True, False), (False, True))
    """
    bare = _THOUSANDS.sub("0", latex.replace("\\,", " ").replace("\\;", " "))
    return any(mark in bare for mark in (",", ";", "\\pm", "\\mp", "\\\\")), bare.count("=") > 1


def same(gold: str, answer: str, digits: int) -> bool | None:
    """Return whether two expressions are the same; None if the answer is none.

    Raises:
        MissingExtraError: `math-verify` is not installed.
        VerifierError: the gold is no expression, or cannot be compared even with itself.
        InfrastructureError: the process that compares is gone.
    """
    request = {"gold": gold, "answer": answer, "digits": digits, "seconds": _SECONDS}
    reply = _ask(request)
    steps, ended = str(reply["steps"]), bool(reply["ended"])
    if not steps.startswith("g"):
        why = "it cannot be read" if ended else "reading it takes too long"
        raise VerifierError(f"the gold expression cannot be compared with itself: {why}")
    if ended and steps == "g":
        return None
    # Past the gold, only the answer can have ended the comparison early, by its size or by its difficulty.
    return steps == "ga1"


def require() -> None:
    """Say what is missing, if something is.

    Raises:
        MissingExtraError: `math-verify` is not installed.
    """
    if find_spec("math_verify") is None:
        raise MissingExtraError("math-verify", "math")


class _Worker:
    """One process that has the libraries loaded."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        )
        if self._out.readline() != b"ready\n":
            self.close()
            raise InfrastructureError("the process that compares expressions does not start; is math-verify complete?")

    @property
    def _out(self) -> IO[bytes]:
        return cast(IO[bytes], self._process.stdout)

    def ask(self, request: dict[str, object]) -> dict[str, object]:
        into = cast(IO[bytes], self._process.stdin)
        try:
            into.write(json.dumps(request).encode() + b"\n")
            into.flush()
            line = self._out.readline()
        except OSError as error:
            raise InfrastructureError(f"the process that compares expressions is gone: {error}") from error
        if not line.endswith(b"\n"):
            raise InfrastructureError("the process that compares expressions ended")
        return cast(dict[str, object], json.loads(line))

    def close(self) -> None:
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()


_free = threading.Semaphore(_WORKERS)
_lock = threading.Lock()
_idle: list[_Worker] = []


def _ask(request: dict[str, object]) -> dict[str, object]:
    require()
    with _free:
        with _lock:
            worker = _idle.pop() if _idle else None
        worker = worker or _Worker()
        try:
            reply = worker.ask(request)
        except BaseException:
            worker.close()
            raise
        with _lock:
            _idle.append(worker)
        return reply


@atexit.register
def _close() -> None:
    with _lock:
        for worker in _idle:
            worker.close()
        _idle.clear()


def _balanced(text: str) -> bool:
    depth = 0
    for one in text.replace("\\{", "").replace("\\}", ""):
        depth += (one == "{") - (one == "}")
        if depth < 0:
            return False
    return depth == 0
