"""Files in and out of a container by a few lines of shell; works where `docker cp` does not, such as on a tmpfs.

The commands run as the agent, so a link that leads elsewhere leads to nothing that the agent could not reach; what
comes out is checked again by us.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from itertools import accumulate

from agentgym.sandbox import ExecResult
from agentgym_sandboxes._tar import pack, unpack

_NOT_PLAIN, _MISSING = 91, 92
ANSWERS = (0, _NOT_PLAIN, _MISSING)
"""Exit codes by which a command of ours tells how it went; any other says that something kept it from its work."""
_BATCH_BYTES = 1 << 19
_OVERHEAD = 2048

_WALK = f'for p; do [ -L "$p" ] && exit {_NOT_PLAIN}; [ -e "$p" ] || exit {_MISSING}; done; '
_READ = f'n=$1; shift; {_WALK} [ -f "$p" ] || exit {_NOT_PLAIN}; exec head -c "$n" "$p"'
_ARCHIVE = (
    f'n=$1; shift; {_WALK} [ -d "$p" ] || exit {_NOT_PLAIN}; cd "$p" || exit {_NOT_PLAIN}; '
    '{ tar -cf - . || echo "tar-failed" >&2; } | head -c "$n"'
)
# First the folders, then `--`, then the files. What may run keeps that right; what is not a plain file gives way.
_WRITE = f"""umask 022
while [ "$1" != -- ]; do
    if [ -L "$1" ]; then echo "$1" >&2; exit {_NOT_PLAIN}; fi
    [ -d "$1" ] || mkdir "$1" || exit {_NOT_PLAIN}
    shift
done
shift
for p; do
    shift
    if [ -d "$p" ] && [ ! -L "$p" ]; then echo "$p is a folder" >&2; exit {_NOT_PLAIN}; fi
    if [ -L "$p" ] || [ ! -f "$p" ]; then rm -f "$p"; elif [ -x "$p" ]; then set -- "$@" "$p"; fi
done
tar -xf - -C / || exit {_NOT_PLAIN}
[ $# = 0 ] || chmod a+x "$@"
"""


def reader(path: str, limit: int) -> list[str]:
    """Return the command that prints a file, one byte beyond the limit at most."""
    return _command(_READ, str(limit + 1), *_steps(path))


def read_result(result: ExecResult, path: str, limit: int) -> bytes:
    """Return the file, or raise what is wrong with it."""
    _raise(result, path)
    if len(result.stdout) > limit:
        raise ValueError(f"{path!r} has more than the {limit} bytes that may be read")
    return result.stdout


def writers(files: Mapping[str, bytes], tops: tuple[str, ...], uid: int) -> Iterator[tuple[list[str], bytes]]:
    """Yield the commands that write files below the folders `tops`, each with its input."""
    for path in files:
        if path in tops:
            raise ValueError(f"the path {path!r} is the sandbox's folder itself, not a file in it")
        if not path.startswith(tuple(f"{top}/" for top in tops)):
            raise ValueError(f"{path!r} is outside of {' and '.join(tops)}, where this sandbox keeps files")
    for paths in _batches(files):
        folders = sorted({step for path in paths for step in _steps(path)[1:-1]})
        yield _command(_WRITE, *folders, "--", *paths), pack({path: files[path] for path in paths}, uid)


def check_write(result: ExecResult) -> None:
    """Raise what is wrong with a write."""
    _raise(result, result.stderr.decode(errors="replace").strip())


def archiver(path: str, max_files: int, max_bytes: int) -> tuple[list[str], int]:
    """Return the command that prints a folder as an archive, and how many bytes that may be."""
    limit = max_bytes + _OVERHEAD * max_files + 2 * 10240
    return _command(_ARCHIVE, str(limit + 1), *_steps(path)), limit


def archive_result(result: ExecResult, path: str, limit: int, max_files: int, max_bytes: int) -> dict[str, bytes]:
    """Return the files of a folder, or raise what is wrong with it."""
    _raise(result, path)
    if len(result.stdout) > limit:
        raise ValueError(f"{path!r} has more than {max_files} entries or more than {max_bytes} bytes, or is too deep")
    if b"tar-failed" in result.stderr:
        raise ValueError(f"{path!r} cannot be read whole: {result.stderr[-200:].decode(errors='replace')}")
    return unpack(result.stdout, max_files, max_bytes)


def _command(script: str, *arguments: str) -> list[str]:
    return ["/bin/sh", "-c", script, "sh", *arguments]


def _steps(path: str) -> list[str]:
    """Return every folder on the way and the path itself.

    >>> _steps("/workspace/a/b")
    ['/workspace', '/workspace/a', '/workspace/a/b']
    """
    return [f"/{step}" for step in accumulate(path.strip("/").split("/"), "{}/{}".format)]


def _batches(files: Mapping[str, bytes]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for path in files:
        if batch and size + len(path.encode()) > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += len(path.encode())
    if batch:
        yield batch


def _raise(result: ExecResult, path: str) -> None:
    if result.exit_code == _MISSING:
        raise FileNotFoundError(errno.ENOENT, "no such file in the sandbox", path)
    if result.exit_code != 0:
        reason = result.stderr.decode(errors="replace").strip()[-200:]
        raise ValueError(
            f"the path {path!r} cannot be opened as a plain file or folder: {reason or 'it is something else'}"
        )
