"""Runs whole test files inside a sandbox, in an order that a seed decides, and writes what became of each test.

Executed as `python3 -I -S <this file>`; standard input is one JSON object. What is run here is a repository's own
history and not an agent's work, so nothing guards the report: what is believed is what the grader says afterwards.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs milliseconds to import
    from typing import Any

SITE_FOLDERS = ("site-packages", "dist-packages")
SHOWN = 400


def main() -> None:
    """Run one order."""
    import site

    site.main()
    order = json.load(sys.stdin)
    os.environ.update(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTHONPATH=os.pathsep.join(order["roots"]))
    sys.dont_write_bytecode = True
    places = [index for index, path in enumerate(sys.path) if any(part in path for part in SITE_FOLDERS)]
    at = min(places, default=len(sys.path))
    sys.path[at:at] = order["roots"]
    os.chdir(order["root"])
    found = run(order)
    with open(order["report"], "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(found, file)


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Return the outcomes and errors of every test, and the files that could not be collected."""
    import pytest

    outcomes: dict[str, str] = {}
    messages: dict[str, str] = {}
    broken: dict[str, str] = {}
    phases: dict[str, list[Any]] = {}

    class Probe:
        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(self, items: list[Any]) -> None:
            random.Random(order["seed"]).shuffle(items)

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                lines = str(report.longrepr).strip().splitlines()
                broken[report.nodeid] = (lines or [""])[-1][-SHOWN:]

        def pytest_runtest_logreport(self, report: Any) -> None:
            seen = phases.setdefault(report.nodeid, [])
            seen.append(report)
            if report.when == "teardown":
                name = report.nodeid
                outcomes[name] = "duplicate" if name in outcomes else outcome(seen)
                crash = next((getattr(one.longrepr, "reprcrash", None) for one in seen if one.failed), None)
                if crash is not None:
                    messages[name] = str(crash.message)[:SHOWN]
                phases.pop(name)

    with tempfile.TemporaryDirectory() as private:
        ini = os.path.join(private, "pytest.ini")  # noqa: PTH118
        with open(ini, "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write("".join(["[pytest]\n", *(f"{name} = {value}\n" for name, value in order["ini"].items())]))
        off = ("cacheprovider", "junitxml", "pastebin", "doctest")
        words = [word for name in (*(f"no:{one}" for one in off), *order["plugins"]) for word in ("-p", name)]
        words += ["-c", ini, "--rootdir", order["root"], "--confcutdir", order["root"], "--import-mode", "append", "-q"]
        pytest.main([*words, *order["files"]], plugins=[Probe()])
    return {"outcomes": outcomes, "messages": messages, "broken": broken}


def outcome(reports: list[Any]) -> str:
    """Return what became of a test that has run."""
    if any(one.skipped for one in reports):
        return "xfailed" if any(hasattr(one, "wasxfail") for one in reports) else "skipped"
    if any(one.failed for one in reports):
        return "failed" if any(one.failed and one.when == "call" for one in reports) else "error"
    return "xpassed" if any(hasattr(one, "wasxfail") for one in reports) else "passed"


if __name__ == "__main__":
    main()
