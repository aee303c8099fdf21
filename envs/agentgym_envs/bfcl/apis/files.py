"""A small file system: one current directory, names instead of paths."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from agentgym.tools import tool
from agentgym_envs.bfcl.apis.base import Api

_FORBIDDEN = frozenset('|/\\?%*:"><')
_MOST = 1 << 20
"""Characters that the whole tree may take as text: copies of copies would double without end."""
_DEEPEST = 40
"""Directories below one another."""


class GorillaFileSystem(Api):
    """Directories are `{"type": "directory", "contents": {…}}`, files `{"type": "file", "content": "…"}`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        name, root = next(iter(config.get("root", {}).items()), ("/", {"contents": {}}))
        tree: dict[str, Any] = {"type": "directory", "contents": copy.deepcopy(root["contents"])}
        self.state = {"name": name, "root": tree}
        self._at: list[str] = []
        self._size = len(json.dumps(tree))

    @tool
    def pwd(self) -> Any:
        """Tell the path of the current directory."""
        return {"current_working_directory": "/" + "/".join([self.state["name"].strip("/"), *self._at])}

    @tool
    def ls(self, a: bool = False) -> Any:
        """List the current directory; names that begin with a dot only with a=true."""
        return {"current_directory_content": [name for name in self._here if a or not name.startswith(".")]}

    @tool
    def cd(self, folder: str) -> Any:
        """Change the current directory by one level: to a folder in it, or to .. above it."""
        wanted = folder.rstrip("/") or "/"
        if wanted == "..":
            if not self._at:
                raise ValueError("cd: the current directory is the root already")
            self._at.pop()
        elif wanted == "/":
            self._at.clear()
        elif wanted != ".":
            if "/" in wanted or self._here.get(wanted, {}).get("type") != "directory":
                raise ValueError(f"cd: there is no directory {folder!r} here; only one level at a time, no paths")
            self._at.append(wanted)
        return self.pwd()

    @tool
    def mkdir(self, dir_name: str) -> Any:
        """Create a directory in the current directory."""
        self._put(_new(self._here, dir_name, "mkdir"), {"type": "directory", "contents": {}})

    @tool
    def touch(self, file_name: str) -> Any:
        """Create an empty file in the current directory."""
        self._put(_new(self._here, file_name, "touch"), {"type": "file", "content": ""})

    @tool
    def echo(self, content: str, file_name: str | None = None) -> Any:
        """Write content into a file of the current directory in place of what it holds; without a file, show it."""
        if file_name is None:
            return {"terminal_output": content}
        self._file(file_name, "echo")
        self._put(file_name, {"type": "file", "content": content})
        return None

    @tool
    def cat(self, file_name: str) -> Any:
        """Show a file of the current directory."""
        return {"file_content": self._file(file_name, "cat")}

    @tool
    def find(self, path: str = ".", name: str | None = None) -> Any:
        """Find files and directories below a path whose names contain a text; without one, all."""
        where = self._here
        for step in [one for one in path.split("/") if one not in ("", ".")]:
            if where.get(step, {}).get("type") != "directory":
                raise ValueError(f"find: there is no directory {path!r} below the current one")
            where = where[step]["contents"]
        found, size = [], 0
        for one, last in _walk(where, path.rstrip("/")):
            if name is None or name in last:
                found.append(one)
                size += len(one)
            if size > _MOST:  # long paths to many files take far more room than the tree
                raise ValueError("find: there are too many matches; look for a longer name")
        return {"matches": found}

    @tool
    def wc(self, file_name: str, mode: Literal["l", "w", "c"] = "l") -> Any:
        """Count the lines (l), words (w) or characters (c) of a file of the current directory."""
        text = self._file(file_name, "wc")
        counted: Any = {"l": text.splitlines(), "w": text.split(), "c": text}[mode]
        return {"count": len(counted), "type": {"l": "lines", "w": "words", "c": "characters"}[mode]}

    @tool
    def sort(self, file_name: str) -> Any:
        """Show the lines of a file of the current directory in order; the file stays as it is."""
        return {"sorted_content": "\n".join(sorted(self._file(file_name, "sort").splitlines()))}

    @tool
    def grep(self, file_name: str, pattern: str) -> Any:
        """Show the lines of a file of the current directory that contain a text."""
        return {"matching_lines": [one for one in self._file(file_name, "grep").splitlines() if pattern in one]}

    @tool
    def du(self, human_readable: bool = False) -> Any:
        """Tell how many bytes the current directory holds, in larger units if it should be readable."""
        size = float(sum(len(text.encode("utf-8", "surrogatepass")) for text in _texts(self._here)))
        if not human_readable:
            return {"disk_usage": f"{size:.0f} bytes"}
        units = ["B", "KB", "MB", "GB"]
        while size >= 1024 and len(units) > 1:
            size, _ = size / 1024, units.pop(0)
        return {"disk_usage": f"{size:.2f} {units[0]}"}

    @tool
    def tail(self, file_name: str, lines: int = 10) -> Any:
        """Show the last lines of a file of the current directory."""
        if lines < 0:
            raise ValueError(f"tail: wanted a number of lines, found {lines}")
        found = self._file(file_name, "tail").splitlines()
        return {"last_lines": "\n".join(found[max(0, len(found) - lines) :])}

    @tool
    def diff(self, file_name1: str, file_name2: str) -> Any:
        """Compare two files of the current directory line by line."""
        pairs = zip(*(self._file(name, "diff").splitlines() for name in (file_name1, file_name2)), strict=False)
        return {"diff_lines": "\n".join(f"- {one}\n+ {other}" for one, other in pairs if one != other)}

    @tool
    def mv(self, source: str, destination: str) -> Any:
        """Move a file or directory into a directory here, or rename it; names only, no paths."""
        shown = self._copy(source, destination, "mv")
        del self._here[source]
        self._size = len(json.dumps(self.state["root"]))
        return {"result": f"'{source}' moved to '{shown}'"}

    @tool
    def cp(self, source: str, destination: str) -> Any:
        """Copy a file or directory into a directory here, or under another name; names only, no paths."""
        return {"result": f"'{source}' copied to '{self._copy(source, destination, 'cp')}'"}

    @tool
    def rm(self, file_name: str) -> Any:
        """Remove a file or directory of the current directory."""
        self._item(file_name, "rm")
        return self._gone(file_name)

    @tool
    def rmdir(self, dir_name: str) -> Any:
        """Remove an empty directory of the current directory."""
        one = self._item(dir_name, "rmdir")
        if one["type"] != "directory" or one["contents"]:
            raise ValueError(f"rmdir: {dir_name!r} is no empty directory")
        return self._gone(dir_name)

    # ------------------------------------------------------------------ the rest

    @property
    def _here(self) -> dict[str, Any]:
        found: dict[str, Any] = self.state["root"]["contents"]
        for name in self._at:
            found = found[name]["contents"]
        return found

    def _item(self, name: str, command: str) -> Any:
        if name not in self._here:
            raise ValueError(f"{command}: there is no {name!r} in the current directory")
        return self._here[name]

    def _file(self, name: str, command: str) -> str:
        one = self._item(name, command)
        if one["type"] != "file":
            raise ValueError(f"{command}: {name!r} is a directory")
        return str(one["content"])

    def _put(self, name: str, item: Any, into: dict[str, Any] | None = None) -> None:
        where = self._here if into is None else into
        if len(self._at) + (into is not None) + _height(item) > _DEEPEST:
            raise ValueError(f"wanted at most {_DEEPEST} directories below one another")
        grown = self._size + len(json.dumps({name: item})) - (len(json.dumps(where[name])) if name in where else 0)
        if grown > _MOST:
            raise ValueError("there is no space left")
        where[name], self._size = item, grown

    def _gone(self, name: str) -> Any:
        del self._here[name]
        self._size = len(json.dumps(self.state["root"]))
        return {"result": f"'{name}' removed"}

    def _copy(self, source: str, destination: str, command: str) -> str:
        item = copy.deepcopy(self._item(source, command))
        into = self._here.get(destination)
        if into is None:
            self._put(_new(self._here, destination, command), item)
            return destination
        if into["type"] != "directory" or source == destination:
            raise ValueError(f"{command}: there is a {destination!r} already, and it is no other directory")
        self._put(_new(into["contents"], source, command), item, into["contents"])
        return f"{destination}/{source}"


def _new(where: Mapping[str, Any], name: str, command: str) -> str:
    if not name or _FORBIDDEN & set(name):
        raise ValueError(f"{command}: {name!r} is no name; paths and {' '.join(sorted(_FORBIDDEN))} are not allowed")
    if name in where:
        raise ValueError(f"{command}: there is a {name!r} already")
    return name


def _walk(where: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for name, item in where.items():
        yield f"{path}/{name}", name
        yield from _walk(item.get("contents", {}), f"{path}/{name}")


def _height(item: Mapping[str, Any]) -> int:
    return 1 + max(map(_height, item["contents"].values()), default=0) if "contents" in item else 0


def _texts(where: Mapping[str, Any]) -> Iterator[str]:
    for item in where.values():
        yield from [item["content"]] if item["type"] == "file" else _texts(item["contents"])
