"""Read tasks from any rows of the user's: JSON Lines, or what the package `datasets` can load.

A recipe names the source and the columns, under `environment.options`:

    family: dataset
    dataset: {path: problems.jsonl, kind: stdio, fields: {prompt: question, tests: input_output, reference: solution}}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from agentgym.errors import TaskError
from agentgym.task import Task
from agentgym.types import Record, Split
from agentgym_envs.code import dataset_kinds
from agentgym_envs.code.programs import Toolchain
from agentgym_envs.code.refusals import Placed, Row, RowTasks, json_lines, reason_of
from agentgym_envs.code.splits import digest

Name = Literal["id", "prompt", "tests", "public_tests", "reference", "entry", "setup", "language", "split",
               "difficulty", "hints", "output", "checker"]  # fmt: skip
_SPLITS: dict[str, Split] = {"train": "train", "prompt": "train", "validation": "validation", "valid": "validation",
                             "dev": "validation", "test": "test"}  # fmt: skip


class Dataset(Record):
    """Where rows come from, what judges them, and which column is what."""

    path: str | None = None
    """A file of JSON Lines; with the extra `datasets` also a Parquet, CSV or JSON file, or a folder that its
    `save_to_disk` wrote."""
    hub: str | None = None
    """The name of a data set on the Hugging Face hub; wants the extra `datasets`."""
    config: str | None = None
    """The hub's configuration."""
    rows: str = "train"
    """Which of the source's own splits to read, where it has several; of the hub also a part, such as `test[:100]`."""
    kind: Literal["stdio", "function", "asserts", "unittest"]
    """What `tests` are: inputs and outputs of a program; calls and their values; assert statements; a unittest file."""
    fields: dict[Name, str] = {}
    """The column of each field that is not called so; dots reach into objects: `{prompt: problem.statement}`."""
    split: Split | None = None
    """The split of all tasks; by default the row's own, the hub's, or one by the hash of the id."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Read only the first so many rows."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError(f"wanted either path or hub, found {'neither' if self.path is None else 'both'}")
        if self.config is not None and self.hub is None:
            raise ValueError("only a data set of the hub has a config; drop it or name hub")
        return self


def read(given: Mapping[str, Any] | Dataset) -> Dataset:
    """Return a checked description.

    Raises:
        TaskError: in one sentence, what is missing or misspelt.
    """
    try:
        return Dataset.model_validate(given)
    except ValidationError as error:
        raise TaskError(f"dataset.{reason_of(error)}" if error.errors()[0]["loc"] else reason_of(error)) from error


def tasks(dataset: Dataset, toolchain: Toolchain) -> RowTasks:
    """Return the tasks of all rows; those that cannot be tasks are listed by `refused`."""

    def convert(row: Row) -> Task:
        return dataset_kinds.convert(dataset.kind, _renamed(dataset, row), toolchain)

    def source() -> Iterable[Placed]:
        return islice(_rows(dataset), dataset.limit)

    return RowTasks(dataset.kind, source, convert, partial(_identify, dataset))


def _rows(dataset: Dataset) -> Iterator[Placed]:
    if dataset.path is not None and dataset.path.endswith((".jsonl", ".ndjson")):
        return json_lines(Path(dataset.path))
    return _loaded(dataset)


def _loaded(dataset: Dataset) -> Iterator[Placed]:
    """Yield rows that the package `datasets` loads.

    Raises:
        TaskError: it is missing, or cannot load them.
    """
    source = str(dataset.path or dataset.hub)
    try:
        import datasets
    except ImportError as error:
        raise TaskError(
            f"reading {source!r} needs the package datasets: pip install 'agentgym-rlvr[datasets]'; "
            "files that end in .jsonl are read without it"
        ) from error
    try:
        found = _load(datasets, dataset)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TaskError(f"datasets cannot load {source!r}: {reason}") from error
    for index, row in enumerate(found):
        yield f"{source}[{index}]", row


def _load(datasets: Any, dataset: Dataset) -> Any:
    if dataset.hub is not None:
        return datasets.load_dataset(dataset.hub, dataset.config, split=dataset.rows)
    path = Path(str(dataset.path))
    if path.is_dir():
        found = datasets.load_from_disk(str(path))
        return found[dataset.rows] if isinstance(found, Mapping) else found
    kinds = {".parquet": "parquet", ".csv": "csv", ".json": "json"}
    if path.suffix not in kinds:
        raise ValueError(f"wanted a folder or a file that ends in {', '.join(['.jsonl', *kinds])}")
    return datasets.load_dataset(kinds[path.suffix], data_files={dataset.rows: str(path)}, split=dataset.rows)


def _renamed(dataset: Dataset, row: Row) -> dict[str, Any]:
    """Return a row with its fields called by our names."""
    found: dict[str, Any] = {name: _at(row, column) for name, column in dataset.fields.items()}
    for name in get_args(Name):
        if name not in found and row.get(name) is not None:
            found[name] = row[name]
    found["id"] = _identify(dataset, row)
    found["split"] = dataset.split or _split(
        found.get("split", dataset.rows.partition("[")[0] if dataset.hub else None)
    )
    return found


def _split(named: Any) -> Split | None:
    if named is None:
        return None
    if named not in _SPLITS:
        raise ValueError(f"wanted a split among {', '.join(_SPLITS)}, found {named!r}; or name one for all: split=…")
    return _SPLITS[named]


def _identify(dataset: Dataset, row: Row) -> str:
    """Return a row's id; without a column for it, one by the hash of what the row holds."""
    if "id" in dataset.fields or row.get("id") is not None:
        return str(_at(row, dataset.fields.get("id", "id")))
    return f"{dataset.kind}/{digest(json.dumps(row, sort_keys=True, default=str))}"


def _at(row: Row, column: str) -> Any:
    found: Any = row
    for part in column.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise ValueError(f"there is no column {column!r}; the row has {', '.join(map(str, row))}")
        found = found[part]
    return found
