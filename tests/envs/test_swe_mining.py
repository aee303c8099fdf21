"""Mining: commits whose tests fail before and pass after, three times in any order, are tasks; the rest has reasons."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from histories import History, calc
from openai_server import Endpoint, refuse, say
from openai_server import endpoint as serving

from agentgym import registry
from agentgym.errors import AgentgymError, SandboxError, TaskError
from agentgym.image import ImageSpec
from agentgym.sandbox import Sandbox, SandboxBackend, SandboxSpec
from agentgym.types import Submission
from agentgym_envs.swe.folders import instances
from agentgym_envs.swe.mining.environment import generated, image_for, import_roots
from agentgym_envs.swe.mining.git import Repository
from agentgym_envs.swe.mining.issue import Found, by_model, plain
from agentgym_envs.swe.mining.journal import Entry
from agentgym_envs.swe.mining.miner import Mined, Miner, Settings
from agentgym_envs.swe.mining.runs import Outcomes, agree
from agentgym_envs.swe.tasks import Environment, to_task

SETTINGS = Settings(environment=Environment(total_s=30.0, twins=2))
QUICK = Settings(environment=Environment(total_s=30.0, twins=0), rounds=2)


class Counting:
    """A backend that counts how many sandboxes it started."""

    name = "process"

    def __init__(self, inner: SandboxBackend) -> None:
        self.inner = inner
        self.capabilities = inner.capabilities
        self.started = 0

    def start(self, spec: SandboxSpec) -> Sandbox:
        self.started += 1
        return self.inner.start(spec)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    path = tmp_path_factory.mktemp("history") / "calc"
    return path, calc(path)


@pytest.fixture(scope="module")
def mined(
    backend: SandboxBackend, history: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Mined:
    with backend.start(SandboxSpec()) as box:
        if not box.exec("python3 -I -c 'import pytest'").ok:
            pytest.skip("the sandbox's python3 has no pytest: apt-get install python3-pytest")
    out = tmp_path_factory.mktemp("mined")
    return Miner(Repository(history[0]), out, backend, SETTINGS).mine(jobs=2)


def test_each_commit_is_a_task_or_has_its_reason(mined: Mined, history: tuple[Path, dict[str, str]]) -> None:
    commits = history[1]
    reasons = {one.commit: one.reason for one in mined.refused}
    assert {*mined.valid} == {f"calc-{commits[name][:10]}" for name in ("half", "clock")}
    assert {name: reasons[commits[name]] for name in commits if commits[name] in reasons} == {
        "docs": "changes no source",
        "untested": "changes no test files",
        "same": "no test fails before and passes after",
        "feature": "the tests cannot be collected before",
        "hopeless": "no test fails before and passes after",
    }
    assert mined.commits == 7
    assert mined.report()["refused"]["no test fails before and passes after"] == 2


def test_a_mined_task_is_worth_1_for_its_commit_and_0_for_anything_less(mined: Mined, backend: SandboxBackend) -> None:
    half, clock = sorted(instances(mined.out), key=lambda one: one.problem_statement, reverse=True)
    assert half.problem_statement.startswith("Halve by two (#3)\n\nAt present:\n- assert")
    assert "Co-authored-by" not in half.problem_statement
    assert (half.FAIL_TO_PASS, half.version) == (("tests/test_half.py::test_half",), "1.2")
    assert "CHANGELOG" not in half.patch + half.test_patch
    assert clock.FAIL_TO_PASS == ("tests/test_clock.py::test_get",)  # the other one's name holds the time
    assert clock.PASS_TO_PASS == ("tests/test_clock.py::test_loopback",)
    task = to_task(half)
    assert "half" in task.hints[-1]
    assert "number / 2" not in task.public.model_dump_json()
    grader = registry.create("graders", "pytest_ids")
    for diff, wanted in ((half.patch, 1.0), (half.patch.replace("+    return number / 2", "+    return 2"), 0.0)):
        found = grader.grade(task, Submission(data={"diff": diff}), backend)
        assert found.value == wanted, found.feedback


def test_a_killed_run_goes_on_where_it_was(
    mined: Mined, history: tuple[Path, dict[str, str]], backend: SandboxBackend, tmp_path: Path
) -> None:
    counting = Counting(backend)
    first = Miner(Repository(history[0]), tmp_path, counting, QUICK).mine(jobs=1, limit=1)  # type: ignore[arg-type]
    assert len(first.valid) == 1
    journal = tmp_path / "mining" / "calc.jsonl"
    whole = journal.read_text()
    tried = [json.loads(line) for line in whole.splitlines()[1:]]
    assert [one["commit"] for one in tried] == [history[1][name] for name in ("hopeless", "feature", "clock")]
    journal.write_text(whole + '{"commit":"' + history[1]["same"][:7])  # killed in the middle of a line
    seen: list[Entry] = []
    counting.started = 0
    again = Miner(Repository(history[0]), tmp_path, counting, QUICK)  # type: ignore[arg-type]
    assert {*again.mine(jobs=1, on_done=seen.append).valid} == {*mined.valid}
    assert len(seen) == 5
    counting.started = 0
    Miner(Repository(history[0]), tmp_path, counting, QUICK).mine()  # type: ignore[arg-type]
    assert counting.started == 0
    with pytest.raises(TaskError, match=r"was begun with another rounds, strict: use the same"):
        Miner(Repository(history[0]), tmp_path, backend, QUICK.model_copy(update={"rounds": 3, "strict": False}))


def test_a_sandbox_that_fails_refuses_no_commit(history: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    class Broken(Counting):
        def start(self, spec: SandboxSpec) -> Sandbox:
            raise SandboxError("the daemon is gone")

    broken = Broken(registry.create("sandboxes", "process"))
    found = Miner(Repository(history[0]), tmp_path, broken, SETTINGS).mine()  # type: ignore[arg-type]
    assert (len(found.broken), found.valid) == (5, ())
    assert not (tmp_path / "mining" / "calc.jsonl").exists()


def outcomes(broken: Mapping[str, str] | None = None, **tests: str) -> Outcomes:
    return Outcomes(tests, {}, broken or {})


def test_only_what_every_round_says_counts() -> None:
    pairs = [
        (outcomes(a="failed", b="passed", c="failed", d="error"), outcomes(a="passed", b="passed", c="passed")),
        (outcomes(a="error", b="passed", c="passed"), outcomes(a="passed", b="passed", c="passed", d="failed")),
    ]
    found = agree(pairs)
    assert (found.fail_to_pass, found.pass_to_pass, found.unstable) == (("a",), ("b",), ("a", "c", "d"))
    assert not found.broken_before
    lost = agree([(outcomes({"t.py": "ImportError"}), outcomes(e="passed"))])
    assert (lost.fail_to_pass, lost.broken_before) == (("e",), {"t.py": "ImportError"})


def test_an_image_is_named_by_what_the_project_says_and_pip_is_asked_unless_an_image_is_given(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    one = History(tmp_path / "one")
    text = '[project]\nname = "my.tool"\ndependencies = ["attrs >= 22", "tomli; python_version < \'3.11\'"]\n'
    one.commit("Begin", {"pyproject.toml": text, "src/tool/__init__.py": ""})
    one.tag("release-2.5")
    one.commit("Go on", {"src/tool/more.py": ""})
    repository = Repository(tmp_path / "one")
    made = image_for(repository, "HEAD")
    assert made.pip == ("attrs>=22", "tomli;python_version<'3.11'")
    assert made.files["/opt/agentgym/METADATA"] == "Metadata-Version: 2.1\nName: my.tool\nVersion: 2.5\n"
    assert "my_tool-2.5.dist-info" in made.run[-1]
    own = image_for(repository, "HEAD", ImageSpec(apt=("python3-attr",), run=("true",)))
    assert (own.pip, own.apt, own.run[0]) == ((), ("python3-attr",), "true")
    assert import_roots(repository.snapshot("HEAD").files) == ("src", ".")


def test_files_that_a_build_would_write_are_written_unless_they_are_there() -> None:
    tree = {"pyproject.toml": b'[tool.hatch.build.hooks.vcs]\nversion-file = "pkg/_version.py"\n'}
    made = generated(tree, "1.10")
    scope: dict[str, object] = {}
    exec(made["pkg/_version.py"].decode(), scope)
    assert (scope["__version__"], scope["version_tuple"]) == ("1.10", (1, 10))
    assert generated({**tree, "pkg/_version.py": b""}, "1.10") == {}


def test_a_snapshot_holds_files_as_they_are_and_no_links_and_submodules_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    history = History(tmp_path / "r")
    (tmp_path / "r" / "link").symlink_to("run.sh")
    (tmp_path / "r" / "run.sh").write_bytes(b"\xff\x00\n")
    (tmp_path / "r" / "run.sh").chmod(0o755)
    history.commit("Begin", {"odd name\n.py": "1\n"})
    (tmp_path / "data").mkdir()
    module = History(tmp_path / "data").commit("Begin", {"case.toml": "a = 1\n"})
    history.submodule("tests/data", module)
    found = Repository(tmp_path / "r").snapshot("HEAD")
    assert found.files == {"run.sh": b"\xff\x00\n", "odd name\n.py": b"1\n", "tests/data/.gitkeep": b""}
    assert found.executable == {"run.sh"}
    whole = Repository(tmp_path / "r", {"tests/data": Repository(tmp_path / "data")}).snapshot("HEAD")
    assert whole.files["tests/data/case.toml"] == b"a = 1\n"
    with pytest.raises(TaskError, match=r"has no commit 'no-such'"):
        Repository(tmp_path / "r").resolve("no-such")
    with pytest.raises(TaskError, match=r"there is no git repository at .*nowhere; clone it first"):
        Repository(tmp_path / "nowhere")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(lambda body: say(f"Issue by {body['model']}")) as found:
        yield found


def test_a_model_may_write_the_issues(endpoint: Endpoint) -> None:
    write = by_model(endpoint.url, "tiny")
    found = Found("a/b", "Fix it", "the patch", {"t.py::test_a": "ZeroDivisionError"})
    assert write(found) == "Issue by tiny"
    asked = json.dumps(endpoint.bodies[0])
    assert all(word in asked for word in ("Fix it", "the patch", "ZeroDivisionError"))
    endpoint.answer = lambda _: say("")
    assert by_model(endpoint.url, "tiny")(found) == plain(found)


def test_a_model_that_does_not_answer_is_told_of(endpoint: Endpoint) -> None:
    endpoint.answer = lambda _: refuse(401)
    with pytest.raises(AgentgymError, match=r"the model 'tiny' wrote no issue: .*status 401"):
        by_model(endpoint.url, "tiny")(Found("a/b", "Fix it", "", {}))
