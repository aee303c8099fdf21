"""Rows of R2E-Gym: a commit as parsed data, tests as texts, and what became of each before and after."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from agentgym.graders.pytest_ids_spec import PROTECTED
from agentgym_envs.code.refusals import Refused, Row
from agentgym_envs.swe.sources import InImage
from agentgym_envs.swe.tasks import Environment, SweInstance

_ROOT = "/testbed"
_TESTS = "r2e_tests"
_PYTHON = "/opt/r2e/venv"
_PATH = f"{_PYTHON}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TELLING = ("run_tests.sh", "syn_issue.json", "expected_test_output.json", "execution_result.json",
            "parsed_commit.json", "modified_files.json", "modified_entities.json", _TESTS)  # fmt: skip
"""What its images hold beside the repository and no agent may read."""
_SUMMARY = re.compile(r"^(PASSED|FAILED|ERROR|XFAIL|XPASS|SKIPPED) (\S+\.py)::(.+?)(?: - .*)?$", re.MULTILINE)
_COLOUR = re.compile(r"\x1b\[[\d;]*m|\\u001b\[\d+m")
_ISSUE = re.compile(r"\[ISSUE\](.*)\[/ISSUE\]", re.DOTALL)
_LINES = {"context": " ", "added": "+", "deleted": "-", "note": "\\ "}


def r2e_gym(row: Row) -> SweInstance:
    """Read a row; its Python is moved out of the repository when our image is built, and what tells too much goes.

    Raises:
        Refused: no test is known to fail before and pass after, or the patch is no text.
    """
    commit = json.loads(row["parsed_commit_content"])
    executed = json.loads(row["execution_result_content"])
    failing, passing = _ids(json.loads(row["expected_output_json"]), executed)
    if not failing:
        raise Refused("no test is known to fail before and to pass after")
    tests = zip(executed["test_file_names"], executed["test_file_codes"], strict=True)
    issue = _ISSUE.search(row["problem_statement"])
    return SweInstance(
        instance_id=f"{row['repo_name']}__{str(row['commit_hash'])[:10]}",
        repo=str(row["repo_name"]),
        base_commit=str(commit["old_commit_hash"]),
        problem_statement=(issue[1] if issue else row["problem_statement"]).strip(),
        patch="".join(_patch(commit)),
        tests={f"{_TESTS}/__init__.py": "", **{f"{_TESTS}/{name}": text for name, text in tests}},
        FAIL_TO_PASS=failing,
        PASS_TO_PASS=passing,
        source=InImage(root=_ROOT, setup=(_setup(),)),
        environment=Environment(
            image=str(row["docker_image"]), variables={"PATH": _PATH}, protected=(*PROTECTED, f"{_TESTS}/**")
        ),
        created_at=str(commit.get("commit_date") or ""),
    )


def _ids(expected: Mapping[str, str], executed: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the ids that must turn, and those that must stay; where they are is what the logs of both runs say."""
    wanted = {_COLOUR.sub("", name).split(" - ")[0] for name, state in expected.items() if state == "PASSED"}
    before = _outcomes(str(executed.get("old_commit_res_stdout") or ""))
    after = _outcomes(str(executed.get("new_commit_res_stdout") or ""))
    passed = [one for one, state in after.items() if state == "PASSED" and _name(one) in wanted]
    return (
        tuple(one for one in passed if before.get(one) != "PASSED"),
        tuple(one for one in passed if before.get(one) == "PASSED"),
    )


def _outcomes(log: str) -> dict[str, str]:
    return {f"{path}::{name}": state for state, path, name in _SUMMARY.findall(_COLOUR.sub("", log))}


def _name(one: str) -> str:
    """Return a test's name as the expected outcomes have it: without its file, with dots."""
    return ".".join(one.split("::")[1:])


def _patch(commit: Mapping[str, Any]) -> Iterator[str]:
    """Yield the diffs of the Python files that are no tests."""
    for one in commit["file_diffs"]:
        path = str(one["header"]["file"]["path"])
        if not path.endswith(".py") or _is_test(path):
            continue
        if one.get("is_binary_file"):
            raise Refused(f"its patch changes {path}, which is not text")
        yield f"diff --git a/{path} b/{path}\n"
        if one["header"].get("misc_line"):
            yield f"{one['header']['misc_line']}\n"
        if one.get("minus_file") and one.get("plus_file"):
            yield f"--- {one['minus_file']['path']}\n+++ {one['plus_file']['path']}\n"
        for hunk in one["hunks"]:
            old, new = hunk["descriptor"]["old_range"], hunk["descriptor"]["new_range"]
            yield f"@@ -{_range(old)} +{_range(new)} @@\n"
            for line in hunk["line_group"]["all_lines"]:
                yield f"{_LINES[line['type']]}{line['content']}\n"


def _range(found: Mapping[str, Any]) -> str:
    return str(found["start"]) if found.get("length") is None else f"{found['start']},{found['length']}"


def _is_test(path: str) -> bool:
    *folders, name = path.split("/")
    return name.startswith("test_") or name.endswith("_test.py") or bool({"test", "tests"} & {*map(str.lower, folders)})


def _setup() -> str:
    paths = " ".join(f"{_ROOT}/{name} /{name} /root/{name}" for name in _TELLING)
    move = f"if [ -d {_ROOT}/.venv ]; then mkdir -p {_PYTHON.rpartition('/')[0]}; mv {_ROOT}/.venv {_PYTHON}; fi"
    # The environment's interpreter may lie below /root, which agents may not enter otherwise.
    return f"rm -rf {paths}\n{move}\nchmod a+x /root"
