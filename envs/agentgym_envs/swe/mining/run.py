"""`agentgym swe mine`: bars while it works, then a table and a report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError
from rich.table import Table

from agentgym import registry
from agentgym.cli.console import out as console
from agentgym.cli.console import progress, say
from agentgym.cli.places import parse_options
from agentgym.errors import AgentgymError, UnknownNameError
from agentgym.image import ImageSpec
from agentgym.sandbox import SandboxBackend
from agentgym.task import SPLITS
from agentgym_envs.swe.mining.git import Repository
from agentgym_envs.swe.mining.issue import Writer, by_model, plain
from agentgym_envs.swe.mining.journal import Entry
from agentgym_envs.swe.mining.miner import Mined, Miner, Settings

_PREFIX = "openai:"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for."""

    repository: Path
    out: Path
    since: str
    revision: str
    limit: int | None
    jobs: int
    image: Path | None
    modules: tuple[str, ...]
    loose: bool
    split: str
    sandbox: str


def run(wanted: Wanted, model: str | None, key: str | None) -> None:
    """Mine, tell how it goes, and write the report; a model writes the issues if one is named."""
    issue = _writer(model, key)
    split = next((one for one in SPLITS if one == wanted.split), None)
    if split is None:
        raise UnknownNameError("split", wanted.split, SPLITS)
    settings = Settings(
        since=wanted.since, revision=wanted.revision, strict=not wanted.loose, image=_image(wanted.image), split=split
    )
    name, _, options = wanted.sandbox.partition(":")
    given = parse_options([word for word in options.split(",") if word])
    sandboxes: SandboxBackend = registry.create("sandboxes", name, **given)
    try:
        sandboxes.check()
        repository = Repository(wanted.repository, _modules(wanted.modules))
        miner = Miner(repository, wanted.out, sandboxes, settings, issue=issue)
        mined = _with_bar(miner, wanted)
    finally:
        sandboxes.close()
    report = miner.journal.file.with_suffix(".report.json")
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(mined.report(), indent=1) + "\n", encoding="utf-8")
    _tell(mined, report)


def _with_bar(miner: Miner, wanted: Wanted) -> Mined:
    counts: Counter[bool] = Counter()
    with progress() as bars:
        bar = bars.add_task("mining", total=None, note="")

        def start(total: int) -> None:
            bars.update(bar, total=total)

        def done(entry: Entry) -> None:
            counts[bool(entry.instance_id)] += 1
            bars.update(bar, advance=1, note=f"{counts[True]} tasks, {counts[False]} refused")

        return miner.mine(jobs=wanted.jobs, limit=wanted.limit, on_start=start, on_done=done)


def _tell(mined: Mined, report: Path) -> None:
    table = Table("of the commits", "", box=None, header_style="bold", pad_edge=False)
    table.add_row("tasks", str(len(mined.valid)))
    for reason, count in mined.reasons.items():
        table.add_row(f"refused: {reason}", str(count))
    if mined.broken:
        table.add_row("not tried, for the sandboxes' sake; the same command tries them again", str(len(mined.broken)))
    console.print(table)
    say(f"{len(mined.valid)} tasks of {mined.repository} in {mined.out}/tasks, every refusal in {report}")


def _image(file: Path | None) -> ImageSpec | None:
    if file is None:
        return None
    try:
        return ImageSpec.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else " ".join(str(error).split())
        raise AgentgymError(
            f"{file} describes no image: {said}; wanted any of {', '.join(ImageSpec.model_fields)}"
        ) from error


def _modules(words: Sequence[str]) -> dict[str, Repository]:
    found = {}
    for word in words:
        place, sign, clone = word.partition("=")
        if not sign:
            raise AgentgymError(f"wanted --module PLACE=CLONE such as tests/data=./data, found {word!r}")
        found[place.strip("/")] = Repository(clone)
    return found


def _writer(named: str | None, key: str | None) -> Writer:
    if named is None:
        return plain
    model, _, url = named.removeprefix(_PREFIX).rpartition("@")
    if not named.startswith(_PREFIX) or not model or not url.startswith(("http://", "https://")):
        raise AgentgymError(f"wanted --issues openai:MODEL@http://HOST/v1, found {named!r}")
    return by_model(url, model, key)
