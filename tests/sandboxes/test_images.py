"""Images are built once for all who ask, from data that cannot say more than it should, and any with /bin/sh serves."""

import hashlib
import json
import logging
import os
import secrets
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from agentgym.errors import SandboxError, TaskError
from agentgym.image import ImageSpec
from agentgym.sandbox import SandboxSpec

docker = pytest.importorskip("docker", reason="the docker extra is not installed")

from agentgym_sandboxes._image_context import from_folder, from_spec  # noqa: E402
from agentgym_sandboxes._images import BASE_IMAGE, Images  # noqa: E402
from agentgym_sandboxes._inventory import IMAGE_NAME  # noqa: E402
from agentgym_sandboxes.docker import DockerBackend  # noqa: E402

needs_daemon = pytest.mark.docker


@pytest.fixture
def contexts(tmp_path: Path) -> Path:
    folder = tmp_path / "contexts"
    (folder / "repo" / "kept").mkdir(parents=True)
    (folder / "repo" / "empty").mkdir()
    (folder / "repo" / "Dockerfile").write_text(f"FROM {BASE_IMAGE}\nUSER 0\nCOPY . /repo/\n")
    (folder / "repo" / "kept" / "file").write_text("one\n")
    (folder / "repo" / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (folder / "repo" / "run.sh").chmod(0o755)
    (folder / "repo" / "link").symlink_to("kept/file")
    (folder / "repo" / "secret.env").write_text("token")
    (folder / "repo" / ".dockerignore").write_text("# not for images\n*.env\n")
    return folder


@pytest.fixture
def backend(contexts: Path) -> Iterator[DockerBackend]:
    made = DockerBackend(contexts=str(contexts))
    try:
        made.check()
    except SandboxError as error:
        if os.environ.get("AGENTGYM_REQUIRE_DOCKER"):
            raise
        pytest.skip(str(error))
    made._daemon.connect()
    if "DockerRootDir" not in made._daemon._info:
        pytest.skip("this Docker is behind the socket proxy, which lets nobody build")
    yield made
    _remove_built(made)
    made.close()


def _remove_built(backend: DockerBackend) -> None:
    """Remove what a backend built; the daemon has images of other tests too, which come and go meanwhile."""
    api = backend._daemon.connect()
    for name in backend._daemon.images._known.values():
        if name.startswith(f"{IMAGE_NAME}:"):
            with suppress(docker.errors.ImageNotFound):
                api.remove_image(name, force=True)


def test_a_specification_is_its_own_name() -> None:
    spec = ImageSpec(
        base="debian:12", apt=("git", "jq=1.6-2.1"), files={"/a/b": 'x"$y\n'}, run=("a\nb",), env={"A": "1 2"}
    )
    assert ImageSpec.from_name(spec.name) == spec
    assert SandboxSpec(image=spec.name).image == spec.name
    assert ImageSpec().name == "build:{}"
    with pytest.raises(TaskError, match="name the folder"):
        _ = ImageSpec(files={"/big": "x" * (1 << 19)}).name


@pytest.mark.parametrize(
    "bad",
    [
        {"base": "debian\nRUN evil"},
        {"base": "--platform=x"},
        {"apt": ["git;reboot"]},
        {"apt": ["--allow-unauthenticated"]},
        {"pip": ["--index-url=http://evil"]},
        {"pip": ["a b"]},
        {"files": {"etc/passwd": ""}},
        {"files": {"/a/../../b": ""}},
        {"files": {"/a/.": ""}},
        {"files": {"/a//b": ""}},
        {"files": {"/a\nRUN": ""}},
        {"env": {"A=B": "1"}},
        {"env": {"A": "1\nRUN evil"}},
        {"run": [""]},
        {"comand": "typo"},
    ],
    ids=repr,
)
def test_a_malformed_specification_is_one_clear_sentence(bad: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match=r"the image 'build:\{.*' is malformed: \w+"):
        ImageSpec.from_name("build:" + json.dumps(bad))


def test_nothing_of_a_specification_is_an_instruction() -> None:
    spec = ImageSpec(env={"A": '$HOME "x" \\'}, run=("echo $A\nRUN evil",), files={"/RUN evil": "RUN evil"}, apt=("a",))
    lines = from_spec(spec, "base").dockerfile.splitlines()
    assert [line.split()[0] for line in lines] == ["FROM", "USER", "ENV", "ADD", "RUN", "RUN", "USER"]
    assert lines[2] == r'ENV A="\$HOME \"x\" \\"'
    assert json.loads(lines[5].removeprefix("RUN ")) == ["/bin/sh", "-ec", "echo $A\nRUN evil"]


def test_the_hash_names_everything_that_is_built_and_nothing_else(contexts: Path) -> None:
    folder = contexts / "repo"
    ids = {BASE_IMAGE: "sha256:1"}
    first = from_folder(folder).digest(ids)
    assert sorted(from_folder(folder).entries) == [
        *(".dockerignore", "Dockerfile", "empty/", "kept/", "kept/file", "link", "run.sh"),
    ]
    os.utime(folder / "kept" / "file", (1, 1))
    (folder / "secret.env").write_text("another token")
    assert from_folder(folder).digest(ids) == first
    copy = shutil.copytree(folder, contexts / "copy", symlinks=True)
    assert from_folder(copy).digest(ids) == first
    seen = {first, from_folder(folder).digest({BASE_IMAGE: "sha256:2"})}
    (folder / "run.sh").chmod(0o644)
    seen.add(from_folder(folder).digest(ids))
    (folder / "link").unlink()
    (folder / "link").symlink_to("run.sh")
    seen.add(from_folder(folder).digest(ids))
    (folder / "kept" / "file").rename(folder / "kept" / "other")
    seen.add(from_folder(folder).digest(ids))
    (folder / "kept" / "other").write_text("two\n")
    seen.add(from_folder(folder).digest(ids))
    (folder / "empty").rmdir()
    seen.add(from_folder(folder).digest(ids))
    (folder / "Dockerfile").write_text(f"FROM {BASE_IMAGE}\n")
    seen.add(from_folder(folder).digest(ids))
    assert len(seen) == 8


def test_the_archive_of_a_context_depends_on_its_contents_alone(contexts: Path) -> None:
    with from_folder(contexts / "repo").archive() as first:
        os.utime(contexts / "repo" / "run.sh", (1, 1))
        with from_folder(contexts / "repo").archive() as second:
            assert first.read() == second.read()
    with from_folder(contexts / "repo").archive() as file, tarfile.open(fileobj=file) as archive:
        found = {one.name: one for one in archive}
        assert found["link"].linkname == "kept/file"
        assert found["run.sh"].mode == 0o755
        assert {one.uid for one in found.values()} == {0}
        assert "secret.env" not in found


@pytest.mark.parametrize(
    ("dockerfile", "bases"),
    [
        ("FROM a\n", ["a"]),
        ("# FROM no\nARG B=x:1\nARG V\nFROM --platform=linux/amd64 ${B} AS one\nFROM one\nFROM y${V}", ["x:1", "y"]),
        ("from scratch\nFROM a as Two\nFROM two\nfrom b", ["a", "b"]),
        ("ARG B\nFROM ${B:-c:2}\nARG B=late\nFROM $B", ["c:2"]),
        ("FROM \\\n  # why\n  a\nRUN echo \\\n  FROM no", ["a"]),
    ],
)
def test_the_images_below_are_found_in_a_dockerfile(contexts: Path, dockerfile: str, bases: list[str]) -> None:
    (contexts / "repo" / "Dockerfile").write_text(dockerfile)
    assert from_folder(contexts / "repo").bases == bases


@needs_daemon
def test_a_specification_becomes_an_image_once_with_all_that_it_says(backend: DockerBackend) -> None:
    word = secrets.token_hex(8)
    spec = ImageSpec(
        files={"/opt/greeting": f"hello {word}\n", "/tmp/with space/$x": "y"},
        run=('echo "made $A" > /opt/made\nid -u >> /opt/made; stat -c %a /tmp >> /opt/made',),
        env={"A": 'a "quoted" $word'},
    )
    with backend.start(SandboxSpec(image=spec.name)) as box:
        said = box.exec('cat /opt/greeting /opt/made; echo "$A"; id -u')
    assert said.stdout.decode().splitlines() == [
        *(f"hello {word}", 'made a "quoted" $word', "0", "1777", 'a "quoted" $word', "1000")
    ]
    api: Any = backend._daemon.connect()
    tag = backend._daemon.require_image(spec.name)
    made = api.inspect_image(tag)
    assert 'A=a "quoted" $word' in made["Config"]["Env"]
    assert made["Config"]["Labels"]["agentgym.image"] == tag.partition(":")[2]
    other = DockerBackend()
    other.accept(SandboxSpec(image=spec.name))
    assert api.inspect_image(tag)["Created"] == made["Created"]
    api.remove_image(tag, force=True)  # behind the backend's back
    with backend.start(SandboxSpec(image=spec.name)) as box:
        assert box.exec("cat /opt/greeting").stdout.decode() == f"hello {word}\n"
    other.close()


@needs_daemon
def test_a_folder_becomes_an_image_and_a_change_in_it_another(backend: DockerBackend, contexts: Path) -> None:
    (contexts / "repo" / "word").write_text(secrets.token_hex(8))
    spec = SandboxSpec(image="build:repo")
    with backend.start(spec) as box:
        said = box.exec("cd /repo && ls -A && cat link && ./run.sh")
        assert said.stdout.decode().split() == [
            *(".dockerignore", "Dockerfile", "empty", "kept", "link", "run.sh", "word", "one", "ran")
        ]
    first = backend._daemon.require_image("build:repo")
    (contexts / "repo" / "kept" / "file").write_text("two\n")
    with backend.start(spec) as box:  # a backend looks once, so that all its sandboxes are alike
        assert box.read("/repo/kept/file") == b"one\n"
    assert backend._daemon.require_image("build:repo") == first
    later = DockerBackend(contexts=str(contexts))
    with later.start(spec) as box:
        assert box.read("/repo/kept/file") == b"two\n"
    assert later._daemon.require_image("build:repo") != first
    _remove_built(later)
    later.close()


@pytest.mark.parametrize("name", ["../outside", "/etc", "repo/../../outside", "way-out"])
def test_a_folder_outside_of_the_contexts_is_refused(contexts: Path, name: str) -> None:
    (contexts.parent / "outside").mkdir()
    (contexts.parent / "outside" / "Dockerfile").write_text("FROM scratch\n")
    (contexts / "way-out").symlink_to(contexts.parent / "outside")
    with pytest.raises(TaskError, match="leads out of"):
        Images(docker.APIClient, BASE_IMAGE, contexts=contexts).require(f"build:{name}")


def test_a_folder_is_refused_by_a_backend_that_was_given_none(contexts: Path) -> None:
    with pytest.raises(TaskError, match="give it contexts=FOLDER"):
        Images(docker.APIClient, BASE_IMAGE).require("build:repo")
    with pytest.raises(TaskError, match="there is no Dockerfile"):
        Images(docker.APIClient, BASE_IMAGE, contexts=contexts).require("build:repo/kept")


def test_a_policy_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="pull must be one of never, if-missing, always, not 'sometimes'"):
        DockerBackend(pull="sometimes")  # type: ignore[arg-type]


