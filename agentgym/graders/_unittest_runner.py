"""Runs single unittest methods against a submission inside a sandbox, each in a process that knows only that one test.

Sent as text: `python3 -I -S -c <this file>`. Standard input is one Python literal written by the grader. Three kinds of
process: the judge holds every test and the way out, and never runs or forks what does; the nursery holds nothing; a
worker, forked by the nursery, is handed one test and the submission. No memory or descriptor of the judge or the
nursery can be opened by a worker, so it cannot learn whether the test it runs is a true one or one that must fail.
"""

from __future__ import annotations

import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs milliseconds to import
    from typing import Any

KILL = 9
MESSAGE_BYTES = 2000
PATIENCE = 3.0  # how many times its limit a test may stand in the queue of a crowded machine


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


def receive(descriptor: int) -> bytes:
    """Read what `send` wrote."""
    return take(descriptor, int.from_bytes(take(descriptor, 8), "big"))


def forbid_inspection() -> None:
    """Close this process's memory and descriptors to processes of the same user."""
    import ctypes

    if ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) != 0:  # PR_SET_DUMPABLE
        raise OSError("this process cannot be closed to inspection")


class Modules:
    """Imports modules from memory, so that no file that anyone planted is ever looked at."""

    def __init__(self, sources: dict[str, str]) -> None:
        self.sources = sources

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:  # noqa: ARG002
        """Return where a module comes from, if it is one of ours."""
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, self) if name in self.sources else None  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> None:
        """Leave it to the import system."""

    def exec_module(self, module: Any) -> None:
        """Execute a module."""
        exec(compile(self.sources[module.__name__], f"{module.__name__}.py", "exec"), module.__dict__)


def framework() -> list[tuple[Any, str, Any]]:
    """Return every part of the test framework, to see later whether it is still in its place."""
    from unittest import case, result, suite

    homes = (
        case,
        case.TestCase,
        case.__dict__["_Outcome"],
        case._AssertRaisesContext,
        result.TestResult,
        suite,
        suite.TestSuite,
    )
    return [(home, name, one) for home in (*homes, suite.BaseTestSuite) for name, one in vars(home).items()]


def outcome(request: dict[str, Any]) -> bytes:
    """Run one test method: `P` passed, `F` and a reason: anything else, `B` and a reason: the submission is broken."""
    import unittest

    intact = framework()
    sys.meta_path.insert(0, Modules(request["modules"]))
    try:
        __import__(request["target"])
    except BaseException as error:  # noqa: BLE001
        return b"B" + f"{type(error).__name__}: {error}".encode("utf-8", "replace")
    tests = type(sys)("tests")
    sys.modules["tests"] = tests
    result = unittest.TestResult()
    try:
        exec(compile(request["source"], "tests.py", "exec"), tests.__dict__)
        unittest.TestSuite([getattr(tests, request["class"])(request["method"])]).run(result)
    except BaseException as error:  # noqa: BLE001
        return b"F" + f"{type(error).__name__}: {error}".encode("utf-8", "replace")
    trouble = result.failures + result.errors
    if any(home.__dict__.get(name) is not one for home, name, one in intact):
        return b"Fthe test framework was changed"
    if trouble:
        return b"F" + trouble[0][1].encode("utf-8", "replace")
    other = result.skipped or result.expectedFailures or result.unexpectedSuccesses or result.testsRun != 1
    return b"Fthe test did not run to its end" if other else b"P"


def work(orders: int, reports: int) -> None:
    """Take one order, run it and report; the order is not left where a later worker could read it."""
    request = eval(receive(orders), {})
    os.close(orders)
    found = outcome(request)
    send(reports, found[:1] + found[1:][-MESSAGE_BYTES:])


def nurse(starts: int, orders: int, reports: int) -> None:
    """Fork one worker for each byte of `starts`, and end it when it has reported or its time is up."""
    import unittest

    unittest.TestResult()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    while len(limit := take(starts, 8)) == 8:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setpgid(0, 0)
                for one in (reader, starts, reports):
                    os.close(one)
                work(orders, writer)
            finally:
                os._exit(0)
        os.close(writer)
        report = listen(reader, child, int.from_bytes(limit, "big") / 1000)
        os.close(reader)
        for kill, target in ((os.killpg, child), (os.kill, child)):
            try:
                kill(target, KILL)
            except OSError:  # it has ended by itself
                continue
        os.waitpid(child, 0)
        send(reports, report)


def waited(pid: int) -> float:
    """Return for how many seconds a process was ready to run and others ran instead."""
    try:
        file = os.open(f"/proc/{pid}/schedstat", os.O_RDONLY)
    except OSError:  # a kernel that does not count
        return 0.0
    numbers = os.read(file, 200).split()
    os.close(file)
    return int(numbers[1]) / 1e9 if len(numbers) > 1 else 0.0


def listen(reader: int, child: int, limit_s: float) -> bytes:
    """Return a worker's report: `T` it took too long, `D` it ended without one."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    data = b""
    began = time.monotonic()
    ends = began + limit_s
    while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8], "big"):
        left = ends - time.monotonic()
        if left <= 0 and ends < (later := began + limit_s + min(waited(child), PATIENCE * limit_s)):
            ends = later
            continue
        if left <= 0:
            return b"T"
        if not poll.poll(left * 1000):
            continue
        chunk = os.read(reader, 65536)
        data += chunk
        if not chunk or len(data) > 8 + MESSAGE_BYTES + 1:
            return b"D"
    return data[8:] or b"D"


def main() -> None:
    """Run every trial of the request; one line per trial: its index, the outcome's letter, the reason in hex."""
    forbid_inspection()
    out = os.dup(1)
    starts, orders, reports = os.pipe(), os.pipe(), os.pipe()
    if os.fork() == 0:
        try:
            for one in (out, starts[1], orders[1], reports[0]):
                os.close(one)
            nurse(starts[0], orders[0], reports[1])
        finally:
            os._exit(0)
    for one in (starts[0], orders[0], reports[1]):
        os.close(one)
    request = eval(sys.stdin.buffer.read(), {})
    ends = time.monotonic() + request["total_s"]
    common = {"modules": request["modules"], "target": request["target"]}
    for index, trial in enumerate(request["trials"]):
        left = min(request["case_s"], ends - time.monotonic())
        os.write(starts[1], max(1, int(left * 1000)).to_bytes(8, "big"))
        send(orders[1], ascii({**common, **trial}).encode())
        report = receive(reports[0])
        if not report:
            return
        os.write(out, b"%d %s %s\n" % (index, report[:1], report[1:].hex().encode()))
        if report[:1] == b"T":
            return


if __name__ == "__main__":
    main()
