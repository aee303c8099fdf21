"""What an agent could find in its own sandbox: hidden texts anywhere, the future of a repository."""

from __future__ import annotations

from collections.abc import Iterable

from agentgym.env import AgentEnv
from agentgym.errors import SandboxError
from agentgym.sandbox import Sandbox, SandboxBackend
from agentgym.task import Task
from agentgym.validate.secrets import SHORT, quote, secrets, texts, whole_secrets

_SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "boot", "proc", "sys", "dev")
"""Left out where the sandbox is the backend's own, which holds nothing of any task."""
_SEARCH_S = 120.0
_OUTPUT = 1 << 20
_GREP = r"""
command -v grep >/dev/null || exit 127
set -- /dev/shm
for top in /* /.[!.]*; do
    [ -d "$top" ] && [ ! -L "$top" ] || [ -f "$top" ] || continue
    case "${top#/}" in SKIPPED) continue ;; esac
    set -- "$@" "$top"
done
grep -rasoF -f - "$@" /proc/[0-9]*/environ /proc/[0-9]*/cmdline
true
"""
_GIT = r"""
find / \( PRUNED \) -prune -o \( -name .git -o -type f -name HEAD \) -print 2>/dev/null | while read -r found; do
    case "$found" in
        */.git) repo=$found ;;
        */.git/*) continue ;;
        *) repo=${found%/HEAD}; [ -d "$repo/objects" ] && [ -d "$repo/refs" ] || continue ;;
    esac
    echo "repository $repo"
    if [ -f "$repo" ]; then echo "problem is a link to another repository"; continue; fi
    command -v git >/dev/null || { echo "problem cannot be checked: the sandbox has no git"; continue; }
    g() { git --git-dir="$repo" -c safe.directory='*' -c core.fsmonitor=false "$@" 2>&1; }
    commits=$(g cat-file --batch-all-objects --batch-check='%(objecttype)' | grep -c '^commit$')
    [ "$commits" = 1 ] || echo "problem holds $commits commits, wanted one"
    g fsck --full --unreachable --no-reflogs --no-progress | head -n 3 | sed 's/^/problem fsck says: /'
    for part in logs refs/stash objects/info/alternates packed-refs refs/tags refs/remotes FETCH_HEAD ORIG_HEAD \
        worktrees modules; do
        [ -n "$(find "$repo/$part" -type f -size +0 2>/dev/null | head -n 1)" ] && echo "problem has $part"
    done
done
true
"""


def hidden_in(env: AgentEnv, task: Task) -> str | None:
    """Return where the agent's sandbox holds one of a task's secrets, or None.

    In a sandbox of the backend's own, any line of a hidden text is one too many. Where the task names an image, the
    whole of it is searched, and a file is named if it holds all lines of a hidden text: the repository before the
    solution shares most of them.

    Raises:
        SandboxError: it cannot be searched.
    """
    box, own = env.sandbox, task.sandbox.image is None
    kept = box.download(box.workdir)
    for secret in secrets(task, SHORT) if own else whole_secrets(task, SHORT):
        name = next((name for name, data in kept.items() if secret.encode() in data), None)
        if name is not None:
            return f"the agent's sandbox holds {quote(secret)} in {name}"
    wanted = [one for one in secrets(task, SHORT) if "\n" not in one] if own else [*whole_secrets(task, SHORT)]
    found = _search(box, wanted, own)
    if own and found:
        # What an empty sandbox holds too, such as the name of its folder, tells nothing of the task.
        found -= _empty(env.sandboxes, task, {line for _, line in found})
        return next((f"the agent's sandbox holds {quote(line)} in {path}" for path, line in sorted(found)), None)
    return _whole(task, found) if found else None


def future_in(box: Sandbox, own: bool) -> list[str]:
    """Return what is wrong with the git repositories in a sandbox: more than one commit, or traces of others.

    Raises:
        SandboxError: it cannot be searched.
    """
    pruned = ["/proc", "/sys", *(f"/{one}" for one in _SYSTEM if own and one not in ("proc", "sys", "dev"))]
    script = _GIT.replace("PRUNED", " -o ".join(f"-path {one}" for one in pruned))
    result = box.exec(script, timeout=_SEARCH_S, output_limit=_OUTPUT)
    if not result.ok:
        raise SandboxError(f"the sandbox cannot be searched for repositories: {result.output[-200:]}")
    repository, problems = "", []
    for line in result.stdout.decode("utf-8", "replace").splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "repository":
            repository = rest
        elif kind == "problem":
            problems.append(f"{repository} {rest}")
    return problems


def _search(box: Sandbox, wanted: Iterable[str], own: bool) -> set[tuple[str, str]]:
    """Return the places and secrets that were found there, line by line."""
    lines = sorted({one for text in wanted for one in _lines(text)})
    if not lines:
        return set()
    skipped = _SYSTEM if own else ("proc", "sys", "dev")
    script = _GREP.replace("SKIPPED", "|".join(skipped))
    result = box.exec(script, timeout=_SEARCH_S, stdin="\n".join(lines).encode(), output_limit=_OUTPUT)
    if not result.ok:
        why = "it has no grep" if result.exit_code == 127 else result.output[-200:] or "it took too long"
        raise SandboxError(f"the sandbox cannot be searched for hidden texts: {why}")
    known = set(lines)
    found = (line.partition(":") for line in result.stdout.decode("utf-8", "replace").splitlines())
    return {(path, text) for path, _, text in found if text in known}


def _empty(backend: SandboxBackend, task: Task, lines: Iterable[str]) -> set[tuple[str, str]]:
    with backend.start(task.sandbox.model_copy(update={"env": {}})) as box:
        return _search(box, lines, own=True)


def _whole(task: Task, found: set[tuple[str, str]]) -> str | None:
    held: dict[str, set[str]] = {}
    for path, line in found:
        held.setdefault(path, set()).add(line)
    open_lines = set("\n".join(texts(task.public.model_dump())).splitlines())
    for secret in whole_secrets(task, SHORT):
        wanted = _lines(secret) - open_lines
        for path in sorted(held):
            if wanted and wanted <= held[path]:
                return f"the agent's sandbox holds {quote(secret)} in {path}"
    return None


def _lines(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if len(line.strip()) >= SHORT}
