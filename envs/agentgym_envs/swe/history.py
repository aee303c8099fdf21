"""One commit and nothing else: what a repository's git may tell an agent."""

from __future__ import annotations

import shlex

AGENT = 1000
"""The user and group of agents in containers."""
_SCRIPT = r"""
cd ROOT
rm -rf .git
command -v git >/dev/null || exit 0
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_DATE=2000-01-01T00:00:00Z
export GIT_COMMITTER_DATE=$GIT_AUTHOR_DATE
g() { git -c core.logAllRefUpdates=false -c init.defaultBranch=main -c user.name=agent -c user.email=agent@localhost \
    -c core.hooksPath=/dev/null -c core.autocrlf=false -c gc.auto=0 -c commit.gpgSign=false "$@"; }
g init -q --template=
g add -A -f
g commit -q --allow-empty -m 'the repository before the fix'
g repack -q -a -d
g prune-packed -q
rm -f .git/COMMIT_EDITMSG .git/ORIG_HEAD .git/FETCH_HEAD
g config user.name agent
g config user.email agent@localhost
"""


def one_commit(root: str) -> str:
    """Return a script that makes of a folder a git repository with one commit, whatever it was before.

    Nothing of an older one is left: no object, reference, log, stash or alternate. Without git there is no repository.
    """
    return "set -e\n" + _SCRIPT.replace("ROOT", shlex.quote(root)).strip()


def alone(root: str) -> str:
    """Return the same for an image that is built, where root does it; the folder is the agent's afterwards."""
    return f"({one_commit(root)})\nchown -R {AGENT}:{AGENT} {shlex.quote(root)}"
