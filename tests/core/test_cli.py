"""Every command does what its help says, ends cleanly, and tells a failure in one sentence."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentgym import cli, registry
from agentgym.cli.places import parse_options
from agentgym.errors import AgentgymError
from agentgym.run import RunDirectory
from agentgym.testing import ToyEnv
from agentgym.validate import Validation

COMMANDS = ("envs", "new", "play", "validate", "redteam", "train", "export", "eval", "serve", "show")
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "word_count.py"
TOY = "test/CommandLine-v0"
Shell = Callable[..., subprocess.CompletedProcess[str]]
registry.register(TOY, ToyEnv)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(shell: Shell, command: str) -> None:
    found = shell(command, "--help")
    assert found.returncode == 0
    assert f"agentgym {command}" in re.sub(r"\s+", " ", found.stdout.partition("Example")[2])


def test_all_commands_are_listed_and_tested() -> None:
    assert {one.name or getattr(one.callback, "__name__", "") for one in cli.app.registered_commands} == set(COMMANDS)


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['agentgym', '--help']\n"
        "from agentgym.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'docker', 'transformers', 'matplotlib', 'pyarrow', 'pandas', 'scipy', 'ray', 'sqlalchemy'}\n"
        "print('heavy', sorted(heavy & set(sys.modules)), 'of', len(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "Usage" in found
    assert "heavy [] of" in found
    assert int(found.split()[-1]) < 900, "a time would say what the machine does beside; this says what help loads"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        pytest.param(["validate", "agentgym/Cod-v0"], "did you mean 'agentgym/Code-v0'?", id="environment"),
        pytest.param(["eval", "nowhere.py"], "there is no file nowhere.py", id="file"),
        pytest.param(["eval", TOY, "--policy", "oracel"], "did you mean 'oracle'?", id="policy"),
        pytest.param(["eval", TOY, "--policy", "spam:revers"], "did you mean 'reverse'?", id="tool"),
        pytest.param(["eval", TOY, "--split", "tests"], "did you mean 'test'?", id="split"),
        pytest.param(["eval", TOY, "max_turn=3"], "'max_turn'", id="option"),
        pytest.param(["eval", TOY, "max_turns"], "wanted an option like max_turns=3", id="option-without-value"),
        pytest.param(["eval", TOY, "max_turns=0"], "wanted max_turns of at least 1", id="option-value"),
        pytest.param(["eval", TOY, "--sandbox", "proces"], "did you mean 'process'?", id="sandbox"),
        pytest.param(["eval", TOY, "--sandbox", "process:warm=2"], "'warm'; it takes: trusted", id="sandbox-option"),
        pytest.param(["eval", "none.yaml"], "no recipe can be read at none.yaml", id="recipe"),
        pytest.param(["train"], "wanted a recipe to train, or --resume RUN", id="train-nothing"),
        pytest.param(["train", "--resume", "nowhere"], "nowhere is not a run", id="resume"),
        pytest.param(["show", "nowhere"], "nowhere is not a run", id="run"),
        pytest.param(["new", "My Env"], "found 'My Env'", id="name"),
        pytest.param(["play", TOY, "--task", "toy-x"], "did you mean 'toy-", id="task"),
        pytest.param(["envs", "--load", "absent.py"], "there is no file absent.py", id="load"),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr_and_exit_code_2(shell: Shell, words: list[str], sentence: str) -> None:
    found = shell(*words)
    assert found.returncode == 2
    assert sentence in found.stderr
    assert found.stderr.startswith("error: ")
    assert "Traceback" not in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_debug_shows_where_an_error_comes_from(shell: Shell) -> None:
    with pytest.raises(AgentgymError):
        shell("--debug", "show", "nowhere")
    assert shell("show", "nowhere").returncode == 2


def test_installed_environments_are_listed(shell: Shell) -> None:
    found = shell("envs")
    assert "agentgym/Code-v0" in found.stdout
    assert re.search(rf"{TOY}\s+Reverse a word.*reverse, answer\s+no", found.stdout)


@pytest.mark.parametrize("kind", ["plain", "sandboxed"])
def test_a_new_environment_has_at_most_thirty_lines_and_is_valid_as_written(
    shell: Shell, needs_sandbox: None, kind: str
) -> None:
    found = shell("new", f"my-{kind}", *(["--sandbox"] if kind == "sandboxed" else []))
    file = Path(f"my_{kind}.py")
    assert f"agentgym validate {file}" in found.stdout
    text = file.read_text()
    assert len(text.splitlines()) <= 30
    assert shell("validate", f"my-{kind}", "--sample", 6).returncode == 0
    assert shell("validate", f"{file}:My{kind.capitalize()}", "--sample", 2, "--split", "test").returncode == 0
    assert shell("new", f"my-{kind}").returncode == 2
    assert file.read_text() == text
    for command in (["check", "--select", "E,F,I"], ["format", "--check"]):
        subprocess.run(
            [shutil.which("ruff", path=str(Path(sys.executable).parent)) or "ruff", *command, "--isolated",
             "--line-length", "120", file, f"test_{file}"], check=True, capture_output=True,
        )  # fmt: skip


def test_the_test_of_a_new_environment_passes(shell: Shell) -> None:
    shell("new", "fresh")
    subprocess.run([sys.executable, "-m", "pytest", "-q", "test_fresh.py"], check=True, capture_output=True)


def test_the_example_of_the_documentation_has_thirty_lines_and_is_valid(shell: Shell, needs_sandbox: None) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 30
    assert shell("validate", EXAMPLE).returncode == 0
    found = shell("eval", "docs/WordCount-v0", "--load", EXAMPLE, "--limit", 3)
    assert found.returncode == 0
    assert "pass@1  100.0% [43.9, 100.0]" in found.stdout


BAD_ENV = """
from agentgym.testing import ToyEnv
class Bad(ToyEnv):
    "Takes everything."
    def grade(self, task, submission):
        return True
