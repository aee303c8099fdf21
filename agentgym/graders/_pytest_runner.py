"""Runs pytest once inside a sandbox, on files that the grader has put there, and signs what it saw.

Sent as text: `python3 -I -S -c <this file> <source of the worker>`. Standard input is one Python literal written by the
grader. Two processes: the keeper reads the request, with the key that signs the outcomes, only after it has forked the
worker, which runs pytest; the worker can open neither the keeper's memory nor its descriptors. Whatever else writes to
standard output, through a descriptor of this sandbox's first process or otherwise, cannot sign it.
"""

from __future__ import annotations

import os
import select
import sys
import time

KILL = 9
SYSTEM_PYTHON = "/usr/bin/python3"
REPORT_BYTES = 1 << 22
MESSAGE_BYTES = 1 << 18
PATIENCE = 3.0  # how many times its limit a run may stand in the queue of a crowded machine
NONCE_BYTES = 16


def inspection(allowed: bool) -> None:
    """Open or close this process's memory and descriptors to processes of the same user."""
    import ctypes

    if ctypes.CDLL(None).prctl(4, int(allowed), 0, 0, 0) != 0:  # PR_SET_DUMPABLE
        raise OSError("this process cannot be closed to inspection")


def send(descriptor: int, data: bytes) -> None:
    """Write a length and the data."""
    data = len(data).to_bytes(8, "big") + data
    while data:
        data = data[os.write(descriptor, data) :]


def take(descriptor: int, size: int) -> bytes:
    """Read exactly `size` bytes, fewer only at the end."""
    data = b""
    while len(data) < size and (chunk := os.read(descriptor, size - len(data))):
        data += chunk
    return data


def waited(pid: int) -> float:
    """Return for how many seconds a process was ready to run and others ran instead."""
    try:
        file = os.open(f"/proc/{pid}/schedstat", os.O_RDONLY)
    except OSError:  # a kernel that does not count
        return 0.0
    numbers = os.read(file, 200).split()
    os.close(file)
    return int(numbers[1]) / 1e9 if len(numbers) > 1 else 0.0


def work(orders: int, reports: int) -> None:
    """Run pytest as ordered, and report each message behind the order's nonce."""
    os.setsid()
    inspection(True)
    nonce = take(orders, NONCE_BYTES)
    order = eval(take(orders, int.from_bytes(take(orders, 8), "big")), {})
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    for descriptor in {orders, null} - {0, 1, 2}:
        os.close(descriptor)
    names = {"__name__": "judge", "__builtins__": __builtins__}
    exec(compile(sys.argv[1], "<judge>", "exec"), names)
    sys.argv[:] = ["pytest"]
    sys.modules["__main__"] = type(sys)("__main__")  # nothing of ours can be imported
    names["run"](order, lambda data: send(reports, nonce + data))  # type: ignore[operator]


def listen(reports: int, nonce: bytes, child: int, limit_s: float) -> tuple[str, list[str]]:
    """Return how the run ended and its messages: `ended`, `died`, `late`, or `forged` when anyone else has spoken."""
    poll = select.poll()
    poll.register(reports, select.POLLIN)
    data, total = b"", 0
    messages: list[str] = []
    began = time.monotonic()
    ends = began + limit_s
    while True:
        left = ends - time.monotonic()
        if left <= 0 and ends < (later := began + limit_s + min(waited(child), PATIENCE * limit_s)):
            ends = later
            continue
        if left <= 0:
            return "late", messages
        if not poll.poll(left * 1000):
            continue
        chunk = os.read(reports, 65536)
        if not chunk:
            return "died", messages
        data += chunk
        total += len(chunk)
        if total > REPORT_BYTES:
            return "forged", []
        while len(data) >= 8:
            size = int.from_bytes(data[:8], "big")
            if size > MESSAGE_BYTES:
                return "forged", []
            if len(data) < 8 + size:
                break
            message, data = data[8 : 8 + size], data[8 + size :]
            if message[:NONCE_BYTES] != nonce:
                return "forged", []
            messages.append(message[NONCE_BYTES:].decode("utf-8", "replace"))
            if messages[-1] == "end":
                return ("forged", []) if data else ("ended", messages[:-1])


def keep(out: int, orders: int, reports: int, child: int) -> None:
    """Read the request, order the run, and write one signed line about it."""
    request = eval(sys.stdin.buffer.read(), {})
    nonce = os.urandom(NONCE_BYTES)
    try:
        os.write(orders, nonce)
        send(orders, ascii(request["order"]).encode())
        os.close(orders)
        state, messages = listen(reports, nonce, child, request["total_s"])
    except BrokenPipeError:  # the worker ended before it was told anything
        state, messages = "died", []
    for kill, target in ((os.killpg, child), (os.kill, child)):
        try:
            kill(target, KILL)
        except OSError:  # it has ended by itself
            continue
    os.waitpid(child, 0)
    import hashlib
    import hmac
    import json

    body = json.dumps({"state": state, "messages": messages}).encode()
    line = hmac.new(bytes.fromhex(request["key"]), body, hashlib.sha256).hexdigest().encode() + b" " + body + b"\n"
    while line:
        line = line[os.write(out, line) :]


def find_pytest() -> None:
    """Go on under an interpreter that has pytest, or say that there is none, and leave."""
    import site
    from importlib.util import find_spec

    site.main()
    if find_spec("pytest") is not None:
        return
    if os.access(SYSTEM_PYTHON, os.X_OK) and os.path.realpath(sys.executable) != os.path.realpath(SYSTEM_PYTHON):
        os.execv(SYSTEM_PYTHON, [SYSTEM_PYTHON, *sys.orig_argv[1:]])
    os.write(1, f"missing {sys.executable}\n".encode())
    raise SystemExit(0)


def main() -> None:
    """Fork the worker, then read the request."""
    find_pytest()
    inspection(False)
    out = os.dup(1)
    orders, reports = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for one in (out, orders[1], reports[0]):
                os.close(one)
            work(orders[0], reports[1])
        finally:
            os._exit(0)
    os.close(orders[0])
    os.close(reports[1])
    keep(out, orders[1], reports[0], child)


if __name__ == "__main__":
    main()
