"""HTML: what a reader of the page sees, without scripts, styles and navigation."""

from __future__ import annotations

import re

from bs4 import BeautifulSoup, Tag
from bs4.element import NavigableString, PreformattedString

from ingest.read import Parsed
from rag.types import Page

_UNSEEN = "script style template noscript nav svg iframe object form button select head".split()

_BLOCKS = frozenset(
    (
        "address article aside blockquote dd details div dl dt fieldset figcaption figure footer "
        "h1 h2 h3 h4 h5 h6 header hr li main ol p pre section summary table tr ul"
    ).split()
)

_OWN_PARAGRAPH = frozenset("h1 h2 h3 h4 h5 h6 p table pre blockquote ul ol dl".split())


def read(data: bytes) -> Parsed:
    """The page's text: headings as in Markdown, a line a list item, a table row with |."""
    soup = BeautifulSoup(data, "lxml")
    title = soup.title.get_text() if soup.title else ""
    heading = soup.find("h1")
    if not title.strip() and heading:
        title = heading.get_text()
    for unseen in soup(_UNSEEN):
        unseen.decompose()
    parts: list[str] = []
    _collect(soup.body or soup, parts)
    text = re.sub(r"[ \t]*\n[ \t]*", "\n", "".join(parts))
    return Parsed((Page(text),), " ".join(title.split()))


def _collect(root: Tag, parts: list[str]) -> None:
    """Append the text below `root`; a stack of its own, for pages nested thousands deep."""
    stack: list[Tag | NavigableString | str] = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, PreformattedString):  # comments, declarations
            continue
        if isinstance(node, NavigableString):
            preformatted = node.find_parent("pre") is not None
            parts.append(str(node) if preformatted else re.sub(r"\s+", " ", node))
        elif isinstance(node, str):
            parts.append(node)
        else:
            before, after = _around(node)
            stack.append(after)
            stack.extend(
                reversed([c for c in node.children if isinstance(c, Tag | NavigableString)])
            )
            parts.append(before)


def _around(tag: Tag) -> tuple[str, str]:
    """What to write before and after an element."""
    name = tag.name
    if name == "br":
        return "\n", ""
    if name in ("td", "th"):
        return "", " | " if tag.find_next_sibling(["td", "th"]) else ""
    if name == "li":
        return "\n- ", "\n"
    if re.fullmatch("h[1-6]", name):
        return f"\n\n{'#' * int(name[1])} ", "\n\n"
    if name in _OWN_PARAGRAPH:
        return "\n\n", "\n\n"
    return ("\n", "\n") if name in _BLOCKS else ("", "")
