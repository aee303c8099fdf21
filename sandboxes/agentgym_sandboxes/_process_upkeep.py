"""Look after the folders of process sandboxes, and what those need of this machine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agentgym.errors import CapabilityError, SandboxError
from agentgym.upkeep import Decision, Finding, Kept
from agentgym_sandboxes import _bwrap, _scratch
from agentgym_sandboxes._owner import Owner

_MEND_NAMESPACES = {
    "/proc/sys/user/max_user_namespaces": "sysctl user.max_user_namespaces=15000",
    "/proc/sys/kernel/unprivileged_userns_clone": "sysctl kernel.unprivileged_userns_clone=1",
}
_APPARMOR = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")


class ProcessUpkeep:
    """See `agentgym.upkeep.Upkeep`."""

    def inventory(self) -> list[Kept]:
        """Return the sandboxes of every run of this user."""
        return [kept for kept, _ in _folders()]

    def collect(self, *, images: bool = False, expired: bool = False, dry_run: bool = False) -> Sequence[Decision]:  # noqa: ARG002
        """Remove the folders whose owner is dead; there are neither images, nor sandboxes without a living owner."""
        decisions = []
        for kept, folder in _folders():
            if kept.life != "dead":
                said = "is alive" if kept.life == "living" else "cannot be seen from here"
                decisions.append(Decision(kept, False, f"its owner, {kept.owner}, {said}"))
                continue
            if not dry_run:
                _scratch.remove(folder)
            decisions.append(Decision(kept, True, f"its owner, {kept.owner}, has ended"))
        return decisions

    def diagnose(self) -> list[Finding]:
        """Say what is there and what is missing."""
        findings = [*_programs(), *_namespaces()]
        try:
            found = _bwrap.find(_scratch.base_folder())
        except SandboxError as error:
            said, _, mend = str(error).partition(": ")
            return [*findings, Finding("sandbox", "fail", said, mend)]
        if found.proc:
            return [*findings, Finding("sandbox", "ok", "one started and ran a command")]
        mend = "allow mounting a new /proc; in a container, by --security-opt systempaths=unconfined"
        return [*findings, Finding("sandbox", "warn", "one started, but without /proc", mend)]

    def build_base(self, name: str | None, base: str | None, say: Callable[[str], None]) -> str:  # noqa: ARG002
        """Refuse: these sandboxes see this machine's own programs."""
        raise CapabilityError(
            "the 'process' sandbox has no images to build: it shows the agent this machine's programs"
        )


def _folders() -> Iterator[tuple[Kept, Path]]:
    for folder in sorted(_scratch.base_folder().iterdir()):
        name, _, tag = folder.name.partition("~")
        owner = Owner.from_tag(tag)
        if owner is not None:
            said = f"process {owner.pid} on {owner.host}"
            try:
                made = folder.lstat().st_ctime
            except FileNotFoundError:  # it ended just now, or somebody else removed it
                continue
            yield Kept("sandbox", name, owner=said, life=owner.life(), state="folder", created=made), folder


def _programs() -> Iterator[Finding]:
    for program, package in (("bwrap", "bubblewrap"), ("prlimit", "util-linux"), ("setpriv", "util-linux")):
        path = shutil.which(program)
        if path is None:
            yield Finding(program, "fail", "it is not installed", f"`apt-get install {package}`")
            continue
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        yield Finding(program, "ok", said.strip().splitlines()[0] if said.strip() else path)


def _namespaces() -> Iterator[Finding]:
    for path, mend in _MEND_NAMESPACES.items():
        if Path(path).exists() and Path(path).read_text().strip() == "0":
            yield Finding("user namespaces", "fail", f"{path} is 0", mend)
            return
    if _APPARMOR.exists() and _APPARMOR.read_text().strip() == "1":
        mend = "if no sandbox starts: sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        yield Finding("user namespaces", "warn", "AppArmor restricts them", mend)
        return
    yield Finding("user namespaces", "ok", "allowed")
