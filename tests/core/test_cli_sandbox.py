"""`agentgym sandbox`: what runs is shown, what nobody owns any more goes, and what is missing is told."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from agentgym import registry
from agentgym.errors import SandboxError
from agentgym.image import ImageSpec
from agentgym.sandbox import SandboxSpec

Shell = Callable[..., subprocess.CompletedProcess[str]]
COMMAND_LINE = "import sys; sys.argv[0] = 'agentgym'; from agentgym.cli import main; main()"
OWNER = """
import sys
from agentgym.sandbox import SandboxSpec
from agentgym_sandboxes.docker import DockerBackend
backend = DockerBackend(image=sys.argv[1], run="somebody-elses")
box = backend.start(SandboxSpec(memory_mb=32, writable_root=True, workdir="/tmp"))
box.exec("echo 1 > /tmp/file")
box.snapshot()
print(box.id, flush=True)
for line in sys.stdin:
    print(box.exec("echo alive").output, end="", flush=True)
"""
FOLDER_OWNER = """
import sys
from agentgym.sandbox import SandboxSpec
from agentgym_sandboxes.process import ProcessBackend
box = ProcessBackend().start(SandboxSpec())
print(box.id, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("command", ["ps", "gc", "doctor", "build-base", "serve"])
def test_every_command_explains_itself_with_an_example(shell: Shell, command: str) -> None:
    found = shell("sandbox", command, "--help")
    assert found.returncode == 0
    assert f"agentgym sandbox {command}" in re.sub(r"[\s│]+", " ", found.stdout.partition("Example")[2])


def _lines(text: str) -> dict[str, str]:
    """Return what the doctor says of each subject."""
    found = {}
    for line in text.splitlines():
        if match := re.match(r"  [✓!✗] (\w+)  +(\w+(?: \w+)*)  +(.*)", line):
            level, subject, said = match.groups()
            found[subject] = f"{level} {said.strip()}"
    return found


def test_the_doctor_tells_of_a_missing_daemon_and_how_to_get_one(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("docker", reason="the docker extra is not installed")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    found = shell("sandbox", "doctor", "--backend", "docker")
    assert found.returncode == 1
    said = " ".join(found.stdout.split())
    assert re.search(
        r"✗ fail daemon no Docker daemon answers at .*none.sock \(No such file.*\); install it .* start it", said
    )
    assert "sandbox" not in _lines(found.stdout)
    for command in ("ps", "gc"):
        found = shell("sandbox", command, "--backend", "docker")
        assert found.returncode == 2
        assert "error: no Docker daemon answers at" in found.stderr
        found = shell("sandbox", command)  # nobody asked for Docker
        assert found.returncode == 0
        assert "docker: no Docker daemon answers at" in found.stderr


def test_the_doctor_tells_of_a_socket_that_this_user_may_not_use(open_folder: Path) -> None:
    pytest.importorskip("docker", reason="the docker extra is not installed")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{open_folder}/docker.sock")
        listening.listen()
        (open_folder / "docker.sock").chmod(0)
        argv = [sys.executable, "-c", COMMAND_LINE, "sandbox", "doctor", "--backend", "docker"]
        if os.geteuid() == 0:  # whom no permission stops
            argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *argv]
        here = {"DOCKER_HOST": f"unix://{open_folder}/docker.sock", "HOME": str(open_folder), "COLUMNS": "200"}
        env = {**os.environ, **here}
        found = subprocess.run(argv, env=env, cwd=open_folder, capture_output=True, text=True, check=False, timeout=60)
    if "Permission denied" in found.stderr or "ModuleNotFoundError" in found.stderr:
        pytest.skip("this checkout is not readable by other users")
    assert found.returncode == 1, found.stderr
    said = " ".join(found.stdout.split())
    assert re.search(
        r"✗ fail permission no permission on the Docker socket .*; add this user to the group docker", said
    )


def test_the_doctor_works_where_nothing_is_installed(monkeypatch: pytest.MonkeyPatch, shell: Shell) -> None:
    script = f"import sys; sys.modules['docker'] = None; {COMMAND_LINE}"
    argv = [sys.executable, "-c", script, "sandbox", "doctor", "--backend", "docker"]
    env = {**os.environ, "COLUMNS": "200"}
    found = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 1
    said = _lines(found.stdout)["package"]
    assert said == 'fail docker is not installed; add it with: pip install "agentgym-rlvr[docker]"'
    monkeypatch.setitem(registry._installed, "sandboxes", {})
    found = shell("sandbox", "doctor")
    assert found.returncode == 2
    assert "no sandbox backend is installed; add one with: pip install" in found.stderr


def test_the_doctor_says_what_process_sandboxes_lack(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = shell("sandbox", "doctor", "--backend", "process")
    assert found.returncode == 1
    said = _lines(found.stdout)
    assert said["bwrap"] == "fail it is not installed; `apt-get install bubblewrap`"
    assert said["sandbox"].startswith("fail")


def test_the_doctor_finds_process_sandboxes_well(shell: Shell, needs_sandbox: None) -> None:
    found = shell("sandbox", "doctor", "--backend", "process")
    assert found.returncode == 0
    assert _lines(found.stdout)["sandbox"].split()[0] in ("ok", "warn")


def test_an_unknown_backend_or_one_that_keeps_nothing_is_one_sentence(shell: Shell) -> None:
    found = shell("sandbox", "ps", "--backend", "dockr")
    assert found.returncode == 2
    assert "did you mean 'docker'?" in found.stderr
    found = shell("sandbox", "build-base", "--backend", "process")
    assert found.returncode == 2
    assert "has no images to build" in found.stderr


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder to which every user may go, unlike pytest's own."""
    folder = Path("/tmp", f"agentgym-test-{secrets.token_hex(4)}")
    folder.mkdir()
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_folders_of_dead_owners_go_and_those_of_living_ones_stay(needs_sandbox: None, open_folder: Path) -> None:
    env = {**os.environ, "TMPDIR": str(open_folder)}  # where no other test tidies

    def told(*words: str) -> str:
        argv = [sys.executable, "-c", COMMAND_LINE, "sandbox", *words, "--backend", "process"]
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=True, timeout=60).stdout

    argv = [sys.executable, "-c", FOLDER_OWNER]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        box = process.stdout.readline().strip()
        assert box in told("ps")
        assert f"kept sandbox {box}: its owner, process {process.pid}" in told("gc")
        process.kill()
    assert f"would remove sandbox {box}: " in told("gc", "--dry-run")
    assert f"removed sandbox {box}: " in told("gc")
    assert told("ps") == "there are no sandboxes\n"


@pytest.mark.docker
def test_the_doctor_finds_docker_sandboxes_well_on_one_screen(shell: Shell) -> None:
    _docker_or_skip()
    found = shell("sandbox", "doctor", "--backend", "docker")
    said = _lines(found.stdout)
    assert found.returncode == 0, found.stdout
    assert list(said) == [
        *("package", "daemon", "permission", "API", "cgroups", "storage", "disk", "runtimes", "base image"),
        *("supervisor", "sandbox"),
    ]
    assert re.fullmatch(r"ok one started, ran a command and went in [\d.]+ s", said["sandbox"])
    assert len(found.stdout.splitlines()) <= 24


@pytest.mark.docker
def test_a_missing_image_or_runtime_is_found_before_a_sandbox_is_tried() -> None:
    _docker_or_skip()
    from agentgym_sandboxes.docker import DockerBackend

    findings = DockerBackend(image="no/such:image", runtime="nosuch").upkeep().diagnose()
    failed = {one.subject: one for one in findings if one.level == "fail"}
    assert failed.keys() == {"base image", "runtimes"}
    assert failed["base image"].mend == "pull or build it"
    assert findings[-1].subject != "sandbox"


@pytest.mark.docker
def test_a_base_image_is_built_upon_another(shell: Shell) -> None:
    _docker_or_skip()
    import docker

    name = f"agentgym-test-base:{secrets.token_hex(4)}"
    with closing(docker.from_env()) as client:
        if "DockerRootDir" not in client.info():
            pytest.skip("this Docker is behind the socket proxy, which lets nobody build")
        try:
            found = shell("sandbox", "build-base", name, "--from", "agentgym-base:latest")
            assert found.returncode == 0, found.stderr
            assert found.stdout == f"{name} is ready\n"
            assert "Step 1/" in found.stderr  # in a log each line is seen
            assert client.images.get(name).attrs["Config"]["WorkingDir"] == "/workspace"
            found = shell("sandbox", "build-base", name, "--from", "127.0.0.1:9/no-such-image")
            assert found.returncode == 2
            assert "error: Docker cannot make the image" in found.stderr
        finally:
            with suppress(docker.errors.ImageNotFound):
                client.images.remove(name, force=True)


@pytest.mark.docker
def test_what_bootstrapping_lacks_is_one_sentence(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _docker_or_skip()
    (tmp_path / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = shell("sandbox", "build-base", "agentgym-test-base:none")
    assert found.returncode == 2
    assert "debootstrap is not installed: run `apt-get install debootstrap docker.io`" in found.stderr.splitlines()[-1]


def _docker_or_skip() -> None:
    pytest.importorskip("docker", reason="the docker extra is not installed")
    try:
        registry.create("sandboxes", "docker").check()
    except SandboxError as error:
        if os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def daemon() -> Iterator[Any]:
    """A daemon that no other test tidies meanwhile."""
    pytest.importorskip("docker", reason="the docker extra is not installed")
    from private_daemon import PrivateDaemon, require

    require()
    made = PrivateDaemon()
    try:
        made.start()
        made.load()
        yield made
    finally:
        made.remove()


@pytest.fixture
def api(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("DOCKER_HOST", daemon.url)
    with closing(daemon.client()) as client:
        yield client


@pytest.fixture
def somebody(api: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process with a sandbox, and that sandbox's id."""
    from private_daemon import IMAGE

    argv = [sys.executable, "-c", OWNER, IMAGE]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def _containers(api: Any) -> set[str]:
    return {one["Id"][:12] for one in api.containers(all=True)}


def _snapshots(api: Any) -> list[str]:
    return [one["Id"] for one in api.images(filters={"label": "agentgym.snapshot"})]


@pytest.mark.docker
def test_living_runs_are_shown_and_never_touched_and_dead_ones_leave_nothing(
    shell: Shell, api: Any, somebody: tuple[subprocess.Popen[str], str]
) -> None:
    process, box = somebody
    assert process.stdin is not None
    assert process.stdout is not None
    table = shell("sandbox", "ps", "--backend", "docker").stdout
    row = rf"(?m)^{box} +docker +somebody-elses +process {process.pid} on \S+ +\d+ s +\d+ min +running +\d+ of 32 MB"
    assert re.search(row, table), table
    before = _containers(api), _snapshots(api)
    assert len(before[1]) == 1
    said = shell("sandbox", "gc", "--backend", "docker", "--expired", "--images").stdout
    assert f"kept sandbox {box}: its owner, process {process.pid} on {socket.gethostname()}, is alive" in said
    assert f"kept snapshot {before[1][0]}: its owner, process {process.pid}" in said
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "alive\n"
    assert (_containers(api), _snapshots(api)) == before

    process.kill()
    process.wait()
    assert " (ended) " in shell("sandbox", "ps", "--backend", "docker").stdout
    said = shell("sandbox", "gc", "--backend", "docker", "--dry-run").stdout
    assert f"would remove sandbox {box}: its owner, process {process.pid}" in said
    assert f"would remove snapshot {before[1][0]}: " in said
    assert (_containers(api), _snapshots(api)) == before
    said = shell("sandbox", "gc", "--backend", "docker").stdout
    assert f"removed sandbox {box}: its owner, process {process.pid} on {socket.gethostname()}, has ended" in said
    assert not _containers(api) | set(_snapshots(api))
    assert shell("sandbox", "ps", "--backend", "docker").stdout == "there are no sandboxes\n"


@pytest.mark.docker
def test_what_agentgym_did_not_make_or_cannot_judge_stays(shell: Shell, api: Any) -> None:
    from private_daemon import IMAGE

    other = "agentgym-supervisor-x86_64-0000000000000000"
    foreign = {"host": "elsewhere", "boot": "b", "pidns": "1", "pid": "1", "started": "1"}
    labels = {f"agentgym.{name}": value for name, value in foreign.items()}
    labels["agentgym.created"] = f"{time.time() - 100:.3f}"
    made = {
        "mine": api.create_container(IMAGE, ["true"])["Id"],
        "early": api.create_container(IMAGE, ["true"], labels={**labels, "agentgym.ttl": "3600"})["Id"],
        "late": api.create_container(IMAGE, ["true"], labels={**labels, "agentgym.ttl": "10"})["Id"],
        "busy": api.create_container(
            IMAGE,
            ["sleep", "60"],
            labels={**labels, "agentgym.ttl": "10"},
            host_config=api.create_host_config(network_mode="none"),
        )["Id"],
        "helper": api.create_container(IMAGE, ["true"], labels={"agentgym.helper": "proxy"})["Id"],
    }
    api.start(made["busy"])
    api.create_volume("mine")
    api.create_volume(other, labels={"agentgym.supervisor": "x"})
    try:
        said = shell("sandbox", "gc", "--backend", "docker").stdout
        assert _containers(api) == {one[:12] for one in made.values()}
        unseen = "its owner, process 1 on elsewhere, cannot be seen from here"
        assert f"kept sandbox {made['late'][:12]}: {unseen}, but its time is over: --expired removes it" in said
        assert f"kept sandbox {made['busy'][:12]}: {unseen}\n" in said
        assert f"kept helper {made['helper'][:12]}: it fills a volume just now" in said
        assert made["mine"][:12] not in said
        assert f"removed volume {other}: it is another version's" in said
        assert [one["Name"] for one in api.volumes()["Volumes"] if one["Name"] in ("mine", other)] == ["mine"]
        said = shell("sandbox", "gc", "--backend", "docker", "--expired").stdout
        assert f"removed sandbox {made.pop('late')[:12]}: its time was over, and it has ended" in said
        assert _containers(api) == {one[:12] for one in made.values()}
    finally:
        for container in _containers(api):
            api.remove_container(container, force=True)
        api.remove_volume("mine")


@pytest.mark.docker
def test_a_run_outlives_the_removal_of_what_its_sandboxes_are_started_with(api: Any) -> None:
    from private_daemon import IMAGE

    from agentgym_sandboxes.docker import DockerBackend

    backend = DockerBackend(image=IMAGE)
    try:
        for _ in range(2):
            with backend.start(SandboxSpec(memory_mb=32)) as box:
                assert box.exec("true").ok
            for volume in api.volumes(filters={"label": "agentgym.supervisor"})["Volumes"]:
                api.remove_volume(volume["Name"])
    finally:
        backend.close()


@pytest.mark.docker
def test_images_of_tasks_go_only_when_asked_for_and_unused(shell: Shell, api: Any) -> None:
    from private_daemon import IMAGE

    from agentgym_sandboxes.docker import DockerBackend

    backend = DockerBackend(image=IMAGE)
    spec = SandboxSpec(image=ImageSpec(files={"/word": secrets.token_hex(8)}).name, memory_mb=32)
    ours = backend._daemon.require_image(spec.image)
    theirs = f"theirs:{secrets.token_hex(4)}"
    container = api.create_container(ours, ["true"])["Id"]
    api.commit(container, *theirs.split(":"))  # inherits our labels
    api.remove_container(container)
    try:
        with backend.start(spec):
            assert f"kept image {ours}: containers use it" in shell("sandbox", "gc", "--images").stdout
        assert ours not in shell("sandbox", "gc").stdout
        assert f"would remove image {ours}: no container uses it" in shell("sandbox", "gc", "--images", "-n").stdout
        said = shell("sandbox", "gc", "--images").stdout
        assert f"removed image {ours}: no container uses it" in said
        assert "theirs" not in said
        assert {tag for one in api.images() for tag in one["RepoTags"] or []} == {IMAGE, theirs}
        with backend.start(spec) as box:  # and a run whose image went builds it again
            assert box.exec("cat /word").ok
    finally:
        backend.close()
        api.remove_image(theirs, force=True)
