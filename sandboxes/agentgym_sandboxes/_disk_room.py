"""How much room the daemon's disk has, where that can be seen from here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentgym_sandboxes._docker_host import host


def disk_room(info: Mapping[str, Any]) -> int | None:
    """Return the free bytes of the disk of the daemon that says this of itself; None if it is not this machine's."""
    root = str(info.get("DockerRootDir") or "")
    if not root or not host().startswith("unix://"):
        return None
    folder = Path(root)
    try:
        while not os.access(folder, os.X_OK) and folder != folder.parent:  # /var/lib/docker is often root's alone
            folder = folder.parent
        return shutil.disk_usage(folder).free
    except OSError:
        return None