"""


def test_validation_fails_with_exit_code_1_and_says_what_failed_first(shell: Shell) -> None:
    Path("bad.py").write_text(BAD_ENV)
    found = shell("validate", "bad.py", "--json", "found.json")
    assert found.returncode == 1
    assert re.search(r"✗\s+spam of answer scores 0\s+20\s+20\s+toy-\d+: scored 1", found.stdout)
    assert not Validation.model_validate_json(Path("found.json").read_text()).passed


def test_a_file_with_several_environments_asks_which(shell: Shell) -> None:
    Path("two.py").write_text(BAD_ENV + "class Worse(Bad):\n    'Worse.'\n")
    assert "found Bad, Worse; name it as in two.py:Class" in shell("validate", "two.py").stderr
    assert shell("eval", "two.py:Worse", "--limit", 1).returncode == 0


def test_a_file_that_does_not_run_is_one_sentence(shell: Shell) -> None:
    Path("broken.py").write_text("import nothing_like_this\n")
    found = shell("validate", "broken.py")
    assert found.returncode == 2
    assert "broken.py does not run: ModuleNotFoundError: No module named 'nothing_like_this'" in found.stderr


def test_a_users_file_may_import_its_neighbours_and_the_path_stays_as_it_was(shell: Shell) -> None:
    Path("neighbour_of_mine.py").write_text("NAME = 'x'\n")
    Path("importing.py").write_text("from neighbour_of_mine import NAME\n" + BAD_ENV)
    before = list(sys.path)
    assert shell("eval", "importing.py", "--limit", 1).returncode == 0
    assert sys.path == before


def test_evaluating_prints_estimates_with_intervals_and_keeps_the_run(shell: Shell) -> None:
    found = shell("eval", TOY, "--attempts", 4, "--run", "kept", "max_turns=3")
    assert found.returncode == 0
    assert "5 tasks (5 test), 4 attempts each" in found.stdout
    assert "pass@4  100.0% [56.6, 100.0]" in found.stdout
    assert "trust: rpc" in found.stdout
    run = RunDirectory.open("kept")
    assert run.manifest.kind == "eval"
    assert run.manifest.recipe["environment"] == {"id": TOY, "options": ["max_turns=3"]}
    assert len(run.read_trajectories(0)) == 20
    assert json.loads(Path("kept/report.json").read_text())["pass_at"][0]["value"] == 1.0


@pytest.mark.parametrize("policy", ["noop", "spam", "spam:reverse", "random"])
def test_policies_that_know_nothing_get_nothing(shell: Shell, policy: str) -> None:
    assert "pass@1  0.0% [0.0, 43.4]" in shell("eval", TOY, "-p", policy).stdout


def test_a_run_can_be_replayed(shell: Shell) -> None:
    shell("eval", TOY, "--run", "first")
    found = shell("eval", TOY, "-p", "replay:first/trajectories/step-000000.parquet", "-k", 2)
    assert "pass@2  100.0%" in found.stdout


def test_training_tasks_are_not_passed_off_as_held_out(shell: Shell) -> None:
    assert "no held-out result" in shell("eval", TOY, "--split", "train").stdout


LOST = """
from agentgym.errors import VerifierError
from agentgym.testing import ToyEnv
class Lost(ToyEnv):
    "Never scores."
    def grade(self, task, submission):
        raise VerifierError("the judge is out")
"""


def test_an_evaluation_in_which_nothing_was_scored_fails_and_says_why(shell: Shell) -> None:
    Path("lost.py").write_text(LOST)
    found = shell("eval", "lost.py")
    assert found.returncode == 1
    assert "unknown (no scored task)" in found.stdout
    assert "5 x VerifierError: the judge is out" in found.stdout


BUGGY = """
from agentgym.testing import ToyEnv
class Buggy(ToyEnv):
    "Has a bug."
    def grade(self, task, submission):
        return 1 / 0
