"""A wheel brings the sandboxes' supervisor for every machine type, and the source it was made from."""

import json
import shutil
import struct
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentgym_sandboxes import _compile

ROOT = Path(__file__).parents[2]
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
EXECUTABLE = 2
INTERPRETER = 3
BUILD = """
import importlib, os, sys
os.chdir(sys.argv[1])
sys.path.insert(0, sys.argv[1])
backend = importlib.import_module("hatch_build")
print(getattr(backend, sys.argv[2])(sys.argv[3] or None))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what packages are built from; building leaves nothing in the working tree."""
    copy = tmp_path_factory.mktemp("checkout")
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    ignored = shutil.ignore_patterns("__pycache__", "bin")
    for package in packages:
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "hatch_build.py"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def _built(checkout: Path, folder: Path, what: str) -> Path:
    return folder / _run(BUILD, str(checkout), what, str(folder)).split()[-1]


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    pytest.importorskip("hatchling", reason="hatchling, which builds wheels, is not installed")
    pytest.importorskip("ziglang", reason="ziglang, which compiles for other machines, is not installed")
    with zipfile.ZipFile(_built(checkout, tmp_path_factory.mktemp("wheel"), "build_wheel")) as opened:
        yield opened


def _program(wheel: zipfile.ZipFile, machine: str) -> bytes:
    return wheel.read(f"agentgym_sandboxes/supervisor/bin/{_compile.file_name(machine)}")


def test_it_has_a_static_program_for_each_machine_type(wheel: zipfile.ZipFile) -> None:
    for machine in _compile.MACHINES:
        program = _program(wheel, machine)
        assert program[:6] == b"\x7fELF\x02\x01"  # 64 bits, little-endian
        kind, found = struct.unpack_from("<HH", program, 16)
        assert (kind, found) == (EXECUTABLE, ELF_MACHINES[machine])
        (table,) = struct.unpack_from("<Q", program, 32)
        size, count = struct.unpack_from("<HH", program, 54)
        kinds = {struct.unpack_from("<I", program, table + i * size)[0] for i in range(count)}
        assert INTERPRETER not in kinds  # nothing of the image's is needed to start it
        assert len(program) < 200_000


def test_the_one_for_this_machine_starts_and_says_hello(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    file = tmp_path / "supervisor"
    file.write_bytes(_program(wheel, _compile.machine_of()))
    file.chmod(0o755)
    done = subprocess.run([file, "5"], input=b"", capture_output=True, check=False, timeout=20)
    assert done.returncode == 0
    length, _, _ = struct.unpack_from("<III", done.stdout)
    assert json.loads(done.stdout[12 : 12 + length])["protocol"] >= 1


def test_it_has_the_source_and_is_found_before_anything_is_compiled(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    sources = {path.name for path in (tmp_path / "agentgym_sandboxes" / "supervisor").glob("*.[ch]")}
    assert sources == {path.name for path in _compile.SOURCES.glob("*.[ch]")}
    script = "from agentgym_sandboxes import _compile; print(_compile.program(_compile.machine_of()))"
    nothing = {"PATH": "", "PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert Path(_run(script, env=nothing).strip()).parent == tmp_path / "agentgym_sandboxes" / "supervisor" / "bin"


def test_an_editable_installation_compiles_nothing_and_asks_for_no_compiler(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling, which builds wheels, is not installed")
    pytest.importorskip("editables", reason="editables, which hatchling needs here, is not installed")
    with zipfile.ZipFile(_built(checkout, tmp_path, "build_editable")) as editable:
        assert not [name for name in editable.namelist() if "supervisor-" in name]
    kinds = ("editable", "sdist", "wheel")
    asked = [_run(BUILD, str(checkout), f"get_requires_for_build_{kind}", "").count("ziglang") for kind in kinds]
    assert asked == [0, 0, 1]


def test_no_compiler_is_one_clear_sentence(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "bin")
    shutil.copytree(ROOT / "sandboxes" / "agentgym_sandboxes", tmp_path / "agentgym_sandboxes", ignore=ignored)
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from agentgym_sandboxes import _compile
try:
    print(_compile.program(_compile.machine_of()))
except _compile.BuildError as error:
    print(error)
"""
    nothing = {"PATH": "", "XDG_CACHE_HOME": str(tmp_path)}
    said = _run(script, str(tmp_path), options=("-S",), env=nothing)
    assert "there is no C compiler to build it: run `apt-get install gcc libc6-dev`, or `pip install ziglang`" in said


def _run(script: str, *arguments: str, options: tuple[str, ...] = (), env: dict[str, str] | None = None) -> str:
    argv = [sys.executable, *options, "-c", script, *arguments]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout
