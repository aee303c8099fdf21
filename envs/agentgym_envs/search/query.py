"""Queries as an agent writes them, made into words that no search engine takes for syntax."""

from __future__ import annotations

import re
import unicodedata

MAX_CHARACTERS = 1000
MAX_WORDS = 64

# Scripts written without spaces: each character is a word of its own, so that any part of a run is found.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def segmented(text: str) -> str:
    """Return a text in which characters of scripts without spaces stand apart; the same is done to what is indexed.

    >>> segmented("Tokyo 東京")
    'Tokyo  東  京 '
    """
    if text.isascii():
        return text
    return _UNSPACED.sub(r" \g<0> ", unicodedata.normalize("NFC", text))


def words(query: str) -> list[str]:
    r"""Return the distinct words of a query, in order: letters, marks and digits, and nothing else of it.

    >>> words('title:"Lima" OR (NEAR* Peru) -- Lima'), words("東京 \x00\ud800")
    (['title', 'Lima', 'OR', 'NEAR', 'Peru'], ['東', '京'])
    """
    text = segmented(query[:MAX_CHARACTERS].encode("utf-8", "ignore").decode())
    bare = "".join(one if unicodedata.category(one)[0] in "LNM" else " " for one in text)
    unique: dict[str, str] = {}
    for one in bare.split():
        if any(unicodedata.category(part)[0] != "M" for part in one):  # marks alone are no word
            unique.setdefault(one.casefold(), one)
    return list(unique.values())[:MAX_WORDS]


def match_expression(chosen: list[str]) -> str:
    """Return an FTS5 expression that any of the words fulfils; each is quoted, so none of them is an operator.

    >>> match_expression(["Lima", "OR"])
    '"Lima" OR "OR"'
    """
    return " OR ".join(f'"{one}"' for one in chosen)
