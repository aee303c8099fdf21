"""What a mined task says: the commit's own words, what its failing tests said, or what a model makes of both."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agentgym.errors import AgentgymError
from agentgym.graders.judge_client import Client, EndpointError, RefusedError
from agentgym.graders.judge_settings import JudgeSettings

_SHORT = 200
"""Messages of fewer characters are told with what the failing tests said."""
_SHOWN = 3
_NOISE = re.compile(r"^merge (pull request|branch|remote-tracking branch) ", re.I)
_TRAILER = re.compile(r"^(signed-off-by|co-authored-by|reviewed-by|change-id|cc|git-svn-id|\(cherry picked)\b.*", re.I)
_ASK = """You write bug reports and feature requests for software projects. From a commit's message, its patch and what
its tests said before, write the issue that somebody who saw only the wrong or missing behaviour would have filed:
a title line, what was done, what happened and what should happen, with an example. Everything that the tests check must
follow from it. Never mention the commit, the patch, the tests, or how to mend the code. Answer with the issue alone."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an issue can be written from."""

    repository: str
    message: str
    patch: str
    errors: Mapping[str, str]
    """What the failing tests said, by id."""


Writer = Callable[[Found], str]


def plain(found: Found) -> str:
    """Return the commit's message, and for a short one what the failing tests said.

    >>> print(plain(Found("a/b", "Fix #3", "", {"tests/test_a.py::test_b": "ZeroDivisionError: division by zero"})))
    Fix #3
    <BLANKLINE>
    At present:
    - ZeroDivisionError: division by zero
    """
    text = clean(found.message) or f"Something is wrong with {found.repository}."
    seen = list(dict.fromkeys(_line(one) for one in found.errors.values() if one.strip()))
    if len(text) >= _SHORT or not seen:
        return text
    more = f"\n- and {len(seen) - _SHOWN} more like these" if len(seen) > _SHOWN else ""
    return f"{text}\n\nAt present:\n" + "\n".join(f"- {one}" for one in seen[:_SHOWN]) + more


def by_model(url: str, model: str, api_key_variable: str | None = None) -> Writer:
    """Return what asks a model behind an OpenAI-compatible endpoint to write issues (back-translation, R2E-Gym).

    Raises:
        AgentgymError: the client's package is not installed; later, from the writer, the endpoint does not answer.
    """
    settings = JudgeSettings(enabled=True, url=url, model=model, api_key_variable=api_key_variable)
    client = Client(settings)

    def write(found: Found) -> str:
        errors = "\n".join(f"- {name}: {text}" for name, text in list(found.errors.items())[:10])
        told = f"Commit message:\n{found.message}\n\nPatch:\n{found.patch}\n\nIts tests said before:\n{errors}"
        try:
            text = client.complete([{"role": "system", "content": _ASK}, {"role": "user", "content": told}], seed=0)
        except (EndpointError, RefusedError) as error:
            raise AgentgymError(f"the model {model!r} wrote no issue: {error}") from error
        return text.strip() or plain(found)

    return write


def clean(message: str) -> str:
    """Return a commit's message without what is of use to version control alone."""
    lines = [
        line.rstrip() for line in message.splitlines() if not _TRAILER.match(line.strip()) and not _NOISE.match(line)
    ]
    return "\n".join(lines).strip()


def _line(text: str) -> str:
    first = " ".join(re.split(r"\n\s*\+", text)[0].split())  # pytest goes on to say where each value is from
    return first if len(first) <= 300 else first[:299] + "…"
