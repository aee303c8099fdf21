"""A stranger's backend, installed on the nodes of a test cluster: process sandboxes from a shelf of images."""

from __future__ import annotations

import os
from pathlib import Path

from agentgym.errors import SandboxError
from agentgym.sandbox import SandboxSpec
from agentgym_sandboxes.process import ProcessBackend, ProcessSandbox
from agentgym_sandboxes.ray import RayBackend


class ShelfBackend(ProcessBackend):
    """An image is a file in the folder that AGENTGYM_TEST_SHELF names; one named `sick` makes the node so."""

    def __init__(self) -> None:
        super().__init__()
        self._shelf = Path(os.environ["AGENTGYM_TEST_SHELF"])
        self.capabilities = self.capabilities | {"image"}

    def check(self) -> None:
        """Be sick as long as the file is there."""
        if (self._shelf / "sick").exists():
            raise SandboxError("the shelf fell down")
        super().check()

    def has_image(self, image: str | None) -> bool:
        """Whether the shelf holds the image."""
        return image is None or (self._shelf / image).exists()

    def start(self, spec: SandboxSpec) -> ProcessSandbox:
        """Start a sandbox, after making an image that is missing unless its name says that it cannot be made."""
        if spec.image is not None and not self.has_image(spec.image):
            if spec.image.startswith("rare"):
                raise SandboxError(f"the image {spec.image!r} is not on this machine")
            (self._shelf / spec.image).touch()
        box = super().start(spec)
        box.write("shelf", str(self._shelf).encode())
        return box


class RayProcess(RayBackend):
    """What the contract suite constructs without options, here and in processes of its own."""

    def __init__(self) -> None:
        super().__init__("process", lease_s=5.0)
