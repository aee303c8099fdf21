"""Folders of documents as passages: Markdown, reStructuredText, HTML and plain text, cut at their headings."""

from __future__ import annotations

import gzip
import posixpath
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agentgym.errors import MissingExtraError

MAX_BYTES = 32 << 20
MAX_SECTION = 2000
"""Characters; a longer section is cut between paragraphs."""


class UnreadableError(ValueError):
    """A file that is too large or not of the form that its name says."""


MAX_HEADING = 200


@dataclass(frozen=True, slots=True)
class Section:
    """A piece of a document."""

    title: str
    """The document's title, and the section's heading behind it."""
    text: str
    links: tuple[str, ...] = ()


@dataclass(slots=True)
class _Block:
    """What a parser yields: a heading, or a paragraph with the links in it."""

    text: str
    is_heading: bool = False
    links: tuple[str, ...] = ()


def files(folder: Path) -> list[Path]:
    """Return the documents of a folder and its subfolders, sorted by name; links are not followed."""
    found = (one for one in folder.rglob("*") if _suffix(one) in _PARSERS and one.is_file() and not one.is_symlink())
    return sorted(found, key=lambda one: one.relative_to(folder).as_posix())


def sections(file: Path) -> list[Section]:
    """Return a document's sections; one without text has none.

    Raises:
        UnreadableError: saying why.
        MissingExtraError: the parser is not installed.
    """
    data = _read(file)
    try:
        blocks = list(_PARSERS[_suffix(file)](data))
    except MissingExtraError:
        raise
    except Exception as error:  # parsers raise whatever they please on what is not of their form
        raise UnreadableError(f"cannot be parsed: {type(error).__name__}: {error}") from error
    return list(_cut(blocks, file.name.removesuffix(".gz").rpartition(".")[0]))


def target(document: str, link: str) -> str:
    """Return the id of the document that a relative link leads to.

    >>> target("guide/start.md", "../api/index.md#calls"), target("a.md", "https://example.org/")
    ('api/index.md', 'https://example.org/')
    """
    path, _, _ = link.partition("#")
    if "://" in link or link.startswith(("mailto:", "/")):
        return link
    return posixpath.normpath(posixpath.join(posixpath.dirname(document), path)) if path else document


def _suffix(file: Path) -> str:
    return Path(file.name.removesuffix(".gz")).suffix.lower()


def _read(file: Path) -> bytes:
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableError(f"cannot be read: {error}") from error
    if len(data) > MAX_BYTES:
        raise UnreadableError(f"holds more than {MAX_BYTES >> 20} MiB")
    return data


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _cut(blocks: Iterable[_Block], name: str) -> Iterator[Section]:
    document, heading = "", ""
    kept: list[_Block] = []
    for block in (piece for one in blocks for piece in _pieces(one)):
        size = sum(len(one.text) for one in kept)
        if kept and (block.is_heading or size + len(block.text) > MAX_SECTION):
            yield _section(document or name, heading, kept)
            kept = []
        if block.is_heading:
            heading = block.text
            document = document or heading
        else:
            kept.append(block)
    if kept:
        yield _section(document or name, heading, kept)


