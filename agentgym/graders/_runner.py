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
PATIENCE = 3.0  # how many times its limit a call may stand in the queue of a crowded machine
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


def ask(out: int, program: list[Any], entry: tuple[str, ...], call: str, limit_s: float) -> tuple[bytes, float]:
    """Answer one call in a new process, and end that process whatever it does; return the reply and its seconds."""
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
        return receive(reader, child, limit_s)
    finally:
        os.close(reader)
        for kill, target in ((os.killpg, child), (os.kill, child)):
            try:
                kill(target, KILL)
            except OSError:  # it has ended by itself
                continue
        os.waitpid(child, 0)


def waited(pid: int) -> float:
    """Return for how many seconds a process was ready to run and others ran instead."""
    try:
        file = os.open(f"/proc/{pid}/schedstat", os.O_RDONLY)
    except OSError:  # a kernel that does not count
        return 0.0
    numbers = os.read(file, 200).split()
    os.close(file)
    return int(numbers[1]) / 1e9 if len(numbers) > 1 else 0.0


def receive(reader: int, child: int, limit_s: float) -> tuple[bytes, float]:
    """Read one line, however many processes still hold the other end; waiting on a crowded machine does not count."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    data, reply = b"", b""
    began = time.monotonic()
    ends = began + limit_s
    while not reply:
        left = ends - time.monotonic()
        if left <= 0 and ends < (later := began + limit_s + min(waited(child), PATIENCE * limit_s)):
            ends = later
        elif left <= 0:
            reply = b'["timeout",0]'
        elif poll.poll(left * 1000):
            chunk = os.read(reader, 65536)
            data += chunk
            if b"\n" in chunk:
                reply = data.partition(b"\n")[0] or b'["died",0]'
            elif not chunk or len(data) > REPLY_BYTES + 2:
                reply = b'["died",0]'
    return reply, max(0.0, time.monotonic() - began - waited(child))


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
    left = request["total_s"]
    for index, call in enumerate(request["calls"]):
        reply, spent = b'["timeout",0]', 0.0
        if left > 0:
            try:
                reply, spent = ask(out, program, request["entry"], call, min(request["case_s"], left))
            except OSError:  # the submission used up the processes that it may have
                reply = b'["died",0]'
        left -= spent
        send(out, b"%d " % index + reply + b"\n")


if __name__ == "__main__":
    main()
