"""What is measured of sandboxes, and what is promised of it."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.results import Measure, Ratio

ROUNDS = {"life": 0.2, "true": 1.0, "python": 1.0, "session": 0.2, "megabyte": 0.2, "thousand": 0.1, "fork": 0.1}
"""What is asked of every system, and in which share of the rounds."""
CROWD_ROUNDS = 0.05
SINGLE = (
    Measure("start", "start", "life"),
    Measure("first", "start and first `true`", "life"),
    Measure("true", "`true`", "true"),
    Measure("python", "`python3 -c pass`", "python"),
    Measure("session", "session of 20 commands", "session"),
    Measure("session-command", "one of them, where the shell stays", "session"),
    Measure("write-large", "write 1 MB", "megabyte"),
    Measure("read-large", "read 1 MB", "megabyte"),
    Measure("write-many", "write 1,000 files", "thousand"),
    Measure("read-many", "read 1,000 files", "thousand"),
    Measure("fork", "fork with 1,000 files", "fork"),
    Measure("remove", "remove", "life"),
)
MEMORY = Measure("memory", "memory of an idle one", "crowd", "MB")


def measures(concurrent: Iterable[int]) -> list[Measure]:
    """Return every row of the table."""
    crowds = [Measure(f"at-{count}", f"`true`, {count} at once", "crowd", "per s") for count in concurrent]
    return [*SINGLE[:-1], *crowds, SINGLE[-1], MEMORY]


def promises(concurrent: Iterable[int]) -> list[Ratio]:
    """Return what the project promises; the rate is that of the largest crowd."""
    most = max(concurrent)
    true, start = ("docker", "true"), ("docker", "start")
    return [
        Ratio("a command, against docker exec", true, ("docker-exec", "true"), 8),
        Ratio("a command, against inspect_ai", true, ("inspect_ai", "true"), 8),
        Ratio("a command, against llm-sandbox", true, ("llm-sandbox", "true"), 8),
        Ratio("a command, against SWE-ReX's `execute`", true, ("swe-rex", "true"), 2),
        Ratio("a command, against SWE-ReX's session", true, ("swe-rex", "session-command"), 20),
        Ratio("a session's command, against SWE-ReX's", *_both("session-command", "swe-rex"), 20),
        Ratio("`python3 -c pass`, against the bare one", ("docker", "python"), ("bare", "python"), 1.5, at_most=True),
        Ratio("warm start and first command, against a cold start", ("pool", "first"), start, 20),
        Ratio("warm start and first command, against SWE-ReX's start", ("pool", "first"), ("swe-rex", "start"), 50),
        Ratio("cold start, against SWE-ReX's", start, ("swe-rex", "start"), 0.5, at_most=True),
        Ratio(f"commands per second, {most} at once, against docker exec", *_both(f"at-{most}", "docker-exec"), 8),
        Ratio("fork with a warm pool, against docker commit and start", ("pool", "fork"), ("docker-exec", "fork"), 10),
    ]


def _both(measure: str, other: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("docker", measure), (other, measure)