def _pieces(block: _Block) -> Iterator[_Block]:
    """Yield a block, or the parts of one that is too long, cut at line breaks and spaces where there are any."""
    text, links = block.text, block.links
    if block.is_heading:
        yield replace(block, text=text[:MAX_HEADING])
        return
    while len(text) > MAX_SECTION:
        place = max(text.rfind("\n", 1, MAX_SECTION), text.rfind(" ", MAX_SECTION // 2, MAX_SECTION))
        place = place if place > 0 else MAX_SECTION
        yield _Block(text[:place].rstrip(), links=links)
        text, links = text[place:].lstrip("\n"), ()
    if text.strip():
        yield _Block(text, links=links)


def _section(document: str, heading: str, blocks: list[_Block]) -> Section:
    title = document if heading in ("", document) else f"{document}: {heading}"
    links = dict.fromkeys(link for one in blocks for link in one.links)
    return Section(title, "\n\n".join(one.text for one in blocks), tuple(links))


def _markdown(data: bytes) -> Iterator[_Block]:
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise MissingExtraError("markdown-it-py", "search") from error
    parsed = MarkdownIt("commonmark").enable("table").parse(_text(data))
    for index, token in enumerate(parsed):
        if token.type == "inline":
            words = "".join(_markdown_words(token))
            links = tuple(str(one.attrs["href"]) for one in token.children or () if one.type == "link_open")
            if words.strip():
                yield _Block(" ".join(words.split()), parsed[index - 1].type == "heading_open", links)
        elif token.type in ("fence", "code_block") and token.content.strip():
            yield _Block(token.content.rstrip())


def _markdown_words(token: Any) -> Iterator[str]:
    for one in token.children or ():
        if one.type in ("softbreak", "hardbreak"):
            yield " "
        elif one.type != "html_inline":
            yield one.content


def _rst(data: bytes) -> Iterator[_Block]:
    try:
        from docutils import core, nodes
    except ImportError as error:
        raise MissingExtraError("docutils", "search") from error
    # Nothing that a document asks for is read, run or warned about, and no role or directive has to be known.
    settings = {
        "file_insertion_enabled": False,
        "raw_enabled": False,
        "report_level": 5,
        "halt_level": 5,
        "_disable_config": True,
    }
    tree = core.publish_doctree(_text(data), settings_overrides=settings)
    pieces = (nodes.title, nodes.paragraph, nodes.literal_block, nodes.term, nodes.subtitle)
    for node in tree.findall(lambda one: isinstance(one, pieces)):
        text = node.astext() if isinstance(node, nodes.literal_block) else " ".join(node.astext().split())
        inside_message = any(isinstance(one, nodes.system_message) for one in _ancestors(node))
        if text.strip() and not inside_message:
            links = tuple(one["refuri"] for one in node.findall(nodes.reference) if "refuri" in one)
            yield _Block(text, isinstance(node, (nodes.title, nodes.subtitle)), links)


def _ancestors(node: Any) -> Iterator[Any]:
    while node is not None:
        yield node
        node = node.parent


_HTML_NOISE = ("script", "style", "nav", "noscript", "template", "head")
_HTML_BLOCKS = ("p", "li", "pre", "dt", "dd", "td", "th", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6")


def _html(data: bytes) -> Iterator[_Block]:
    try:
        from bs4 import BeautifulSoup
    except ImportError as error:
        raise MissingExtraError("beautifulsoup4", "search") from error
    soup = BeautifulSoup(data, "html.parser")
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    if title:
        yield _Block(" ".join(title.split()), is_heading=True)
    for noise in soup.find_all(_HTML_NOISE):
        noise.decompose()
    for one in soup.find_all(_HTML_BLOCKS):
        if one.find(_HTML_BLOCKS) is not None and one.name != "pre":
            own = [piece for piece in one.find_all(string=True, recursive=False) if piece.strip()]
            text = " ".join(" ".join(own).split())
        else:
            text = one.get_text().strip("\n") if one.name == "pre" else " ".join(one.get_text().split())
        if text.strip():
            links = tuple(str(link["href"]) for link in one.find_all("a", href=True))
            yield _Block(text, one.name in ("h1", "h2", "h3", "h4", "h5", "h6"), links)


def _plain(data: bytes) -> Iterator[_Block]:
    kept: list[str] = []
    for line in [*_text(data).splitlines(), ""]:
        if line.strip():
            kept.append(line.rstrip())
        elif kept:
            yield _Block("\n".join(kept))
            kept = []


_PARSERS: dict[str, Callable[[bytes], Iterator[_Block]]] = {
    ".md": _markdown,
    ".markdown": _markdown,
    ".rst": _rst,
    ".html": _html,
    ".htm": _html,
    ".xhtml": _html,
    ".txt": _plain,
}
SUFFIXES = tuple(_PARSERS)
"""What the names of documents end in; `.gz` may follow."""
