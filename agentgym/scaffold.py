"""The files that `agentgym new` writes: a whole environment of at most thirty lines, valid as it is, and its test."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from agentgym.errors import AgentgymError

_PLAIN = '''"""${title}: replace the task, the tools and the grader by yours."""

from agentgym import AgentEnv, Hidden, Public, Submission, Submit, Task, TaskSet, register, tool


def make_task(seed: int, difficulty: float) -> Task:
    left, right = 17 + 3 * seed, int(12 * difficulty) + seed
    public, gold = Public(prompt=f"What is {left} * {right}?"), str(left * right)
    return Task(id=f"{seed}", split="test" if seed % 2 else "train", public=public, hidden=Hidden(data={"n": gold}))


@register("${namespace}/${class_name}-v0")
class ${class_name}(AgentEnv):
    tasks = TaskSet.from_generator("${name}", make_task, count=40)

    @tool
    def multiply(self, left: int, right: int) -> str:
        """Multiply two whole numbers."""
        return str(left * right)

    @tool
    def answer(self, number: str) -> Submit:
        """Hand in the number."""
        return Submit(number)

    def grade(self, task: Task, submission: Submission) -> bool:
        return submission.answer == task.hidden.data["n"]

    def oracle(self, task: Task) -> list[str]:
        return [f"```answer\\n{task.hidden.data['n']}\\n```"]
'''
_SANDBOXED = '''"""${title}: replace the task, the tools and the grader by yours."""

from agentgym import AgentEnv, Hidden, Public, Submission, Submit, Task, TaskSet, register, tool


def make_task(seed: int, difficulty: float) -> Task:
    text = "\\n".join(("red", "green", "blue")[pow(seed + 7, place, 101) % 3] for place in range(60))
    public, gold = Public(prompt="How many lines of words.txt are 'red'?", files={"words.txt": text}), text.count("red")
    return Task(id=f"{seed}", split="test" if seed % 2 else "train", public=public, hidden=Hidden(data={"n": gold}))


@register("${namespace}/${class_name}-v0")
class ${class_name}(AgentEnv):
    tasks, sandboxed = TaskSet.from_generator("${name}", make_task, count=40), True

    @tool
    def sh(self, script: str) -> str:
        """Run a shell script beside the file."""
        return self.sandbox.exec(script, timeout=10).output

    @tool
    def answer(self, number: str) -> Submit:
        """Hand in the number."""
        return Submit(number)

    def grade(self, task: Task, submission: Submission) -> bool:
        return submission.answer == str(task.hidden.data["n"])

    def oracle(self, task: Task) -> list[str]:
        return ["```sh\\ngrep -c red words.txt\\n```", f"```answer\\n{task.hidden.data['n']}\\n```"]
'''
_TEST = '''"""${title} keeps every promise of an environment."""

from agentgym.validate import validate

from ${module} import ${class_name}


def test_every_task_is_valid() -> None:
    found = validate(${class_name}, list(${class_name}().tasks))
    assert found.passed, found.findings
'''


def write(name: str, folder: Path, *, sandbox: bool = False) -> tuple[Path, Path]:
    """Write an environment's file and its test, and return their paths; existing files stay as they are.

    Raises:
        AgentgymError: for a name that cannot name a Python module, or a file that is there already.
    """
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module) or keyword.iskeyword(module):
        raise AgentgymError(f"wanted a name of small letters, digits and dashes such as my-env, found {name!r}")
    words = [word for word in module.split("_") if word]
    names = {
        "name": name,
        "module": module,
        "namespace": "mine",
        "class_name": "".join(word.capitalize() for word in words),
        "title": " ".join(words).capitalize(),
    }
    files = {
        folder / f"{module}.py": _SANDBOXED if sandbox else _PLAIN,
        folder / f"test_{module}.py": _TEST,
    }
    for path in files:
        if path.exists():
            raise AgentgymError(f"{path} is there already; choose another name or folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path, template in files.items():
        path.write_text(Template(template).substitute(names), encoding="utf-8")
    code, test = files
    return code, test
