"""What an image is made of, as data: a task names it, and a backend that has images builds it once."""

from __future__ import annotations

import json
import re
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from agentgym.errors import TaskError

BUILD = "build:"
"""What the name of an image that is to be built begins with; a specification follows, or a folder."""
_MOST_FILE_BYTES = 1 << 18


def _matching(pattern: str, what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{value!r} is not {what}")
        return value

    return AfterValidator(check)


_Path = Annotated[
    str, _matching(r"(?!.*/\.\.?(/|$))(/[^/\x00-\x1f]+)+", "an absolute path of a file, without '.' and '..' in it")
]
_Variable = Annotated[str, _matching(r"[A-Za-z_][A-Za-z0-9_]*", "a variable's name")]


class ImageSpec(BaseModel):
    """A root filesystem: an image to start from, files, packages and commands, in that order.

    >>> spec = ImageSpec(apt=("jq",), files={"/etc/motd": "hello"})
    >>> spec.name
    'build:{"apt":["jq"],"files":{"/etc/motd":"hello"}}'
    >>> ImageSpec.from_name(spec.name) == spec
    True

    `SandboxSpec(image=spec.name)` is how a task asks for it. Tasks with equal specifications share one image.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Annotated[str, _matching(r"[A-Za-z0-9][\w./:@-]{0,255}", "an image's name")] | None = None
    """None is the backend's own base image; `build:` and a folder is one that is built first."""
    apt: tuple[Annotated[str, _matching(r"[a-z0-9][\w.+:~=-]*", "a Debian package")], ...] = ()
    pip: tuple[Annotated[str, _matching(r"[A-Za-z0-9][^\s\x00-\x1f]*", "a requirement such as numpy>=2")], ...] = ()
    files: dict[_Path, str] = {}
    """Texts by absolute path, owned by root and readable by all; packages may need them, such as apt's sources."""
    run: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Scripts for `/bin/sh -e`, run as root, each a layer."""
    env: dict[_Variable, Annotated[str, _matching(r"[^\x00-\x1f]*", "a value on one line")]] = {}
    network: bool = False
    """Whether `run` needs the network; packages always have it."""

    @property
    def name(self) -> str:
        """The name by which a `SandboxSpec` asks for this image: the specification itself.

        Raises:
            TaskError: it is too long for that.
        """
        said = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True, separators=(",", ":"))
        if len(said) > _MOST_FILE_BYTES:
            raise TaskError(
                f"an image's specification may have {_MOST_FILE_BYTES} bytes, and this one has {len(said)}: put its "
                "files beside a Dockerfile, and name the folder"
            )
        return BUILD + said

    @classmethod
    def from_name(cls, name: str) -> Self:
        """Read `name` back.

        Raises:
            TaskError: it is none, or malformed.
        """
        try:
            return cls.model_validate_json(name.removeprefix(BUILD))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise TaskError(
                f"the image {name[:80]!r} is malformed: {where + ': ' if where else ''}{first['msg']}"
            ) from error
