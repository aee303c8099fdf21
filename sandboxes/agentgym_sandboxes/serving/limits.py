"""How much of a server its clients may use."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Limits(BaseModel):
    """Every bound of a server; what goes beyond one is refused with a sentence that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clients: _Count = 64
    sandboxes: _Count = 128
    """Open at once, for each client."""
    snapshots: _Count = 128
    """Kept at once, for each client."""
    calls: _Count = 512
    """Commands and other calls that run at once; more of them wait for their turn."""
    calls_per_client: _Count = 128
    """The same for each client, so that none can take all turns."""
    waiting: _Count = 4096
    """Calls of a client that run, wait, or have an answer that it has not fetched."""
    body_mb: _Count = 256
    """MB of one request or answer."""
    pending_mb: _Count = 1024
    """MB of all requests that arrive, wait or run."""
    stall_s: _Seconds = 20.0
    """How long a request may stand still, and how far it may fall behind 32 kB a second."""
    lease_s: _Seconds = 30.0
    """A client that was silent for so long loses its sandboxes."""
    grace_s: _Seconds = 5.0
    """The same for a client whose connection broke, as it does when its process dies."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.pending_mb < self.body_mb:
            raise ValueError(f"pending_mb={self.pending_mb} leaves no room for one body of body_mb={self.body_mb}")
        if self.grace_s > self.lease_s:
            raise ValueError(f"grace_s={self.grace_s:g} must not be longer than lease_s={self.lease_s:g}")
        return self

    def refuse_answer(self, name: str, wanted: int) -> None:
        """Refuse to prepare an answer that would be too large to send.

        Raises:
            ValueError: naming the limit.
        """
        if wanted > self.body_mb << 20:
            raise ValueError(
                f"{name}={wanted} is more than the {self.body_mb << 20} bytes that this sandbox server sends at once; "
                "ask for less, or serve with a larger limit body_mb"
            )
