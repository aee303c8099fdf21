"""How a container is removed, also while it is ending by itself or somebody else removes it."""

from __future__ import annotations

import time

from docker import APIClient
from docker.errors import APIError, NotFound

_ENDING = ("is not running", "state improper")  # Docker's words and Podman's
_REMOVED_BY_ANOTHER = "already in progress"
_POLL_S = 0.02
_PATIENCE_S = 10.0


def remove_container(api: APIClient, container: str, patience_s: float = _PATIENCE_S) -> None:
    """Kill a container and remove it, with the volumes that are its own.

    A daemon looks first whether the container runs and kills it then; one that ends in between is refused, and only
    for a moment.

    Raises:
        NotFound: there is none.
        APIError: the daemon refuses, and goes on refusing.
        requests.RequestException: it does not answer.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            api.remove_container(container, v=True, force=True)
        except NotFound:
            raise
        except APIError as error:
            said = str(error)
            if _REMOVED_BY_ANOTHER in said:
                return
            if time.monotonic() >= deadline or not any(words in said for words in _ENDING):
                raise
            time.sleep(_POLL_S)
        else:
            return