@needs_daemon
@pytest.mark.parametrize("policy", ["if-missing", "always"])
def test_the_policy_says_whether_a_registry_is_asked(backend: DockerBackend, policy: Any) -> None:
    api: Any = backend._daemon.connect()
    name = f"127.0.0.1:9/agentgym-test/{secrets.token_hex(4)}"  # where no registry is
    api.tag(BASE_IMAGE, f"{name}:here")
    try:
        with pytest.raises(SandboxError, match="not on this machine: pull or build it, or let the backend do it"):
            backend._daemon.require_image(f"{name}:gone")
        assert backend._daemon.require_image(f"{name}:here") == f"{name}:here"
        asking = Images(lambda: api, BASE_IMAGE, policy)
        with pytest.raises(SandboxError, match=r"127\.0\.0\.1:9"):
            asking.require(f"{name}:gone")
        if policy == "if-missing":
            assert asking.require(f"{name}:here") == f"{name}:here"
        else:
            with pytest.raises(SandboxError, match=r"127\.0\.0\.1:9"):
                asking.require(f"{name}:here")
        assert asking.require(BASE_IMAGE) == BASE_IMAGE
    finally:
        api.remove_image(f"{name}:here")


@needs_daemon
def test_a_build_that_fails_says_why_and_leaves_no_image(backend: DockerBackend) -> None:
    api: Any = backend._daemon.connect()
    spec = ImageSpec(run=("echo before; echo the-reason >&2; exit 3",))
    with pytest.raises(
        SandboxError, match=r"cannot make the image 'agentgym-image:\w+': .*code: 3 \(after: .*the-reason"
    ) as told:
        backend.accept(SandboxSpec(image=spec.name))
    with pytest.raises(SandboxError, match="'no/such:base' is not on this machine"):
        backend.accept(SandboxSpec(image=ImageSpec(base="no/such:base").name))
    tag = str(told.value).split("'")[1]
    assert tag.startswith(f"{IMAGE_NAME}:")
    with pytest.raises(docker.errors.ImageNotFound):
        api.inspect_image(tag)
    assert not backend.has_image(spec.name)


