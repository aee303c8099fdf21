"""Mined instances as task folders, laid out as SWE-bench 5 lays out its own; the repository's files lie beside them."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from agentgym_envs.swe.folders import ARCHIVE
from agentgym_envs.swe.tasks import SweInstance

TASKS = "tasks"
CONFIG = "sweb.yaml"
_CONFIG = "datasets: [mined]\nsplits: [train, validation, test]\n"
_STAGE = "mining/staged"


def stage(out: Path, instance: SweInstance, archive: bytes, more: Mapping[str, Any]) -> Path:
    """Write a task folder where no loader looks for one, and return it.

    Args:
        out: the folder of the set; made if it is not there.
        instance: what the folder says; its source is the archive.
        archive: the repository before the change, as a tar file.
        more: further entries of `task.yaml`, such as what the mining found out.
    """
    folder = out / _STAGE / instance.instance_id
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tests = {"FAIL_TO_PASS": [*instance.FAIL_TO_PASS], "PASS_TO_PASS": [*instance.PASS_TO_PASS]}
    about = {
        **instance.model_dump(mode="json", include={"instance_id", "repo", "base_commit", "created_at", "version"}),
        "split": instance.split or "train",
        "environment": instance.environment.model_dump(mode="json", exclude_defaults=True),
        **more,
    }
    texts = {
        "task.yaml": yaml.safe_dump(about, allow_unicode=True),
        "tests.json": json.dumps(tests, indent=1) + "\n",
        "problem_statement.md": instance.problem_statement + "\n",
        "gold.patch": instance.patch,
        "test.patch": instance.test_patch,
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
    (folder / ARCHIVE).write_bytes(archive)
    return folder


def keep(out: Path, staged: Path) -> Path:
    """Move a staged folder to `tasks/<instance_id>`, in one step, and return it."""
    folder = out / TASKS / staged.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not (out / CONFIG).exists():
        (out / CONFIG).write_text(_CONFIG, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    return staged.replace(folder)


def pack(files: Mapping[str, bytes], executable: frozenset[str] = frozenset()) -> bytes:
    """Return a tar archive of files, the same for the same files.

    >>> pack({"a": b"1"}) == pack({"a": b"1"})
    True
    """
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in sorted(files.items()):
            member = tarfile.TarInfo(f"repository/{name}")
            member.size, member.mode = len(data), 0o755 if name in executable else 0o644
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
