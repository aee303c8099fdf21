"""Numbers with units in answers, compared exactly, as fractions: no rounding decides a reward."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from fractions import Fraction

MAX_CHARACTERS = 100
_MAX_EXPONENT = 400
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?P<part>\.[0-9]*)?"
    r"(?:[eE](?P<power>[+-]?[0-9]{1,4})|\s*(?:x|\u00d7|\*|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*\{?(?P<ten>[+-]?[0-9]{1,4})\}?)?"
    r"(?:\s*/\s*(?P<below>[0-9]{1,30}))?"
)


def number(text: str) -> tuple[Fraction, str] | None:
    r"""Return the number that a text is and what stands before or after it; None if it is none, or more than one.

    Neither `nan` nor `inf` is a number, nor is anything with an exponent beyond 400.

    >>> number("1,234.5 km"), number("$ 3/4"), number("6.02 \\times 10^{23}")[0] == 602 * 10**21
    ((Fraction(2469, 2), 'km'), (Fraction(3, 4), '$'), True)
    >>> number("3 or 4"), number("nan"), number("1,23")
    (None, None, None)
    """
    bare = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-").strip()
    if len(bare) > MAX_CHARACTERS:
        return None
    start = next((place for place, one in enumerate(bare) if one in "+-.0123456789"), None)
    found = _NUMBER.match(bare, start) if start is not None else None
    if start is None or found is None or not any(one.isdigit() for one in found["whole"] + (found["part"] or "")):
        return None
    before, after = bare[:start].strip(), bare[found.end() :].strip()
    after = after.removesuffix(".").strip() if "." not in after[:-1] else after
    if (before and after) or any(one.isdigit() or one in ",;" for one in before + after):
        return None
    power, below = int(found["power"] or found["ten"] or 0), int(found["below"] or 1)
    if abs(power) > _MAX_EXPONENT or below == 0:
        return None
    digits = found["whole"].replace(",", "") + (found["part"] or "")
    value = Fraction(f"{found['sign']}{digits.rstrip('.') or '0'}") * Fraction(10) ** power / below
    return value, before or after


def in_units(text: str, units: Mapping[str, Fraction], *, bare: bool) -> Fraction | None:
    """Return a text's number times its unit's factor; None if it is none, or has a unit that is not among `units`.

    >>> in_units("2.5 km", {"m": Fraction(1), "km": Fraction(1000)}, bare=False)
    Fraction(2500, 1)
    """
    found = number(text)
    if found is None:
        return None
    value, unit = found
    if not unit:
        return value if bare else None
    factor = units.get(unit)
    return None if factor is None else value * factor