@needs_daemon
def test_a_build_is_refused_where_the_disk_has_too_little_room(backend: DockerBackend) -> None:
    api: Any = backend._daemon.connect()
    greedy = Images(lambda: api, BASE_IMAGE, reserve_bytes=1 << 60)
    spec = ImageSpec(files={"/word": secrets.token_hex(8)})
    with pytest.raises(SandboxError, match=r"too little room for the image.* GB are free in .*, and 1152921504.6 GB"):
        greedy.require(spec.name)
    assert not greedy.has(spec.name)
    assert greedy.require(BASE_IMAGE) == BASE_IMAGE  # what is there needs none


@needs_daemon
def test_builds_of_one_image_wait_for_each_other_in_threads_and_processes(backend: DockerBackend) -> None:
    script = "echo built; sleep 1"
    names = [ImageSpec(files={"/word": secrets.token_hex(8)}, run=(script,)).name for _ in range(2)]
    api: Any = backend._daemon.connect()
    began = threading.Event()
    seen: list[int] = []

    def watch() -> None:
        while not began.wait(0.05):
            running = api.containers(filters={"status": "running"})
            seen.append(sum(script in one["Command"] for one in running))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(8) as threads, get_context("spawn").Pool(2) as processes:
        elsewhere = processes.map_async(_tag, names)
        here = [threads.submit(backend._daemon.require_image, name) for name in names * 4]
        tags = {one.result() for one in here}
        assert tags == set(elsewhere.get(60))
    began.set()
    watcher.join()
    assert len(tags) == 2
    assert 1 <= max(seen) <= 2  # one container for each of the two images
    for tag in tags:
        history = [one["CreatedBy"] for one in api.history(tag)]
        assert sum("echo built" in line for line in history) == 1


