"""What a program printed, compared with what it had to print, in the way that the task declares."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from agentgym.types import Record

_DECIMAL = re.compile(rb"[+-]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})([eE][+-]?\d{1,3})?")
_Tolerance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Output(Record):
    """How an output is compared; a task names its mode, because none is right for all."""

    mode: Literal["exact", "trailing", "tokens", "numbers"]
    """`exact`: byte by byte. `trailing`: without white space at the ends of lines and without empty lines at the end.
    `tokens`: words between white space. `numbers`: like `tokens`, where a decimal numeral may differ by a tolerance."""
    rel_tol: _Tolerance | None = None
    abs_tol: _Tolerance | None = None
    """A number may differ by the larger of `abs_tol` and `rel_tol` times the wanted number."""

    @model_validator(mode="after")
    def _tolerance_belongs_to_numbers(self) -> Self:
        declared = self.rel_tol is not None or self.abs_tol is not None
        if declared != (self.mode == "numbers"):
            wanted = "rel_tol or abs_tol" if self.mode == "numbers" else "no tolerance"
            raise ValueError(f"wanted {wanted} with the mode {self.mode!r}; it compares otherwise than declared")
        return self

    def same(self, wanted: bytes, found: bytes) -> bool:
        r"""Whether a program that had to print `wanted` may print `found`.

        >>> Output(mode="trailing").same(b"1 2\n", b"1 2  \n\n"), Output(mode="trailing").same(b"1 2\n", b"1  2\n")
        (True, False)
        >>> Output(mode="numbers", abs_tol=0.01).same(b"x 0.5", b"x .501"), Output(mode="tokens").same(b"5", b"5.0")
        (True, False)
        """
        match self.mode:
            case "exact":
                return wanted == found
            case "trailing":
                return _without_trailing(wanted) == _without_trailing(found)
            case "tokens":
                return wanted.split() == found.split()
            case "numbers":
                one, other = wanted.split(), found.split()
                return len(one) == len(other) and all(self._close(*pair) for pair in zip(one, other, strict=True))

    def _close(self, wanted: bytes, found: bytes) -> bool:
        if wanted == found:
            return True
        if not (_DECIMAL.fullmatch(wanted) and _DECIMAL.fullmatch(found)):
            return False  # also for nan and inf, which are near nothing
        one, other = Decimal(wanted.decode()), Decimal(found.decode())
        allowed = max(Decimal(self.abs_tol or 0.0), Decimal(self.rel_tol or 0.0) * abs(one))
        return abs(one - other) <= allowed


def _without_trailing(text: bytes) -> list[bytes]:
    lines = [line.rstrip() for line in text.split(b"\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines
