"""Published sets of software engineering tasks, read from files where the user has them; none is shipped.

`swe_bench`, `swe_gym`: rows with a gold and a test patch. `swe_smith`: the patch plants the defect, and the solution
takes it back. `r2e_gym`: tests are in the row, and a JSON text says which of them pass afterwards. All name an image
that holds the repository in /testbed; who has no registry builds one of that name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from agentgym.errors import MissingExtraError, TaskError
from agentgym.task import Task
from agentgym.types import Split
from agentgym_envs.code.refusals import Placed, Refused, Row, RowTasks, json_lines
from agentgym_envs.swe.ids import listed, usable
from agentgym_envs.swe.r2e_gym import r2e_gym
from agentgym_envs.swe.reverse import reverse
from agentgym_envs.swe.sources import InImage
from agentgym_envs.swe.tasks import Environment, SweInstance, Unfit, to_task

ROOT = "/testbed"
CONDA = "/opt/miniconda3/envs/testbed/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where the images of SWE-bench and its kin have the Python of the repository."""
_SPLITS: dict[str, Split] = {"train": "train", "dev": "validation", "validation": "validation", "test": "test"}
_KEPT = ("instance_id", "repo", "base_commit", "problem_statement", "patch", "test_patch", "hints_text", "version")
_SUFFIXES = (".jsonl", ".json", ".parquet")
_END = "AGENTGYM-PATCH-END"


def tasks(family: str, path: Path) -> RowTasks:
    """Return the tasks of a file, or a folder of files: JSON Lines, JSON or Parquet; `refused()` lists the others.

    Raises:
        TaskError: while reading, naming the file and the row that is malformed.
    """
    return RowTasks(family, partial(_rows, path), partial(_convert, FORMATS[family]), partial(_identify, family))


def swe_bench(row: Row) -> SweInstance:
    """Read a row of SWE-bench; what is named `image` or `image_name` wins over the harness's own name.

    Raises:
        Refused: its tests are not pytest's.
    """
    name = f"swebench/sweb.eval.x86_64.{row['instance_id']}:latest".lower().replace("__", "_1776_")
    return _common(row, name, _SPLITS.get(str(row.get("split")), "test"))


def swe_gym(row: Row) -> SweInstance:
    """Read a row of SWE-Gym; images are those that its authors published.

    Raises:
        Refused: its tests are not pytest's.
    """
    name = f"xingyaoww/sweb.eval.x86_64.{row['instance_id']}:latest".lower().replace("__", "_s_")
    return _common(row, name, _SPLITS.get(str(row.get("split"))))


def swe_smith(row: Row) -> SweInstance:
    """Read a row of SWE-smith: its image is sound, the defect is planted when ours is built upon it.

    Raises:
        Refused: its tests are not pytest's, or no issue was written.
    """
    if not str(row.get("problem_statement") or "").strip():
        raise Refused("no issue was written for it")
    bug = str(row["patch"])
    if f"\n{_END}\n" in bug:
        raise ValueError("the patch holds a line that no patch has")
    plant = f"cd {ROOT}\ngit apply --whitespace=nowarn - <<'{_END}'\n{bug.rstrip(chr(10))}\n{_END}\n"
    given = {"base_commit": str(row["repo"]).rpartition(".")[2], **row, "patch": reverse(bug), "test_patch": ""}
    found = _common(given, str(row["image_name"]), _SPLITS.get(str(row.get("split"))))
    return found.model_copy(update={"source": InImage(root=ROOT, setup=(plant,))})


FORMATS: dict[str, Callable[[Row], SweInstance]] = {
    "swe_bench": swe_bench,
    "swe_gym": swe_gym,
    "swe_smith": swe_smith,
    "r2e_gym": r2e_gym,
}


def _common(row: Row, image: str, split: Split | None) -> SweInstance:
    failing, passing = usable(listed(row["FAIL_TO_PASS"]), listed(row.get("PASS_TO_PASS")))
    given = row.get("image") or row.get("image_name") or image
    fields: dict[str, Any] = {name: str(row[name]) for name in _KEPT if row.get(name) is not None}
    return SweInstance(
        **fields,
        FAIL_TO_PASS=failing,
        PASS_TO_PASS=passing,
        source=InImage(root=ROOT),
        environment=Environment(image=str(given), variables={"PATH": CONDA}),
        created_at=str(row.get("created_at") or ""),
        split=split,
    )


def _convert(read: Callable[[Row], SweInstance], row: Row) -> Task:
    try:
        return to_task(read(row))
    except Unfit as reason:
        raise Refused(str(reason)) from reason


def _identify(family: str, row: Row) -> str:
    if family == "r2e_gym":
        return f"{row['repo_name']}__{str(row['commit_hash'])[:10]}"
    return str(row["instance_id"])


def _rows(path: Path) -> Iterator[Placed]:
    """Yield the rows of a file, or of all files of a folder in name order.

    Raises:
        TaskError: there is none, or it cannot be read.
    """
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.suffix in _SUFFIXES and one.is_file())
        if not files:
            raise TaskError(f"the folder {path} holds no files that end in {', '.join(_SUFFIXES)}")
        for file in files:
            yield from _rows(file)
    elif path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix == ".json":
        yield from _json(path)
    else:
        yield from json_lines(path)


def _json(path: Path) -> Iterator[Placed]:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TaskError(f"no rows can be read at {path}: {error}") from error
    if not isinstance(found, list | dict):
        raise TaskError(f"{path} holds no rows; wanted a list of objects, or an object of them by id")
    for index, row in enumerate(found.values() if isinstance(found, dict) else found):
        yield f"{path}[{index}]", row


def _parquet(path: Path) -> Iterator[Placed]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "train") from error
    try:
        # Threads that read from Python's file object can hang or abort a process that ends soon (apache/arrow#50482).
        with pyarrow.OSFile(str(path)) as file:
            index = 0
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=64, use_threads=False):
                for row in batch.to_pylist():
                    yield f"{path}[{index}]", row
                    index += 1
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise TaskError(f"no rows can be read at {path}: {error}") from error