"""


def test_a_bug_in_an_environment_is_told_in_a_line_each_and_with_its_place_on_demand(tmp_path: Path) -> None:
    (tmp_path / "buggy.py").write_text(BUGGY)

    def told(*words: str) -> str:
        command = [sys.executable, "-c", "from agentgym.cli import main; main()", *words, "eval", "buggy.py"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stderr

    assert "ZeroDivisionError: division by zero; --debug shows where" in told()
    assert "Traceback" not in told()
    assert 'buggy.py", line 6, in grade' in told("--debug")


def test_a_person_can_play_with_lines_and_fenced_blocks(shell: Shell) -> None:
    found = shell("play", TOY, "--task", "toy-0", "--hint", stdin="hello\n```answer\nelbram\n```\n")
    assert found.returncode == 0
    assert "task toy-0 (train); tools: reverse, answer" in found.stdout
    assert "The answer is elbram." in found.stdout
    assert "error: no tool call found" in found.stdout
    assert "the episode ended: submitted; verdict 1 (passed); reward 1" in found.stdout


def test_the_end_of_input_ends_a_game_cleanly(shell: Shell) -> None:
    found = shell("play", TOY, stdin="hello\n```answer\nhalf a block\n")
    assert found.returncode == 0
    found = shell("play", TOY)
    assert (found.returncode, found.stderr) == (0, "")
    assert "left before the end" in found.stdout


def test_a_run_is_shown_with_its_best_and_worst_attempts_and_transcripts(shell: Shell) -> None:
    shell("eval", TOY, "--run", "kept", "-k", 2)
    found = shell("show", "kept")
    assert found.returncode == 0
    assert "eval, seed 0" in found.stdout
    assert "pass@1  100.0%" in found.stdout
    assert "agentgym show kept --task toy-" in found.stdout
    transcript = shell("show", "kept", "--task", "toy-3", "--attempt", 1).stdout
    assert "user: Reverse the word 'piston'." in transcript
    assert "ended by submitted: 1 (passed, trust rpc)" in transcript
    assert transcript.count("── step 0, task toy-3") == 1
    assert "did you mean 'toy-3'" in shell("show", "kept", "--task", "toy_3").stderr
    assert "it has steps 0 to 0" in shell("show", "kept", "--step", 7).stderr


def test_curves_are_shown_as_text_and_drawn_if_matplotlib_is_installed(shell: Shell, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, {"name": "curves"}, name="run")
    tracker = run.tracker()
    for step in range(50):
        tracker.log(
            step, {"rollout/reward": step / 50, "train/loss": 1.0} | ({"eval/pass@1": 0.5} if step % 49 == 0 else {})
        )
    tracker.close()
    found = shell("show", run.path)
    assert re.search(r"rollout/reward\s+0\s+0.98\s+0\s+0.98\s+▁.*█", found.stdout)
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert "curves.png" in found.stdout
    assert (run.path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_options_are_yaml() -> None:
    assert parse_options(["a=1", "b=text", "c=[1, 2]", "d={x: true}", "e=a=b", "f="]) == {
        "a": 1, "b": "text", "c": [1, 2], "d": {"x": True}, "e": "a=b", "f": None
    }  # fmt: skip


SLOW_ENV = """
import time
from agentgym.env import tool
from agentgym.testing import ToyEnv
class Slow(ToyEnv):
    "Takes its time."
    sandboxed = True
    def oracle(self, task):
        return ["```wait\\nx\\n```"]
    @tool
    def wait(self, text: str) -> str:
        "Wait."
        print("waiting", flush=True)
        {hang}
        return "done"
"""


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended meanwhile
        return b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "hang",
    [
        pytest.param('self.sandbox.exec("sleep 60", timeout=100)', id="in-the-sandbox"),
        pytest.param("time.sleep(10**6)", id="in-the-environment"),
    ],
)
def test_an_interrupt_ends_a_command_cleanly_and_leaves_nothing_behind(
    tmp_path: Path, needs_sandbox: None, number: signal.Signals, hang: str
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_ENV.format(hang=hang))
    command = [sys.executable, "-c", "from agentgym.cli import main; main()", "eval", "slow.py", "--run", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("waiting")
        time.sleep(0.2)
        process.send_signal(number)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in told
    own = f"~{process.pid}~"  # every sandbox's folder and processes bear their owner's id
    assert not [path for path in Path(tempfile.gettempdir()).glob("agentgym-*/*") if own in path.name]
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if own.encode() in _content(path)]
    assert not (tmp_path / "run" / "report.json").exists()
