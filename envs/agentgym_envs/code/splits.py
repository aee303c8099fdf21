"""Which split a generated task belongs to: decided by what the agent may see, so that no two splits share a task."""

from __future__ import annotations

import hashlib

from agentgym.task import Public, Task
from agentgym.types import Split

DEFAULT_FILE = "solution.py"


def digest(text: str) -> str:
    """Return a short, stable name for a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def split_of(name: str) -> Split:
    """Return the split of a digest: 80% train, 10% validation, 10% test.

    >>> split_of("000000000000"), split_of("ffffffffffff")
    ('train', 'test')
    """
    share = int(name[:8], 16) / 0x1_0000_0000
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def digest_of(public: Public) -> str:
    """Return the digest of what the agent may see."""
    return digest(Task(id="", split="train", public=public).content)
