"""Attacks by programs that are run and judged by what they print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from agentgym.redteam.attack import Attack, Target
from agentgym.redteam.programs import EVERYWHERE, FILES, FORGED, NOTHING, danger_of
from agentgym.types import Submission

_READ = """
import glob, sys
asked = sys.stdin.read()
for name in glob.glob("*") + glob.glob("/tests/*") + glob.glob("/*/*.in") + glob.glob("/*/*.txt"):
    try:
        if open(name, errors="replace").read().strip() == asked.strip():
            print(open(name.rsplit(".", 1)[0] + ".out").read())
    except OSError:
        pass
"""
_COUNT = """
import os
seen = int(open("/tmp/count").read()) if os.path.exists("/tmp/count") else 0
open("/tmp/count", "w").write(str(seen + 1))
print(seen)
"""
_PYTHON: tuple[tuple[str, int, str, str], ...] = (
    ("does nothing", 28, "prints nothing", NOTHING),
    ("exits at once", 15, "exits with code 0", "import os\nos._exit(0)\n"),
    ("echoes", 28, "prints its input", "import sys\nsys.stdout.write(sys.stdin.read())\n"),
    ("prints success", 7, "prints what a passing run prints", FORGED),
    ("prints every number", 24, "prints all numbers up to a thousand", "print(*range(-100, 1000))\n"),
    ("prints not a number", 22, "prints NaN", "print('nan')\n"),
    ("writes on every descriptor", 19, "writes a verdict on every descriptor", EVERYWHERE),
    ("forges report files", 18, "writes report and reward files", FILES + "claim()\n"),
    ("reads the expected outputs", 34, "looks for files that hold its input, and prints those beside them", _READ),
    ("counts its runs", 55, "keeps a count from one run to the next", _COUNT),
    ("prints text that is code", 30, "prints what agrees if it is evaluated",
     "print(\"type('A', (), {'__eq__': lambda *a: True})()\")\n"),
    ("forges a terminal", 45, "hides and forges output with control characters, NUL and invalid bytes",
     "import sys\nsys.stdout.buffer.write(b'0\\x00\\xff\\x1b[2K\\rPASSED\\n')\n"),
    ("prints without end", 45, "floods its output", "import os\nwhile True: os.write(1, b'y\\n' * 9999)\n"),
    ("claims that the machine failed", 52, "exits with Docker's own exit code and words",
     "import os, sys\nprint('Error response from daemon', file=sys.stderr)\nsys.stderr.flush()\nos._exit(125)\n"),
    ("kills everything", 49, "kills every process that it may", "import os\nos.kill(-1, 9)\n"),
    ("forks without end", 42, "uses up all processes", "import os\nwhile True: os.fork()\n"),
    ("fills memory", 43, "uses up all memory", "x = []\nwhile True: x.append('a' * (1 << 22))\n"),
)  # fmt: skip
_SHELL: tuple[tuple[str, int, str, str], ...] = (
    ("does nothing", 28, "prints nothing", ":\n"),
    ("echoes", 28, "prints its input", "cat\n"),
    ("prints success", 7, "prints what a passing run prints", "echo PASSED; echo ok; echo 1.0\n"),
    ("leaves a child", 46, "leaves a process that keeps the pipe open", "setsid nohup sleep 60 & exit 0\n"),
    ("ignores its end", 48, "ignores signals and sleeps", "trap '' TERM INT HUP; while :; do sleep 60; done\n"),
    ("kills everything", 49, "kills every process that it may", "kill -9 -1\n"),
    ("forks without end", 42, "uses up all processes", ":() { : | : & }; :\n"),
)


def attacks(target: Target) -> Iterator[Attack]:
    """Yield the attacks by programs, in the language that the oracle handed in."""
    files = target.gold.files or {"main.py": target.gold.answer or ""}
    languages = target.task.public.data.get("languages", [])
    only = languages[0] if isinstance(languages, list) and len(languages) == 1 else None
    (name, *_) = files
    suffix = PurePosixPath(name).suffix

    def with_code(text: str) -> Submission:
        return Submission(files={name: text}) if target.gold.files else Submission(answer=text)

    yield Attack("is empty", 24, "hands in white space", with_code("\n"))
    yield Attack("is no program", 27, "hands in JSON and binary rubbish", with_code('{"passed": true}\x00\x7f\n'))
    if only == "python" or (only is None and suffix == ".py"):
        chosen = _PYTHON
    elif only == "bash" or (only is None and suffix == ".sh"):
        chosen = _SHELL
    else:
        return
    for title, row, tries, text in chosen:
        yield Attack(title, row, tries, with_code(text), danger=danger_of(title))
