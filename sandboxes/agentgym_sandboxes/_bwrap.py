"""Build the bubblewrap command line of one sandboxed command, and prove that this machine can run it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from agentgym import errors
from agentgym.errors import SandboxError
from agentgym.sandbox import SandboxSpec
from agentgym_sandboxes._command import ENTER
from agentgym_sandboxes._scratch import AGENT_ID, Scratch, create

logger = logging.getLogger(__name__)

WORKDIR = "/workspace"
_SHM_BYTES = 64 << 20
_MAX_FILE_BYTES = 1 << 30
_SYSTEM = ("/bin", "/sbin", "/lib", "/lib64", "/lib32", "/libx32")
_ETC = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")
_ETC_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/ssl", "/etc/ca-certificates", "/etc/pki")
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_NAMESPACES = ("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try")
_PARTLY = "bubblewrap works here only in part, so sandboxes have %s: %s"
_HINT = "or write `trusted: true` to run without isolation"

# The shell is PID 1 of the namespace: it reaps orphans, tells signals apart, and when it ends the kernel has killed
# everything else before bwrap's wait returns. Its own stderr is shut so that it adds no "Killed" to the command's.
_INIT = (
    f"{ENTER} {{ echo 1000 >/proc/self/oom_score_adj; }} 2>/dev/null; "
    'exec 3>&2 2>/dev/null; (exec "$@" 2>&3 3>&-); exit $?'
)


def limits(spec: SandboxSpec, *, pids: bool = True) -> list[str]:
    """Return the prefix that puts resource limits on a command."""
    argv = [
        *_default_signals(),
        "prlimit",
        f"--as={spec.memory_mb << 20}",
        "--core=0",
        "--nofile=1024",
        f"--fsize={_MAX_FILE_BYTES}",
    ]
    return [*argv, f"--nproc={spec.pids + 1}"] if pids else argv


def _default_signals() -> list[str]:
    # What this process ignores, a command would ignore too: background jobs of a script ignore SIGINT.
    names = ("HUP", "INT", "QUIT", "TERM")
    ignored = [name for name in names if signal.getsignal(signal.Signals[f"SIG{name}"]) is signal.SIG_IGN]
    return ["env", f"--default-signal={','.join(ignored)}"] if ignored else []


def init(cwd: str, argv: Sequence[str]) -> list[str]:
    """Return the command under the little shell that waits for it."""
    return ["/bin/sh", "-c", _INIT, cwd, *argv]


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """How bubblewrap is called on this machine; `find` proves it by a real run."""

    program: str
    options: frozenset[str]
    """Of the newer options, those that this bubblewrap has and this machine allows."""
    proc: bool = True
    """Whether a new /proc may be mounted; containers often forbid it, and then sandboxes have none."""

    def command(
        self, scratch: Scratch, spec: SandboxSpec, argv: Sequence[str], cwd: str, env: Mapping[str, str], status: int
    ) -> list[str]:
        """Return the full command line; bwrap reports the start and the exit code as JSON on descriptor `status`."""
        return [
            *_as_user(scratch.uid),
            *(self.program, *_base(spec.network == "full")),
            *([] if spec.network == "full" else ["--unshare-net"]),
            *(["--disable-userns"] if "--disable-userns" in self.options else []),
            *(("--proc", "/proc") if self.proc else ("--dir", "/proc")),
            *("--dev", "/dev", "--remount-ro", "/dev", "--json-status-fd", str(status)),
            *self._mounts(scratch),
            *_environment({**spec.env, **env}),
            *("--", *limits(spec), *init(cwd, argv)),
        ]

    def _mounts(self, scratch: Scratch) -> list[str]:
        words = ["--bind", str(scratch.work), WORKDIR, "--bind", str(scratch.tmp), "/tmp"]
        for name in ("passwd", "group"):
            words += ["--ro-bind", f"{scratch.root}/etc/{name}", f"/etc/{name}"]
        for hidden in _hidden():
            words += ["--ro-bind", f"{scratch.root}/empty", hidden]
        if "--size" in self.options:
            words += ["--perms", "1777", "--size", str(_SHM_BYTES), "--tmpfs", "/dev/shm"]
        else:
            words += ["--bind", str(scratch.tmp), "/dev/shm"]
        return [*words, "--remount-ro", "/"]


def find(base: Path) -> Bubblewrap:
    """Run python3 once in a real sandbox below the folder `base`, as strict a one as works here.

    Raises:
        SandboxError: what is missing and how to mend it.
    """
    for program, package in (("bwrap", "bubblewrap"), ("prlimit", "util-linux"), ("setpriv", "util-linux")):
        if shutil.which(program) is None and (program != "setpriv" or os.geteuid() == 0):
            raise SandboxError(f"{program} is not installed: run `apt-get install {package}`, {_HINT}")
    program = shutil.which("bwrap") or "bwrap"
    help_text = subprocess.run([program, "--help"], capture_output=True, check=False).stdout.decode(errors="replace")
    known = frozenset(option for option in ("--disable-userns", "--size") if option in help_text)
    strict = Bubblewrap(program, known)
    reason = _why_not(strict, base)
    if reason is None:
        return strict
    for proc in (True, False):
        looser = Bubblewrap(program, known - {"--disable-userns"}, proc)
        if _why_not(looser, base) is None:
            logger.log(
                logging.INFO if proc else logging.WARNING, _PARTLY, "nested namespaces" if proc else "no /proc", reason
            )
            return looser
    raise SandboxError(
        f"bubblewrap cannot make a sandbox here ({reason}): allow unprivileged user namespaces (in a container, by its "
        f"seccomp profile), {_HINT}"
    )


def _why_not(bubblewrap: Bubblewrap, base: Path) -> str | None:
    scratch = create(base)
    try:
        argv = bubblewrap.command(scratch, SandboxSpec(), ["python3", "-I", "-S", "-c", "pass"], WORKDIR, {}, 1)
        done = subprocess.run(argv, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    finally:
        scratch.remove()
    if done.returncode == 127 and b"exit-code" in done.stdout:
        raise SandboxError(
            f"the sandbox has no python3: none in /usr/bin, and {sys.base_prefix} is not readable by all; "
            f"run `apt-get install python3`, {_HINT}"
        )
    if done.returncode != 0:
        return (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
    return None


def _as_user(uid: int | None) -> list[str]:
    # Not subprocess(user=…): that turns vfork off, and forking a trainer with gigabytes of memory is slow.
    setpriv = shutil.which("setpriv") or "setpriv"
    return [] if uid is None else [setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]


def _environment(env: Mapping[str, str]) -> list[str]:
    path = f"{_PATH}:{_python_home()}/bin" if _python_home() else _PATH
    values = {"PATH": path, "HOME": "/tmp", "USER": "agent", "LANG": "C.UTF-8", **env}
    return ["--clearenv", *(word for name, value in values.items() for word in ("--setenv", name, value))]


@lru_cache
def _base(network: bool) -> tuple[str, ...]:
    words = [*_NAMESPACES, "--die-with-parent", "--new-session", "--as-pid-1"]
    words += ["--uid", str(AGENT_ID), "--gid", str(AGENT_ID), "--hostname", "sandbox", "--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        if Path(name).is_symlink():
            words += ["--symlink", str(Path(name).readlink()), name]
        elif Path(name).is_dir():
            words += ["--ro-bind", name, name]
    for name in _ETC + (_ETC_NETWORK if network else ()):
        words += ["--ro-bind-try", name, name]
    if home := _python_home():
        words += ["--ro-bind", home, home]
    return tuple(words)


@lru_cache
def _python_home() -> str | None:
    """Where the running interpreter is, if the system folders hold no python3 and the sandbox's user may read it."""
    if any(Path(folder, "python3").exists() for folder in ("/usr/local/bin", "/usr/bin")):
        return None
    home = Path(sys.base_prefix)
    open_to_all = all(folder.stat().st_mode & 0o001 for folder in (home, *home.parents))
    return str(home) if open_to_all or os.geteuid() != 0 else None


@lru_cache
def _hidden() -> tuple[str, ...]:
    """Folders below the shared ones that hold our code, and so perhaps hidden tests and reference solutions."""
    shared = [Path("/usr"), *([Path(home)] if (home := _python_home()) else [])]
    secret = {Path(errors.__file__).resolve().parent.parent, Path("/usr/src")}
    if sys.prefix != sys.base_prefix:
        secret.add(Path(sys.prefix))
    return tuple(str(one) for one in sorted(secret) if one.is_dir() and any(one.is_relative_to(s) for s in shared))
