from pathlib import Path
from agentgym.task import TaskSet
def tasks(path: Path) -> TaskSet: raise NotImplementedError
