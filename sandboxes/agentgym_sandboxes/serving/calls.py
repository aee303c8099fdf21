"""What a client may ask: one model for each call, validated before anything happens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from agentgym.errors import SandboxError
from agentgym.sandbox import Sandbox, SandboxSpec, Shell, Terminal
from agentgym_sandboxes.remote_wire import pack_result, unpack
from agentgym_sandboxes.serving.tenant import Tenant


class _Call(BaseModel, ABC):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    is_closing: ClassVar[bool] = False
    """Whether it ends something, and so must not wait behind what it ends."""

    @abstractmethod
    def run(self, tenant: Tenant) -> Any:
        """Do it and return plain types."""

    def undo(self, tenant: Tenant, answer: Any) -> None:
        """End what it began, for nobody will ever use it."""


class _Begins(_Call):
    def undo(self, tenant: Tenant, answer: Any) -> None:
        tenant.close(answer["id"])


class _Accept(_Call):
    call: Literal["accept"]
    spec: SandboxSpec

    def run(self, tenant: Tenant) -> None:
        tenant.accept(self.spec)


class _Start(_Begins):
    call: Literal["start"]
    spec: SandboxSpec

    def run(self, tenant: Tenant) -> dict[str, str]:
        return _named(tenant.start(self.spec))


class _Fork(_Begins):
    call: Literal["fork"]
    snapshot: str

    def run(self, tenant: Tenant) -> dict[str, str]:
        return _named(tenant.fork(self.snapshot))


class _Drop(_Call):
    is_closing = True
    call: Literal["drop"]
    snapshot: str

    def run(self, tenant: Tenant) -> None:
        tenant.drop(self.snapshot)


class _Exec(_Call):
    call: Literal["exec"]
    sandbox: str
    command: str | list[str]
    timeout: float
    stdin: bytes
    user: str | None
    cwd: str | None
    env: dict[str, str] | None
    output_limit: int

    def run(self, tenant: Tenant) -> dict[str, Any]:
        tenant.limits.refuse_answer("output_limit", self.output_limit)
        result = tenant.sandbox(self.sandbox).exec(
            self.command,
            timeout=self.timeout,
            stdin=self.stdin,
            user=self.user,
            cwd=self.cwd,
            env=self.env,
            output_limit=self.output_limit,
        )
        return pack_result(result)


class _Read(_Call):
    call: Literal["read"]
    sandbox: str
    path: str
    limit: int

    def run(self, tenant: Tenant) -> bytes:
        tenant.limits.refuse_answer("limit", self.limit)
        return tenant.sandbox(self.sandbox).read(self.path, limit=self.limit)


class _Upload(_Call):
    call: Literal["upload"]
    sandbox: str
    files: dict[str, bytes]

    def run(self, tenant: Tenant) -> None:
        tenant.sandbox(self.sandbox).upload(self.files)


class _Download(_Call):
    call: Literal["download"]
    sandbox: str
    path: str
    max_files: int
    max_bytes: int

    def run(self, tenant: Tenant) -> dict[str, bytes]:
        tenant.limits.refuse_answer("max_bytes", self.max_bytes)
        box = tenant.sandbox(self.sandbox)
        return box.download(self.path, max_files=self.max_files, max_bytes=self.max_bytes)


class _Contacts(_Call):
    call: Literal["contacts"]
    sandbox: str

    def run(self, tenant: Tenant) -> list[dict[str, Any]]:
        return [asdict(one) for one in tenant.sandbox(self.sandbox).contacts()]


class _Snapshot(_Call):
    call: Literal["snapshot"]
    sandbox: str

    def run(self, tenant: Tenant) -> str:
        return tenant.snapshot(self.sandbox)

    def undo(self, tenant: Tenant, answer: Any) -> None:
        tenant.drop(answer)


class _Close(_Call):
    is_closing = True
    call: Literal["close"]
    sandbox: str

    def run(self, tenant: Tenant) -> None:
        tenant.close(self.sandbox)


class _Opens(_Call):
    def undo(self, tenant: Tenant, answer: Any) -> None:
        tenant.close_session(answer)


class _OpenShell(_Opens):
    call: Literal["shell"]
    sandbox: str

    def run(self, tenant: Tenant) -> str:
        return tenant.open(self.sandbox, lambda box: box.shell())


class _OpenTerminal(_Opens):
    call: Literal["terminal"]
    sandbox: str
    command: str | list[str]
    rows: int
    columns: int

    def run(self, tenant: Tenant) -> str:
        return tenant.open(self.sandbox, lambda box: box.terminal(self.command, rows=self.rows, columns=self.columns))


class _RunInShell(_Call):
    call: Literal["run"]
    session: str
    script: str
    timeout: float
    output_limit: int

    def run(self, tenant: Tenant) -> dict[str, Any]:
        tenant.limits.refuse_answer("output_limit", self.output_limit)
        shell: Shell = _typed(tenant, self.session, "run")
        return pack_result(shell.run(self.script, timeout=self.timeout, output_limit=self.output_limit))


class _Type(_Call):
    call: Literal["type"]
    session: str
    data: bytes
    timeout: float

    def run(self, tenant: Tenant) -> None:
        terminal: Terminal = _typed(tenant, self.session, "send")
        terminal.send(self.data, timeout=self.timeout)


class _Look(_Call):
    call: Literal["look"]
    session: str
    timeout: float
    quiet: float
    until: bytes | None

    def run(self, tenant: Tenant) -> list[Any]:
        terminal: Terminal = _typed(tenant, self.session, "read")
        seen = terminal.read(timeout=self.timeout, quiet=self.quiet, until=self.until)
        return [seen.data, seen.exit_code]


class _Resize(_Call):
    call: Literal["resize"]
    session: str
    rows: int
    columns: int

    def run(self, tenant: Tenant) -> None:
        terminal: Terminal = _typed(tenant, self.session, "resize")
        terminal.resize(self.rows, self.columns)


class _CloseSession(_Call):
    is_closing = True
    call: Literal["close_session"]
    session: str

    def run(self, tenant: Tenant) -> None:
        tenant.close_session(self.session)


Call = (
    _Accept | _Start | _Fork | _Drop | _Exec | _Read | _Upload | _Download | _Contacts | _Snapshot | _Close | _OpenShell
    | _OpenTerminal | _RunInShell | _Type | _Look | _Resize | _CloseSession
)  # fmt: skip
_CALLS: TypeAdapter[Call] = TypeAdapter(Annotated[Call, Field(discriminator="call")])


def parse(body: bytes) -> Call:
    """Read a call.

    Raises:
        ValueError: naming the first field that is wrong.
    """
    try:
        return _CALLS.validate_python(unpack(body))
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the call"
        raise ValueError(f"{where}: {first['msg']}") from None


def _named(box: Sandbox) -> dict[str, str]:
    return {"id": box.id, "workdir": box.workdir}


def _typed(tenant: Tenant, handle: str, verb: str) -> Any:
    session = tenant.session(handle)
    if not hasattr(session, verb):
        raise SandboxError(f"the session is of a kind that cannot {verb}")
    return session
