"""Terminal tasks: folders run as they are in containers, judged in fresh ones; what cannot run says why."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import JsonValue

from agentgym import registry
from agentgym.errors import SandboxError, TaskError
from agentgym.image import ImageSpec
from agentgym.sandbox import SandboxBackend
from agentgym.task import Hidden, Task
from agentgym.types import Message, Submission, Trust, Verdict
from agentgym.validate import Plan, validate
from agentgym_envs.terminal.env import TerminalEnv
from agentgym_envs.terminal.handing_in import Folder
from agentgym_envs.terminal.verify import in_place

DOCKERFILE = "FROM agentgym-base:latest\nUSER 0\nWORKDIR /app\nCOPY words.txt .\nRUN chmod 777 /srv\n"
TEST = """#!/bin/bash
if [ "$(cat /app/count.txt 2>/dev/null)" = 2 ] && [ -x /app/tool ] && [ ! -e /app/words.txt ] \
    && [ "$WANTED" = yes ] && grep -q done /srv/note.txt; then
  echo 1 >/logs/verifier/reward.txt
else
  echo 0 >/logs/verifier/reward.txt
fi
"""
SOLVE = "#!/bin/bash\ngrep -c red words.txt >count.txt\nrm words.txt\ncp /bin/true tool\necho done >/srv/note.txt\n"
TOML = """version = "1.0"
artifacts = ["/srv/note.txt"]
[metadata]
difficulty = "easy"
[verifier]
timeout_sec = 60.0
env = { WANTED = "yes" }
environment_mode = "shared"
[environment]
memory_mb = 256
"""
COMPOSE = {"services": {"client": {"build": {"dockerfile": "Dockerfile"}, "command": ["sleep", "infinity"],
                                   "volumes": ["${T_BENCH_LOGS}:/logs"]}}}  # fmt: skip


def write(folder: Path, files: Mapping[str, str | None]) -> Path:
    for name, text in files.items():
        if text is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    return folder


def harbor(root: Path, **changes: str | None) -> Path:
    files: dict[str, str | None] = {
        "task.toml": TOML,
        "instruction.md": "How many lines of words.txt are red? Write it to count.txt, take words.txt away.\n",
        "environment/Dockerfile": DOCKERFILE,
        "environment/words.txt": "red\nblue\nred\n",
        "tests/test.sh": TEST,
        "solution/solve.sh": SOLVE,
        **{name.replace("__", "/"): text for name, text in changes.items()},
    }
    write(root / "count-red", files)
    return root


def terminal_bench(root: Path, **changes: object) -> Path:
    about = {"instruction": "Write 4 to four.txt.", "parser_name": "pytest", "max_test_timeout_sec": 60, **changes}
    files = {
        "task.yaml": yaml.safe_dump(about),
        "docker-compose.yaml": yaml.safe_dump(COMPOSE),
        "Dockerfile": "FROM agentgym-base:latest\nUSER 0\nWORKDIR /app\n",
        "run-tests.sh": "python3 -m pytest -q -p no:cacheprovider $TEST_DIR/test_outputs.py -rA\n",
        "tests/test_outputs.py": "def test_four():\n    assert open('/app/four.txt').read() == '4'\n",
        "solution.sh": "printf 4 >four.txt\n",
    }
    write(root / "write-four", files)
    return root


def env(backend: SandboxBackend | str, path: Path, **options: Any) -> TerminalEnv:
    return TerminalEnv(path=str(path), sandbox=backend, **options)


def play(made: TerminalEnv, *messages: str, task: str = "count-red") -> Verdict:
    made.reset(seed=0, options={"task": task})
    for one in messages:
        _, _, terminated, _, info = made.step(one)
        if terminated:
            verdict: Verdict = info["verdict"]
            return verdict
    raise AssertionError("the episode did not end")


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def only(made: TerminalEnv) -> Task:
    (task,) = made.tasks
    return task


def counting(made: TerminalEnv) -> Task:
    return made.tasks["count-red"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return terminal_bench(harbor(tmp_path_factory.mktemp("terminal")))


@pytest.fixture(scope="module")
def docker(root: Path) -> Iterator[SandboxBackend]:
    found: SandboxBackend = registry.create("sandboxes", "docker", contexts=str(root))
    try:
        found.check()
    except SandboxError as missing:
        pytest.skip(str(missing))
    yield found
    found.close()


@pytest.mark.docker
def test_a_folder_of_harbor_keeps_every_promise_of_a_task(docker: SandboxBackend, root: Path) -> None:
    task = counting(env(docker, root))
    assert (task.sandbox.memory_mb, task.sandbox.network, task.sandbox.writable_root) == (256, "none", True)
    found = validate(lambda: env(docker, root, max_turns=4), [task], plan=Plan(jobs=1, attacks=5))
    assert found.passed, found.findings


@pytest.mark.docker
def test_the_verifier_is_separate_unless_it_is_asked_to_share(docker: SandboxBackend, root: Path) -> None:
    made = env(docker, root)
    task = counting(made)
    right = play(made, *made.oracle(task))
    assert (right.value, right.level, right.trust) == (1.0, "passed", Trust.SEPARATE)
    # What is left running is no part of what is handed in; where the verifier shares the container, it counts.
    loop = "(while :; do echo 1 >/logs/verifier/reward.txt; sleep 0.05; done) >/dev/null 2>&1 &\ntouch x"
    assert play(made, call("shell", command=loop), call("submit")).value == 0.0
    shared = env(docker, root, verifier="shared")
    right = play(shared, *shared.oracle(task))
    assert (right.value, right.trust) == (1.0, Trust.SHARED)
    assert play(shared, call("shell", command="echo 1 >/logs/verifier/reward.txt"), call("submit")).value == 0.0
    made.close()
    shared.close()


@pytest.mark.docker
def test_a_folder_of_terminal_bench_is_judged_by_its_exit_code(docker: SandboxBackend, root: Path) -> None:
    made = env(docker, root)
    right = play(made, *made.oracle(made.tasks["write-four"]), task="write-four")
    assert (right.value, right.trust, right.feedback) == (1.0, Trust.SEPARATE, "")
    wrong = play(made, call("shell", command="printf 5 >four.txt"), call("submit"), task="write-four")
    assert (wrong.value, wrong.feedback) == (0.0, "the verifier ended with exit code 1")
    made.close()


@pytest.mark.docker
def test_the_agent_types_into_a_terminal_and_finds_no_tests(docker: SandboxBackend, root: Path) -> None:
    made = env(docker, root, max_turns=200)

    def step(name: str, **arguments: object) -> str:
        messages: tuple[Message, ...] = made.step(call(name, **arguments))[0]
        return messages[0].content

    made.reset(seed=0, options={"task": "count-red"})
    assert step("shell", command="x=7; cd /tmp") == "[no output]"
    assert step("shell", command="echo $x; pwd; ls -A /tests /solution /logs/verifier; id -u").split() == [
        *("7", "/tmp", "/logs/verifier:", "/solution:", "/tests:", "1000")
    ]  # fmt: skip

    def look(word: str, seen: str) -> None:
        """Look until a word is there: what is shown ends where the terminal is silent for a moment."""
        deadline = time.monotonic() + 30
        while word not in seen and time.monotonic() < deadline:
            seen += step("keys", wait_s=1)
        assert word in seen

    look(">>> ", step("keys", text="python3 -q", key="enter", wait_s=5))
    look("42", step("keys", text="print(6 * 7)", key="enter", wait_s=3))
    look("KeyboardInterrupt", step("keys", key="ctrl-c", wait_s=3))
    assert "no key is registered as 'entre'; did you mean 'enter'?" in step("keys", key="entre")
    assert "error: this task is not answered but done: call submit" in step("answer", text="4")
    assert "[ended: it took longer than 0.2 s]" in step("shell", command="sleep 9", timeout_s=0.2)
    made.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task.toml": TOML + "gpus = 1\n"}, "it wants 1 GPUs, and sandboxes have none"),
        ({"task.toml": TOML + "allow_internet = true\n"}, "give it with network=full"),
        ({"task.toml": TOML + 'os = "windows"\n'}, "it wants windows, and sandboxes are Linux"),
        ({"task.toml": TOML + '[[environment.mcp_servers]]\nname = "x"\n'}, "it wants MCP servers"),
        ({"task.toml": TOML + "[environment.healthcheck]\ncommand = 'true'\n"}, "it waits for a service"),
        ({"task.toml": TOML + '[[steps]]\nname = "x"\n'}, "it has several steps"),
        ({"task.toml": TOML.replace('"yes"', '"${OPENAI_API_KEY}"')}, "WANTED is taken from the user's own"),
        ({"environment__Dockerfile": None}, "neither environment/Dockerfile nor docker_image"),
        ({"environment__docker-compose.yaml": yaml.safe_dump({"services": {"main": {}, "db": {}}})},
         "its docker-compose.yaml has 2 services (db, main), and one container is run here"),
        ({"environment__docker-compose.yaml": yaml.safe_dump({"services": {"main": {"privileged": True}}})},
         "asks for 'privileged', which no sandbox gives"),
    ],
)  # fmt: skip
def test_what_no_sandbox_gives_is_refused_with_a_reason(
    changes: dict[str, str | None], reason: str, tmp_path: Path
) -> None:
    made = env("docker", harbor(tmp_path, **changes))
    assert list(made.tasks) == []
    assert reason in made.tasks.refused()["count-red"]  # type: ignore[attr-defined]


def test_more_is_run_where_the_user_says_so(tmp_path: Path) -> None:
    path = harbor(tmp_path, **{"task.toml": TOML + 'allow_internet = true\nmemory = "1G"\ndocker_image = "mine:1"\n'})
    task = only(env("docker", path, network="full", task_split="train"))
    assert (task.sandbox.network, task.split) == ("full", "train")
    assert ImageSpec.from_name(str(task.sandbox.image)).base == "mine:1"
    assert env("docker", terminal_bench(tmp_path / "b", parser_name="swebench")).tasks.refused() == {  # type: ignore[attr-defined]
        "write-four": "its results are read by the parser 'swebench', and only pytest's exit code is known here"
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task.toml": "version = "}, r"task.toml is not TOML"),
        ({"task.toml": "environment = 3"}, r"is malformed: wanted \[environment\] as a table"),
        ({"tests__test.sh": None}, r"has no tests/test.sh"),
        ({"instruction.md": None}, r"has no instruction.md"),
        ({"task.toml": TOML.replace("60.0", '"soon"')}, r"is malformed: total_s: Input should be a valid number"),
    ],
)
def test_a_malformed_folder_is_one_sentence(changes: dict[str, str | None], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=sentence):
        list(env("docker", harbor(tmp_path, **changes)).tasks)


def test_options_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"holds no task folders; wanted NAME/task.toml"):
        list(env("docker", tmp_path).tasks)
    with pytest.raises(TaskError, match=r"the family 'harbor' is read from files; pass path="):
        TerminalEnv(sandbox="docker")
    with pytest.raises(TaskError, match=r"wanted per_answer of at least 1, found 0"):
        TerminalEnv(family="agentbench_os", path="x", per_answer=0, sandbox="docker")


@pytest.mark.docker
def test_a_reward_must_be_one_number(docker: SandboxBackend, root: Path) -> None:
    task = counting(env(docker, root))
    box = docker.start(task.sandbox)

    def judged(name: str, text: str, reward: str = "reward") -> Verdict:
        script = f"cat >/logs/verifier/{name} <<'END'\n{text}\nEND\n"
        data: dict[str, JsonValue] = {"tests": {"test.sh": base64.b64encode(script.encode()).decode()}}
        hidden = Hidden(data={**data, "reward": reward})
        return in_place(task.model_copy(update={"hidden": hidden}), box)

    assert (judged("reward.txt", "0.5\n").value, judged("reward.txt", "0.5").level) == (0.5, "partial")
    assert [judged("reward.txt", text).value for text in ("nan", "2", "-1", "much", "")] == [0.0] * 5
    assert judged("reward.json", '{"reward": 1, "speed": 3.5}').components == {"speed": 3.5}
    assert judged("reward.json", '{"accuracy": 0.25}').value == 0.25
    assert judged("reward.json", '{"a": 1, "b": 0}', reward="a").value == 1.0
    assert judged("reward.json", '["1"]').feedback == "the verifier's reward is no number"
    several = judged("reward.json", '{"a": 1, "b": 0}')
    assert (several.value, several.level) == (0.0, "failed")
    assert several.feedback == "the verifier gives several rewards: choose one with reward=NAME (a, b)"
    for text in ("[" * 30_000, f'{{"reward": 1{"0" * 400}}}', "x" * 70_000):
        found = judged("reward.json", text)
        assert (found.value, found.level) == (0.0, "failed")
    for end in ("mkdir {}", "ln -s /etc/passwd {}", "mkfifo {}", "head -c 70000 /dev/zero >{}"):
        for name in ("reward.txt", "reward.json"):
            script = base64.b64encode(end.format(f"/logs/verifier/{name}").encode()).decode()
            odd = task.model_copy(update={"hidden": Hidden(data={"tests": {"test.sh": script}})})
            assert (in_place(odd, box).value, in_place(odd, box).level) == (0.0, "failed")
    box.exec("mkdir /tests/mine; touch /tests/mine/stays; chmod 500 /tests/mine")
    blocked = judged("reward.txt", "1")
    assert (blocked.value, blocked.feedback) == (0.0, "the agent left no place for tests")
    box.close()


@pytest.mark.docker
def test_what_cannot_be_laid_into_a_fresh_container_is_a_zero(docker: SandboxBackend, root: Path) -> None:
    made = env(docker, root)
    task = counting(made)
    one = base64.b64encode(b"1").decode()
    for names in (["/app/words.txt/x"], ["/app/a", "/app/a/b"], [f"/app/{'x' * 256}"], [f"/app/{'x/' * 2000}x"]):
        found = made.grade(task, Submission(data={"contents": dict.fromkeys(names, one)}))
        assert isinstance(found, Verdict)
        assert (found.value, found.level) == (0.0, "malformed"), names
    made.close()


@pytest.mark.docker
def test_names_that_are_too_long_are_left_out_and_the_rest_is_handed_in(docker: SandboxBackend, root: Path) -> None:
    name = "x" * 200
    with docker.start(counting(env(docker, root)).sandbox) as box:
        folder = Folder(box, (box.workdir,))
        done = box.exec(
            f"echo 1 >right; for i in 1 2 3 4 5 6; do mkdir {name}; cd {name}; done; echo 1 >f; chmod 755 f"
        )
        assert done.ok
        assert folder.changes() == {"contents": {f"{box.workdir}/right": base64.b64encode(b"1\n").decode()}}


@pytest.mark.docker
def test_agentbenchs_gold_commands_find_their_answers(docker: SandboxBackend, data: Path) -> None:
    made = TerminalEnv(family="agentbench_os", path=str(data / "agentbench_os" / "tasks.jsonl"), sandbox=docker)
    for task in [*made.tasks.filter(lambda one: one.id.endswith(("/16", "/812"))).take(2)]:
        made.reset(options={"task": task})
        script, answer = made.oracle(task)
        said = made.step(script)[0][0].content
        assert str(task.hidden.reference["answer"]) in said.split()
        info = made.step(answer)[4]
        assert (info["verdict"].value, info["verdict"].trust) == (1.0, Trust.RPC)
    made.close()


def test_no_answer_of_agentbench_is_right_too_often(data: Path) -> None:
    path = str(data / "agentbench_os" / "tasks.jsonl")
    tasks = list(TerminalEnv(family="agentbench_os", path=path, sandbox="docker").tasks)
    answers = [str(one.hidden.reference["answer"]) for one in tasks]
    assert max(map(answers.count, answers)) == 12
    assert answers.count("4") / len(answers) < 0.1
    whole = TerminalEnv(family="agentbench_os", path=path, per_answer=None, sandbox="docker").tasks
    assert sum(1 for _ in whole) == 641
    assert {reason.partition(",")[0] for reason in whole.refused().values()} == {  # type: ignore[attr-defined]
        "its answer is compared by 'size-match'",
        "its init script does nothing",
    }