def _tag(name: str) -> str:
    return DockerBackend()._daemon.require_image(name)


@needs_daemon
def test_a_long_build_tells_how_it_goes_and_a_short_one_is_silent(
    backend: DockerBackend, caplog: pytest.LogCaptureFixture
) -> None:
    word = secrets.token_hex(8)
    with caplog.at_level(logging.INFO, "agentgym.progress"):
        backend.accept(SandboxSpec(image=ImageSpec(run=(f"sleep 1.2; echo {word}", "echo and on; sleep 1.1")).name))
    assert word in caplog.text
    assert "took" in caplog.messages[-1]


@pytest.fixture
def repository(backend: DockerBackend, contexts: Path) -> str:
    """The base image with a repository of one Debian package in it."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    package = contexts / "package"
    (package / "DEBIAN").mkdir(parents=True)
    about = "Package: agentgym-test\nVersion: 1.2+x\nArchitecture: all\nMaintainer: nobody\nDescription: a test\n"
    (package / "DEBIAN" / "control").write_text(about)
    (package / "opt").mkdir()
    (package / "opt" / "installed").write_text("yes\n")
    repo = contexts / "apt"
    repo.mkdir()
    deb = repo / "agentgym-test.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", package, deb], check=True, capture_output=True)
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    place = f"Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n"
    (repo / "Packages").write_text(about + place)
    (repo / "Dockerfile").write_text(f"FROM {BASE_IMAGE}\nUSER 0\nCOPY . /apt/\n")
    with backend.start(SandboxSpec()) as box:
        if box.exec("cat /etc/apt/sources.list /etc/apt/sources.list.d/*").stdout:
            pytest.skip("the base image has apt sources, which need a network")
    return backend._daemon.require_image("build:apt")


@needs_daemon
def test_packages_come_from_the_sources_that_the_image_has_or_the_files_bring(
    backend: DockerBackend, repository: str
) -> None:
    images = backend._daemon.images
    bare = ImageSpec(base=repository, apt=("agentgym-test=1.2+x",))
    whole = bare.model_copy(update={"files": {"/etc/apt/sources.list": "deb [trusted=yes] file:/apt ./\n"}})

    def build(spec: ImageSpec) -> str:
        tag = f"agentgym-image:{secrets.token_hex(12)}"
        images._build(tag, tag.partition(":")[2], replace(from_spec(spec, BASE_IMAGE), network=False))
        return tag

    with pytest.raises(SandboxError, match="the base image has no apt sources: take another, or put"):
        build(bare)
    with backend.start(SandboxSpec(image=build(whole))) as box:
        assert box.exec("cat /opt/installed; ls /var/lib/apt/lists").stdout == b"yes\n"


@pytest.fixture
def busybox(backend: DockerBackend) -> str:
    """An image with one static program and no C library, no Python, no bash and no /etc/passwd."""
    program = shutil.which("busybox")
    if program is None or b"statically" not in _described(program):
        pytest.skip("busybox-static is not installed")
    folder = Path(backend._daemon.images._contexts or "") / "busybox"
    folder.mkdir()
    shutil.copy(program, folder / "sh")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY sh /bin/sh\nCOPY sh /bin/busybox\n")
    return "build:busybox"


def _described(program: str) -> bytes:
    """Return `statically` for a program that names no interpreter."""
    data = Path(program).read_bytes()
    return b"dynamically" if b"/ld-linux" in data[:4096] or b"/ld-musl" in data[:4096] else b"statically"


@needs_daemon
def test_an_image_of_one_static_shell_is_enough(backend: DockerBackend, busybox: str) -> None:
    data = os.urandom(200_000)
    with backend.start(SandboxSpec(image=busybox, memory_mb=64)) as box:
        result = box.exec('x=1; echo "$x"; echo err >&2; exit 3')
        assert (result.exit_code, result.stdout, result.stderr) == (3, b"1\n", b"err\n")
        assert box.exec(["busybox", "cat"], stdin=data, output_limit=1 << 20).stdout == data
        assert box.exec("while :; do :; done", timeout=0.3).timed_out
        assert box.exec(["python3"]).exit_code == 127
        box.write("deep/file", data)
        assert box.read("deep/file") == data
        box.upload({f"many/{i}": b"%d" % i for i in range(200)})
        assert len(box.download("many")) == 200
        with box.shell() as shell:
            assert shell.run("cd deep; export y=2").ok
            assert shell.run('echo "$y $(pwd)"').stdout == b"2 /workspace/deep\n"
        with box.terminal() as terminal:
            terminal.send("echo $((6 * 7))\r")
            assert b"42" in terminal.read(until=b"42").data
        with backend.fork(box.snapshot()) as branch:
            assert branch.read("many/7") == b"7"
        assert box.exec(["busybox", "id", "-u"], user="1234").stdout == b"1234\n"
