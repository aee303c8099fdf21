"""Arithmetic and statistics; nothing is remembered."""

from __future__ import annotations

import math
import statistics
from decimal import Context, Decimal
from typing import Any

from agentgym.tools import tool
from agentgym_envs.bfcl.apis.base import Api, facts

_METRES = {"km": 1000, "m": 1, "cm": 0.01, "mm": 0.001, "um": 1e-6, "nm": 1e-9}
_MOST_DIGITS = 100


class MathAPI(Api):
    """Numbers in, one number out, as `{"result": …}`."""

    @tool
    def logarithm(self, value: float, base: float, precision: int) -> Any:
        """Compute the logarithm of a number to a base, with so many significant digits."""
        if value <= 0 or base <= 0 or base == 1:
            raise ValueError("wanted a positive value and a positive base other than 1")
        return _result(_digits(math.log(value) / math.log(base), precision))

    @tool
    def mean(self, numbers: list[float]) -> Any:
        """Calculate the mean of a list of numbers."""
        return _result(sum(_some(numbers)) / len(numbers))

    @tool
    def standard_deviation(self, numbers: list[float]) -> Any:
        """Calculate the standard deviation of a list of numbers, taken as the whole population."""
        try:
            return _result(statistics.pstdev(_some(numbers)))
        except OverflowError as error:
            raise ValueError("the numbers are too large") from error

    @tool
    def si_unit_conversion(self, value: float, unit_in: str, unit_out: str) -> Any:
        """Convert a length between km, m, cm, mm, um and nm."""
        if unit_in not in _METRES or unit_out not in _METRES:
            raise ValueError(f"there is no conversion from {unit_in!r} to {unit_out!r}; units are {', '.join(_METRES)}")
        return _result(value * _METRES[unit_in] / _METRES[unit_out])

    @tool
    def imperial_si_conversion(self, value: float, unit_in: str, unit_out: str) -> Any:
        """Convert between imperial and SI units: cm and in, m and ft or yd, km and miles, kg and lb, celsius and fahrenheit."""  # noqa: E501
        match unit_in, unit_out:
            case "celsius", "fahrenheit":
                return _result(value * 1.8 + 32)
            case "fahrenheit", "celsius":
                return _result((value - 32) / 1.8)
        factor = 1.0 if unit_in == unit_out else facts()["inch_and_mile"].get(f"{unit_in}_{unit_out}")
        if factor is None:
            raise ValueError(f"there is no conversion from {unit_in!r} to {unit_out!r}")
        return _result(value * factor)

    @tool
    def add(self, a: float, b: float) -> Any:
        """Add two numbers."""
        return _result(a + b)

    @tool
    def subtract(self, a: float, b: float) -> Any:
        """Subtract b from a."""
        return _result(a - b)

    @tool
    def multiply(self, a: float, b: float) -> Any:
        """Multiply two numbers."""
        return _result(a * b)

    @tool
    def divide(self, a: float, b: float) -> Any:
        """Divide a by b."""
        if b == 0:
            raise ValueError("nothing can be divided by zero")
        return _result(a / b)

    @tool
    def power(self, base: float, exponent: float) -> Any:
        """Raise a number to a power."""
        try:
            return _result(math.pow(base, exponent))
        except (OverflowError, ValueError) as error:
            raise ValueError(f"the power cannot be told: {error}") from error

    @tool
    def square_root(self, number: float, precision: int) -> Any:
        """Calculate the square root of a number, with so many significant digits."""
        if not 0 <= number < math.inf:
            raise ValueError("wanted a number that is not negative")
        return _result(float(Decimal(number).sqrt(Context(prec=_precision(precision)))))

    @tool
    def absolute_value(self, number: float) -> Any:
        """Calculate the absolute value of a number."""
        return _result(abs(number))

    @tool
    def round_number(self, number: float, decimal_places: int = 0) -> Any:
        """Round a number to so many decimal places."""
        return _result(round(number, max(-_MOST_DIGITS, min(_MOST_DIGITS, decimal_places))))

    @tool
    def percentage(self, part: float, whole: float) -> Any:
        """Calculate how many percent of the whole a part is."""
        if whole == 0:
            raise ValueError("the whole must not be zero")
        return _result(part / whole * 100)

    @tool
    def min_value(self, numbers: list[float]) -> Any:
        """Find the least number of a list."""
        return _result(min(_some(numbers)))

    @tool
    def max_value(self, numbers: list[float]) -> Any:
        """Find the greatest number of a list."""
        return _result(max(_some(numbers)))

    @tool
    def sum_values(self, numbers: list[float]) -> Any:
        """Add up a list of numbers."""
        return _result(sum(_some(numbers)))


def _result(value: float) -> dict[str, float]:
    if not math.isfinite(value):
        raise ValueError("the result is too large")
    return {"result": value}


def _some(numbers: list[float]) -> list[float]:
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError("wanted at least one number, and finite ones only")
    return numbers


def _precision(digits: int) -> int:
    if not 1 <= digits <= _MOST_DIGITS:
        raise ValueError(f"wanted a precision from 1 to {_MOST_DIGITS}, found {digits}")
    return digits


def _digits(value: float, precision: int) -> float:
    return float(f"{value:.{_precision(precision)}g}")
