"""Count a word in a file: a shell in a sandbox, and a grader that knows the number."""

from agentgym import AgentEnv, Hidden, Public, Submission, Submit, Task, TaskSet, register, tool


def make_task(seed: int, difficulty: float) -> Task:
    text = "\n".join(("red", "green", "blue")[pow(seed + 7, place, 101) % 3] for place in range(60))
    public, gold = Public(prompt="How many lines of words.txt are 'red'?", files={"words.txt": text}), text.count("red")
    return Task(id=f"{seed}", split="test" if seed % 2 else "train", public=public, hidden=Hidden(data={"n": gold}))


@register("docs/WordCount-v0")
class WordCount(AgentEnv):
    tasks, sandboxed = TaskSet.from_generator("word-count", make_task, count=40), True

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
        return ["```sh\ngrep -c red words.txt\n```", f"```answer\n{task.hidden.data['n']}\n```"]
