"""How far a sandboxed command and a whole verdict are above their floor: medians and ratios, measured in one run.

python benchmarks/sandbox_floor.py --rounds 50
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

from agentgym import Hidden, Public, Submission, Task, registry

# The system's own interpreter, which is also the sandbox's: a version manager's wrapper would be no floor.
PASS = [shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin") or "python3", "-I", "-S", "-c", "pass"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="measurements of each row, taken in turn")
    parser.add_argument("--sandbox", default="process", help="a registered sandbox backend")
    options = parser.parse_args()
    backend = registry.create("sandboxes", options.sandbox)
    seconds: dict[str, list[float]] = {}
    grader, task = registry.create("graders", "function"), _task()
    submission = Submission(files={"solution.py": "def f(x):\n    return 3 * x + 47"})
    with backend.start(task.sandbox) as box:
        rows: dict[str, Callable[[], Any]] = {
            "bare true": lambda: subprocess.run(["true"], check=True),
            "sandboxed true": lambda: box.exec(["true"]),
            "bare python": lambda: subprocess.run(PASS, check=True),
            "sandboxed python": lambda: box.exec(PASS),
            "verdict over 8 cases": lambda: grader.grade(task, submission, backend),
        }
        for _ in range(options.rounds):
            for name, row in rows.items():
                began = time.perf_counter()
                row()
                seconds.setdefault(name, []).append(time.perf_counter() - began)
    backend.close()
    floors = {"sandboxed true": "bare true", "sandboxed python": "bare python", "verdict over 8 cases": "bare python"}
    print(f"{'row':24}{'median ms':>12}{'p95 ms':>10}{'x floor':>10}")
    for name, found in seconds.items():
        median, late = statistics.median(found), statistics.quantiles(found, n=20)[-1]
        ratio = median / statistics.median(seconds[floors.get(name, name)])
        print(f"{name:24}{1000 * median:12.1f}{1000 * late:10.1f}{ratio:10.1f}")


def _task() -> Task:
    cases: list[Any] = [{"call": f"f({x})", "expected": 3 * x + 47} for x in range(8)]
    public = Public(prompt="f", data={"entry": ["f"]})
    return Task(id="benchmark", split="test", public=public, hidden=Hidden(data={"cases": cases}))


if __name__ == "__main__":
    main()
