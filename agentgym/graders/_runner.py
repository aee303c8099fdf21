"""Answers calls of a submission inside a sandbox, each in a process of its own, and never knows what is wanted.

Sent as text: `python3 -I -S -c <this file>`. Standard input is one Python literal written by the grader; every line of
the private copy of standard output is `<index of the call> <answer as JSON>`. Imports are few because each costs time.
"""

from __future__ import annotations

import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs milliseconds to import
    from typing import Any

FILE = "<submission>"
KILL = 9  # the signal module costs five milliseconds to import
DEPTH = 40
REPLY_BYTES = 1 << 18
# Imported once instead of once per call; importing any of them has no effect beyond time.
COMMON = (
    *("re", "math", "cmath", "random", "itertools", "functools", "collections", "heapq", "bisect", "string", "copy"),
    *("operator", "typing", "datetime", "json", "decimal", "fractions", "statistics", "dataclasses", "enum"),
)
SEQUENCES: dict[type, str] = {list: "l", tuple: "t", set: "e", frozenset: "z"}
PLAIN: tuple[Any, ...] = (bool, int, float, str, bytes, complex, list, tuple, set, frozenset, dict)


class NotPlainError(Exception):
    """The value cannot cross as data."""


class BrokenError(Exception):
    """The submission does not load."""


def encode(value: Any, depth: int = 0) -> str:
    """Write a value as JSON pairs `[tag, payload]` that keep its exact type."""
    kind = type(value)
    if depth > DEPTH:
        raise NotPlainError("the value is nested too deeply")
    if value is None:
        return '["n",0]'
    if kind is bool:
        return f'["o",{value:d}]'
    if kind is int:
        return f'["i","{value:x}"]'
    if kind is float:
        return f'["f","{value.hex()}"]'
    if kind is complex:
        return f'["c",["{value.real.hex()}","{value.imag.hex()}"]]'
    if kind is str:
        return f'["s","{value.encode("utf-8", "surrogatepass").hex()}"]'
    if kind is bytes:
        return f'["b","{value.hex()}"]'
    if kind in SEQUENCES:
        return f'["{SEQUENCES[kind]}",[{",".join([encode(one, depth + 1) for one in value])}]]'
    if kind is dict:
        pairs = [f"[{encode(key, depth + 1)},{encode(one, depth + 1)}]" for key, one in value.items()]
        return f'["d",[{",".join(pairs)}]]'
    return encode_other(value, kind, depth)


def encode_other(value: Any, kind: type, depth: int) -> str:
    """Write an instance of a subclass (a Counter, a named tuple) as its class's name and its plain base."""
    for base in PLAIN:
        if isinstance(value, base):
            plain = str.__str__(value) if base is str else base(value)
            return f'["x",[{encode(kind.__name__)},{encode(plain, depth + 1)}]]'
    raise NotPlainError(f"the value has the type {kind.__name__:.60}, which is not plain data")


def describe(error: BaseException | None) -> str:
    """Name an error and the submission's line that it came from."""
    line, trace = 0, error.__traceback__ if error else None
    while trace:
        if trace.tb_frame.f_code.co_filename == FILE:
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename == FILE:
        return f"line {error.lineno}: {type(error).__name__}: {error.msg}"[:300]
    where = f"line {line}: " if line else ""
    return f"{where}{type(error).__name__}: {error}"[:300]


def failure(kind: str, error: BaseException | None) -> str:
    """Write why there is no value."""
    try:
        return f'["{kind}",{encode(describe(error))}]'
    except BaseException:  # noqa: BLE001 -- an error whose text raises
        return f'["{kind}",{encode(type(error).__name__)}]'


def load(program: list[Any], entry: tuple[str, ...]) -> dict[str, Any]:
    """Execute the submission in a module of its own."""
    module = type(sys)("submission")
    sys.modules["submission"] = module
    try:
        for part in program:
            exec(part, module.__dict__)
    except BaseException as error:
        raise BrokenError from error
    missing = [name for name in entry if name not in module.__dict__]
    if missing:
        raise BrokenError from NameError(f"name {missing[0]!r} is not defined")
    return module.__dict__


def answer(program: list[Any], entry: tuple[str, ...], call: str) -> str:
    """Return the reply to one call."""
    try:
        value = eval(compile(call, "<call>", "eval"), load(program, entry))
    except BrokenError as error:
        return failure("broken", error.__cause__)
    except BaseException as error:  # noqa: BLE001
        return failure("raised", error)
    try:
        reply = f'["value",{encode(value)}]'
    except NotPlainError as error:
        return f'["data",{encode(str(error))}]'
    except BaseException as error:  # noqa: BLE001
        return failure("data", error)
    return reply if len(reply) <= REPLY_BYTES else f'["data",{encode("the value is too large")}]'


def ask(out: int, program: list[Any], entry: tuple[str, ...], call: str, limit_s: float) -> bytes:
    """Answer one call in a new process, and end that process whatever it does."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            os.close(out)
            os.close(reader)
            send(writer, answer(program, entry, call).encode() + b"\n")
        finally:
            os._exit(0)
    os.close(writer)
    try:
        return receive(reader, time.monotonic() + limit_s)
    finally:
        os.close(reader)
        for kill, target in ((os.killpg, child), (os.kill, child)):
            try:
                kill(target, KILL)
            except OSError:  # it has ended by itself
                continue
        os.waitpid(child, 0)


def receive(reader: int, deadline: float) -> bytes:
    """Read one line, however many processes still hold the other end."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    data = b""
    while b"\n" not in data:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return b'["timeout",0]'
        chunk = os.read(reader, 65536)
        data += chunk
        if not chunk or len(data) > REPLY_BYTES + 2:
            return b'["died",0]'
    return data.partition(b"\n")[0]


def send(descriptor: int, data: bytes) -> None:
    """Write all of it."""
    while data:
        data = data[os.write(descriptor, data) :]


def main() -> None:
    """Answer every call of the request."""
    request = eval(sys.stdin.buffer.read(), {})  # written by the grader, not by the agent
    out = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    for name in COMMON:
        if "import " + name in request["code"] or "from " + name in request["code"]:
            __import__(name)
    try:
        program = [compile(part, FILE, "exec", dont_inherit=True) for part in (request["setup"], request["code"])]
    except BaseException as error:  # noqa: BLE001
        send(out, b"0 " + failure("syntax", error).encode() + b"\n")
        return
    ends = time.monotonic() + request["total_s"]
    for index, call in enumerate(request["calls"]):
        left = min(request["case_s"], ends - time.monotonic())
        try:
            reply = ask(out, program, request["entry"], call, left) if left > 0 else b'["timeout",0]'
        except OSError:  # the submission used up the processes that it may have
            reply = b'["died",0]'
        send(out, b"%d " % index + reply + b"\n")


if __name__ == "__main__":
    main()
