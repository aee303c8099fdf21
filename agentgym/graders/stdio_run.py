"""Build a program in one sandbox and run it in others, one for each input; nobody here knows what is expected."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from agentgym.errors import SandboxError
from agentgym.graders.languages import Language
from agentgym.graders.stdio_cases import StdioCase, StdioShared
from agentgym.sandbox import ExecResult, Sandbox, SandboxBackend, SandboxSpec

_BUILD_MB = 1024
_MAX_FILES, _MAX_BYTES = 64, 1 << 26
_CONTROL_INPUT = "agentgym 1\n"
_STDERR_BYTES = 4000


class BuildError(Exception):
    """The program does not build; the text is the compiler's."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How one run ended."""

    end: Literal["ok", "exit", "cpu", "clock", "memory", "flood", "unrun"]
    """`ok`: by itself, with exit code 0; `exit`: with another; `cpu`, `clock`, `memory`, `flood`: beyond a limit;
    `unrun`: no time was left for it."""
    stdout: bytes = b""
    text: str = ""
    """Why it is not `ok`, with what the program said of it."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Programs:
    """Where programs of one task are built and run."""

    sandboxes: SandboxBackend
    spec: SandboxSpec
    shared: StdioShared

    def build(self, language: Language, source: str) -> dict[str, bytes]:
        """Return the files that a run needs, from a fresh sandbox that is never used again.

        Raises:
            BuildError: the source does not compile within its limits, or to something too large.
            SandboxError: the sandbox failed.
        """
        if language.build is None:
            return {language.file: _bytes(source)}
        memory = max(self.spec.memory_mb, language.memory_mb, _BUILD_MB)
        with self.sandboxes.start(self.spec.model_copy(update={"memory_mb": memory})) as box:
            box.write(language.file, _bytes(source))
            compile_in(box, language, self.shared, box.workdir)
            try:
                return box.download(box.workdir, max_files=_MAX_FILES, max_bytes=_MAX_BYTES)
            except (OSError, ValueError) as error:
                raise BuildError(f"what the build left cannot be kept: {error}") from error

    def run(self, language: Language, files: Mapping[str, bytes], cases: Sequence[StdioCase]) -> list[Ran]:
        """Run the program once for each case, each time in a sandbox that nothing else has run in.

        Raises:
            SandboxError: a sandbox failed.
        """
        memory = max(self.spec.memory_mb, language.memory_mb)
        spec = self.spec.model_copy(update={"memory_mb": memory})
        left = self.shared.total_s
        done: list[Ran] = []
        for case in cases:
            if left <= 0:
                done.append(Ran("unrun", text="no time was left for it"))
                continue
            with self.sandboxes.start(spec) as box:
                box.upload(files)
                done.append(run_in(box, language, self.shared, case, box.workdir, left))
            left -= done[-1].seconds
        return done

    def show_that_running_works(self, language: Language) -> None:
        """Build and run the language's harmless program the same way.

        Raises:
            SandboxError: it fails, too, so no submission is to blame for failing here.
        """
        fault = f"a harmless {language.name} program cannot be judged in this sandbox, which needs {language.install}"
        try:
            files = self.build(language, language.control)
        except BuildError as error:
            raise SandboxError(f"{fault}: {error}") from error
        (ran,) = self.run(language, files, [StdioCase(stdin=_CONTROL_INPUT, stdout=_CONTROL_INPUT)])
        if ran.end != "ok" or ran.stdout.decode("utf-8", "replace").strip() != _CONTROL_INPUT.strip():
            raise SandboxError(f"{fault}: {ran.text or 'its output is not its input'}")


def compile_in(box: Sandbox, language: Language, shared: StdioShared, folder: str) -> None:
    """Build the source that lies in a folder of a sandbox.

    Raises:
        BuildError: it does not build.
    """
    if language.build is None:
        return
    result = box.exec(language.build, timeout=shared.build_s, cwd=folder, output_limit=_STDERR_BYTES)
    if result.timed_out:
        raise BuildError(f"building took longer than {shared.build_s:g} s")
    if not result.ok:
        raise BuildError(result.output.strip() or f"the build ended with exit code {result.exit_code}")


def run_in(
    box: Sandbox, language: Language, shared: StdioShared, case: StdioCase, folder: str, left: float = float("inf")
) -> Ran:
    """Run a built program on one case's input."""
    arguments = "".join(f" {shlex.quote(one)}" for one in case.args)
    result = box.exec(
        f"ulimit -t {shared.cpu_s}; {language.run}{arguments}",
        timeout=min(shared.case_s, left),
        stdin=_bytes(case.stdin),
        cwd=folder,
        output_limit=shared.output_kb << 10,
    )
    end = _end(result, shared)
    return Ran(end, result.stdout, _why(end, result, shared), result.duration_s)


def _end(result: ExecResult, shared: StdioShared) -> Literal["ok", "exit", "cpu", "clock", "memory", "flood"]:
    if result.timed_out:
        return "clock"
    if result.oom:
        return "memory"
    if len(result.stdout) >= shared.output_kb << 10:
        return "flood"
    if result.ok:
        return "ok"
    return "cpu" if result.exit_code == 137 and result.duration_s >= shared.cpu_s * 0.9 else "exit"


def _why(end: str, result: ExecResult, shared: StdioShared) -> str:
    match end:
        case "ok":
            return ""
        case "clock":
            return f"took longer than {shared.case_s:g} s"
        case "cpu":
            return f"used more than {shared.cpu_s} s of a processor"
        case "memory":
            return "used more memory than it may"
        case "flood":
            return f"printed more than {shared.output_kb} KB"
    lines = result.stderr.decode("utf-8", "replace").strip().splitlines()
    said = f": {lines[-1]}" if lines else ""
    return f"ended with exit code {result.exit_code}{said}"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
