"""Texts of answers: where the answer stands, and what remains without case, articles and punctuation."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Literal

Where = Literal["whole", "tag", "boxed"]
"""Where in the handed-in text the answer stands: all of it, or between `<answer>` tags, or in LaTeX's `\\boxed`."""

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BRACE = re.compile(r"\\boxed\{|[{}]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def standing(text: str, where: Where) -> tuple[str | None, str]:
    r"""Return the one answer that a text gives, or why there is none; several that differ are none.

    >>> standing("so <answer> 4 </answer>", "tag"), standing(r"so \boxed{\frac{1}{2}}", "boxed")
    (('4', ''), ('\\frac{1}{2}', ''))
    >>> standing("<answer>4</answer> or <answer>5</answer>", "tag")
    (None, 'wanted one answer between <answer> tags, found 2 that differ')
    """
    if where == "whole":
        return text.strip(), ""
    found = _TAG.findall(text) if where == "tag" else _boxes(text)
    distinct = {one.strip() for one in found}
    if len(distinct) == 1:
        return distinct.pop(), ""
    place = "between <answer> tags" if where == "tag" else "in \\boxed{}"
    return None, f"wanted one answer {place}, found {f'{len(distinct)} that differ' if distinct else 'none'}"


def _boxes(text: str) -> list[str]:
    found, opened = [], list[int | None]()
    for one in _BRACE.finditer(text):
        if one[0] != "}":
            opened.append(one.end() if one[0] != "{" else None)
        elif opened and (start := opened.pop()) is not None:
            found.append(text[start : one.start()])
    return found


def plain(text: str) -> str:
    """Return a text in Unicode's compatibility form, with single spaces and none around it."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def normalised(text: str) -> str:
    """Return what SQuAD compares (Rajpurkar et al. 2016): no case, no ASCII punctuation, no English articles.

    >>> normalised("The  Eiffel-Tower!")
    'eiffeltower'
    """
    bare = plain(text).casefold().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def token_f1(gold: str, found: str) -> float:
    """Return the F1 of the normalised tokens that two texts share (Rajpurkar et al. 2016).

    >>> token_f1("the red fox", "a red dog")
    0.5
    """
    one, other = normalised(gold).split(), normalised(found).split()
    common = sum((Counter(one) & Counter(other)).values())
    return 2 * common / (len(one) + len(other)) if common else 0.0


def split(text: str, separator: str) -> Sequence[str]:
    """Return the parts of a list that is written with a separator, without the space around each."""
    return [plain(one) for one in text.split(separator)]
