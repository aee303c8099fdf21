"""Runs the tests that it is told to in this process, beside the code under test, and reports each one's outcome.

Executed by `_pytest_runner.py` in a namespace that no import leads to. What counts is agreement: pytest's own reports,
what this plugin saw of each phase, and a framework whose every function is still the one that was loaded.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing costs milliseconds to import
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

SITE_FOLDERS = ("site-packages", "dist-packages")
FRAMEWORK = ("_pytest", "pytest", "pluggy", "iniconfig")
LIBRARY = ("unittest", "unittest.case", "unittest.suite", "unittest.result", "unittest.loader", "traceback", "inspect")
LAZY = ("doctest", "pdb", "faulthandler", "json", "difflib", "pprint", "tokenize", "linecache", "warnings", "ast", "re")
SELF_MADE = ("_getini_unknown_type",)  # what pytest itself replaces while it runs
PHASES = ("setup", "call", "teardown")
SHOWN = 300


def enter(order: dict[str, Any], private: Path) -> None:
    """Import the framework before anything of the repository can be found, then stand in the repository."""
    import importlib
    import pkgutil

    os.environ.update(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTHONPATH=os.pathsep.join(order["roots"]))
    for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DEBUG"):
        os.environ.pop(name, None)
    sys.dont_write_bytecode = True
    sys.pycache_prefix = str(private / "pycache")  # compiled files that lie beside the sources are never read
    for name in (*FRAMEWORK, *LIBRARY, *LAZY):
        importlib.import_module(name)
    for one in pkgutil.iter_modules(sys.modules["_pytest"].__path__):
        try:
            importlib.import_module(f"_pytest.{one.name}")
        except ImportError:  # a part that needs an optional library
            continue
    places = [index for index, path in enumerate(sys.path) if any(part in path for part in SITE_FOLDERS)]
    # After the standard library, so that no file shadows it; before what is installed, which may be another version.
    where = min(places, default=len(sys.path))
    sys.path[where:where] = order["roots"]
    os.chdir(order["root"])
    for name in order["removed"]:
        os.unlink(name)  # noqa: PTH108
    for name in order["executable"]:
        os.chmod(name, 0o755)  # noqa: PTH101


class Framework:
    """What the test framework is made of, to see later whether every part is still in its place."""

    def __init__(self) -> None:
        kinds = (type(enter), type, classmethod, staticmethod, property)
        code = type(enter)
        names = [name for name in sys.modules if name.split(".")[0] in FRAMEWORK or name in LIBRARY]
        homes = [vars(sys.modules[name]) for name in (*names, "builtins")]
        classes = [one for home in homes[:-1] for one in home.values() if isinstance(one, type) and self.ours(one)]
        builtin = type(len)
        self.parts: list[tuple[Any, str, Any, Any]] = []
        for home in (*homes, *{id(one): vars(one) for one in classes}.values()):
            for name, one in home.items():
                if isinstance(one, (*kinds, builtin)) and name not in SELF_MADE:
                    self.parts.append((home, name, one, one.__code__ if isinstance(one, code) else None))
        self.modules = {name: sys.modules[name] for name in names}

    def ours(self, one: type) -> bool:
        """Whether a class belongs to the framework and not to what it uses."""
        return one.__module__.split(".")[0] in (*FRAMEWORK, "unittest")

    def intact(self) -> bool:
        """Whether every function and class is the one that was loaded, with the code that it had."""
        return all(
            home.get(name) is one and (code is None or one.__code__ is code) for home, name, one, code in self.parts
        ) and all(sys.modules.get(name) is module for name, module in self.modules.items())


class Judge:
    """A plugin that selects the wanted tests and reports what becomes of each."""

    def __init__(self, order: dict[str, Any], report: Callable[[str, list[Any]], None], framework: Framework) -> None:
        self.root = order["root"]
        self.allowed = {*order["plugins"]}
        self.conftests = {*order["conftests"]}
        self.wanted = {*order["select"]}
        self.canaries = {*order["canaries"]}
        self.messages = order["messages"]
        self.report = report
        self.framework = framework
        self.seen: dict[str, list[Any]] = {}
        self.config: Any = None
        self.hooks: Any = None

    def is_wanted(self, nodeid: str) -> bool:
        """Whether a test was asked for by its id, or by its id without parameters."""
        return nodeid in self.wanted or nodeid.partition("[")[0] in self.wanted

    def strangers(self) -> bool:
        """Whether anything but pytest, this judge, the task's plugins and the repository's conftest files hooks in."""
        for plugin in self.config.pluginmanager.get_plugins():
            kind = plugin if isinstance(plugin, type) else type(plugin)
            name = getattr(plugin, "__name__", "") if isinstance(plugin, type(sys)) else kind.__module__
            home = self.framework.modules.get(name)
            if plugin is self.hooks or name in self.allowed or name.partition(".")[0] in self.allowed:
                continue
            if plugin is home or (home is not None and vars(home).get(kind.__qualname__.split(".")[0]) is not None):
                continue
            if isinstance(plugin, type(sys)) and plugin.__file__ in self.conftests:
                continue
            return True
        return False

    def select(self, items: list[Any]) -> None:
        """Keep the wanted tests, and put the canaries around them."""
        wanted = [item for item in items if self.is_wanted(item.nodeid)]
        canaries = [item for item in items if item.nodeid.partition("::")[0] in self.canaries]
        files = [item.nodeid.partition("::")[0] for item in wanted]
        spots = [0, *(index for index in range(1, len(wanted)) if files[index] != files[index - 1]), len(wanted)]
        chosen = []
        for index in range(len(wanted) + 1):
            if index in spots and canaries:
                chosen.append(canaries.pop(0))
            chosen += wanted[index : index + 1]
        self.report("collected", [len(items), [item.nodeid for item in wanted]])
        items[:] = chosen + canaries

    def outcome(self, item: Any) -> str:
        """Return what became of a test that has run."""
        phases = self.seen.pop(item.nodeid, [])
        names = [phase for phase, _, _ in phases]
        if not self.framework.intact() or self.strangers():
            return "tampered"
        if any(report.skipped for _, _, report in phases):
            return "xfailed" if any(hasattr(report, "wasxfail") for _, _, report in phases) else "skipped"
        if any(report.failed or raised for phase, raised, report in phases if phase == "call"):
            return "failed"
        if any(report.failed or raised for _, raised, report in phases):
            return "error"
        if any(hasattr(report, "wasxfail") for _, _, report in phases):
            return "xpassed"
        whole = names.count("setup") == names.count("teardown") == 1 and "call" in names and {*names} == {*PHASES}
        return "passed" if whole and all(report.outcome == "passed" for _, _, report in phases) else "failed"

    def message(self, item: Any) -> str:
        """Return the error of a test that has run, in a few words."""
        for _, raised, report in self.seen.get(item.nodeid, []):
            crash = getattr(report.longrepr, "reprcrash", None)
            if report.failed:
                return str(crash.message if crash else raised)[:SHOWN]
        return ""


def hooks(judge: Judge, pytest: Any) -> Any:
    """Return the plugin's hooks, made here because the marks need pytest."""
    raised: dict[str, str] = {}

    class Hooks:
        def pytest_configure(self, config: Any) -> None:
            judge.config = config

        @pytest.hookimpl(hookwrapper=True, tryfirst=True)  # type: ignore[untyped-decorator]
        def pytest_collection_modifyitems(self, items: list[Any]) -> Iterator[None]:
            yield
            judge.select(items)

        @pytest.hookimpl(hookwrapper=True, tryfirst=True)  # type: ignore[untyped-decorator]
        def pytest_runtest_setup(self) -> Iterator[None]:
            result = yield
            note("setup", result)

        @pytest.hookimpl(hookwrapper=True, tryfirst=True)  # type: ignore[untyped-decorator]
        def pytest_runtest_call(self) -> Iterator[None]:
            result = yield
            note("call", result)

        @pytest.hookimpl(hookwrapper=True, tryfirst=True)  # type: ignore[untyped-decorator]
        def pytest_runtest_teardown(self) -> Iterator[None]:
            result = yield
            note("teardown", result)

        def pytest_runtest_logreport(self, report: Any) -> None:
            judge.seen.setdefault(report.nodeid, []).append((report.when, raised.get(report.when, ""), report))

        @pytest.hookimpl(hookwrapper=True, tryfirst=True)  # type: ignore[untyped-decorator]
        def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
            raised.clear()
            yield
            text = judge.message(item) if judge.messages else ""
            judge.report("test", [item.nodeid, judge.outcome(item), text])

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed and judge.messages:
                judge.report("broken", [report.nodeid, str(report.longrepr).strip().splitlines()[-1][-SHOWN:]])

    def note(phase: str, result: Any) -> None:
        if result.excinfo is not None:
            raised[phase] = f"{result.excinfo[0].__name__}: {result.excinfo[1]}"

    return Hooks()


def run(order: dict[str, Any], send: Callable[[bytes], None]) -> None:
    """Run one order; `end` is the last message of a run that came to its end."""
    import json
    import tempfile
    from pathlib import Path

    private = Path(tempfile.mkdtemp())
    enter(order, private)
    import pytest

    lines = [f"{name} = {value}\n" for name, value in order["ini"].items()]
    (private / "pytest.ini").write_text("".join(["[pytest]\n", *lines]), encoding="utf-8")
    off = [f"no:{name}" for name in ("cacheprovider", "junitxml", "pastebin", "doctest")]
    words = [word for name in (*off, *order["plugins"]) for word in ("-p", name)]
    words += ["-c", str(private / "pytest.ini"), "--rootdir", order["root"], "--confcutdir", order["root"]]
    framework = Framework()

    def report(kind: str, rest: list[Any]) -> None:
        send(json.dumps([kind, *rest]).encode())

    judge = Judge(order, report, framework)
    judge.hooks = hooks(judge, pytest)
    pytest.main([*words, "--import-mode", "append", "-q", *order["files"]], plugins=[judge.hooks])
    report("framework", [framework.intact()])
    send(b"end")
