"""Fetch source packages from a Python package index as plain files: nothing of them is ever run on the host."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlparse

from agentgym.errors import InfrastructureError, TaskError

logger = logging.getLogger(__name__)
DEFAULT_INDEX = "https://pypi.org/simple"
_SUFFIXES = (".tar.gz", ".zip", ".tar.bz2", ".tgz")
_TIMEOUT_S = 120
_MOST_BYTES = 256 << 20


def index_url() -> str:
    """Return the index's address: `PIP_INDEX_URL`, as for pip, or the public one."""
    return (os.environ.get("PIP_INDEX_URL") or DEFAULT_INDEX).rstrip("/")


def cache_folder() -> Path:
    """Return where source packages are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentgym" / "sdists"


def fetch_sdist(package: str, version: str, sha256: str | None = None) -> bytes:
    """Return a source package, from the cache or the index; both must hold to a SHA-256.

    Raises:
        TaskError: the index has none of that version, or sends something else than it promised.
        InfrastructureError: it cannot be reached.
    """
    folder = cache_folder() / _normalised(package) / version
    for kept in sorted(folder.glob("*.*")):
        digest = kept.name.partition("-")[0]
        data = kept.read_bytes()
        if hashlib.sha256(data).hexdigest() == digest and sha256 in (None, digest):
            return data
    name, url, promised = _find(package, version)
    wanted = sha256 or promised
    data = _get(url)
    found = hashlib.sha256(data).hexdigest()
    if wanted is None:
        raise TaskError(f"the index gives no SHA-256 for {name}; name it in the task")
    if found != wanted:
        raise TaskError(f"{name} is not what it should be: wanted SHA-256 {wanted}, found {found}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as part:
        part.write(data)
    Path(part.name).replace(folder / f"{wanted}-{name}")
    logger.info("fetched a source package name=%s bytes=%d", name, len(data))
    return data


class _Links(HTMLParser):
    """Collects the files of an index page: name and address."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note where a link leads."""
        url = dict(attrs).get("href") if tag == "a" else None
        if url:
            self.found[urlparse(url).path.rpartition("/")[2]] = url


def _find(package: str, version: str) -> tuple[str, str, str | None]:
    page = f"{index_url()}/{_normalised(package)}/"
    links = _Links()
    links.feed(_get(page).decode("utf-8", "replace"))
    stem = re.sub(r"[-_.]+", "-", f"{package}-{version}").lower()
    for name, url in links.found.items():
        suffix = next((one for one in _SUFFIXES if name.endswith(one)), None)
        if suffix and re.sub(r"[-_.]+", "-", name.removesuffix(suffix)).lower() == stem:
            address, fragment = urldefrag(urljoin(page, url))
            kind, _, digest = fragment.partition("=")
            return name, address, digest if kind == "sha256" else None
    raise TaskError(f"the index {index_url()} has no source package of {package} {version}")


def _get(url: str) -> bytes:
    if urlparse(url).scheme not in ("https", "http", "file"):
        raise TaskError(f"wanted an address of a package index that begins with https://, found {url[:200]!r}")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            data: bytes = answer.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise InfrastructureError(f"{url} cannot be fetched: {reason}; PIP_INDEX_URL may name another index") from error
    if len(data) > _MOST_BYTES:
        raise TaskError(f"{url} has more than {_MOST_BYTES} bytes")
    return data


def _normalised(package: str) -> str:
    """Return a project's name as the index spells it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()
