"""What is hidden of a task over a large world, as whole texts.

A wanted record is made of values that stand in the world, and a wanted call names a tool that is offered. What nothing
may show is the whole of them, so that is what is kept as one text and looked for when tasks are validated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from agentgym.task import Hidden, Task

_NAME = "sealed"


def sealed(data: Mapping[str, Any], actions: Sequence[Mapping[str, Any]]) -> Hidden:
    """Return what is hidden, and a reference's actions, as texts."""
    return Hidden(data={_NAME: json.dumps(data)}, reference={"actions": [json.dumps(one) for one in actions]})


def opened(task: Task) -> Task:
    """Return a task as graders read it; one that is not sealed is returned as it is."""
    if _NAME not in task.hidden.data:
        return task
    texts: Any = task.hidden.reference["actions"]
    data = json.loads(cast(str, task.hidden.data[_NAME]))
    return task.model_copy(update={"hidden": Hidden(data=data, reference={"actions": list(map(json.loads, texts))})})
