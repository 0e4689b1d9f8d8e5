"""HTML: what a reader of the page sees, without scripts, styles and navigation."""

from __future__ import annotations

import codecs
import re
import warnings

from bs4 import BeautifulSoup, Tag, XMLParsedAsHTMLWarning
from bs4.dammit import EncodingDetector
from bs4.element import NavigableString, PreformattedString

from ingest.read import Parsed
from ingest.readers.text import byte_order_mark
from rag.types import Page

_UNSEEN = (
    "script, style, template, noscript, nav, svg, iframe, object, button, select, textarea, head, "
    "[hidden], [style*='display:none' i], [style*='display: none' i]"
)
# Before and after these stands a line break, or a blank line.
_BLOCKS = frozenset(
    "address article aside caption dd details div dt fieldset figcaption figure footer form header "
    "hr legend li main section summary td th tr".split()
)
_PARAGRAPHS = frozenset("blockquote dl h1 h2 h3 h4 h5 h6 ol p pre table ul".split())
_NO_DATA = ["table", "h1", "h2", "h3", "h4", "h5", "h6", "pre"]  # in a table that lays out a page

# Pages that declare the first are written in the second, which holds more: encoding.spec.whatwg.org
_WIDER = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}


def read(data: bytes) -> Parsed:
    """The page's text: headings as in Markdown, a line a list item, a table row with |."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)  # XHTML reads well as HTML
        soup = BeautifulSoup(_decode(data), "lxml")
    titles = soup.select("head > title, h1")
    title = next((text for tag in titles if (text := tag.get_text()).strip()), "")
    for unseen in soup.select(_UNSEEN):
        unseen.decompose()
    for ordered in soup("ol"):
        start = str(ordered.get("start", "1"))
        first = int(start) if re.fullmatch(r"[0-9]{1,9}", start) else 1
        for number, item in enumerate(ordered.find_all("li", recursive=False), first):
            item["data-number"] = str(number)
    return Parsed((Page(_text(soup.body or soup)),), title)


def _decode(data: bytes) -> str:
    """The text in the encoding that it declares, otherwise as browsers do: UTF-8 or Windows-1252.

    UTF-8 is tried first, because no other text passes for it by chance.
    """
    if marked := byte_order_mark(data):
        return data.decode(marked, errors="replace")
    declared = _encoding(EncodingDetector.find_declared_encoding(data, is_html=True) or "")
    stateful = declared.startswith("iso2022") or declared == "hz"  # which looks like ASCII
    for encoding in (declared, "utf-8") if stateful else ("utf-8", declared):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode(declared, errors="replace")


def _encoding(label: str) -> str:
    """Python's name of the encoding that a page declares; Windows-1252 if it names none."""
    try:
        name = codecs.lookup(label.lower().removeprefix("x-")).name
        b"x".decode(name, errors="replace")
    except LookupError:  # unknown, or none of text, like "zip"
        return "cp1252"
    return _WIDER.get(name, "cp1252" if name.startswith(("utf-16", "utf-32")) else name)


class _Lines:
    """Text under construction, with white space as a browser shows it."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._breaks = 0  # before the next word
        self._space = False
        self._mark = ""

    def words(self, text: str) -> None:
        words = " ".join(text.split())
        self._space = self._space or text[:1].isspace()
        if words:
            self.verbatim(words)
            self._space = text[-1].isspace()

    def verbatim(self, text: str) -> None:
        if not text:
            return
        self.parts.append("\n" * self._breaks or " " * self._space)
        self.parts.append(self._mark + text)
        self._breaks, self._space, self._mark = 0, False, ""

    def end(self, breaks: int) -> None:
        if breaks and not self._mark:  # a mark and its text stay together
            self._breaks = max(self._breaks, breaks)
            self._space = False

    def leave(self, breaks: int) -> None:
        if breaks:
            self._mark = ""  # of an element without text
        self.end(breaks)

    def feed(self) -> None:
        self.end(min(self._breaks + 1, 2))

    def mark(self, mark: str) -> None:
        self._mark = mark or self._mark


def _text(root: Tag) -> str:
    """The text below `root`; with a stack of its own, for pages nested thousands deep."""
    lines = _Lines()
    stack: list[tuple[object, int]] = [(root, 0)]
    while stack:
        node, lists = stack.pop()
        if isinstance(node, int):
            lines.leave(node)
        elif isinstance(node, NavigableString):
            if not isinstance(node, PreformattedString):  # comments, declarations
                lines.words(node)
        elif isinstance(node, Tag):
            breaks = _breaks(node, lists)
            lines.end(breaks)
            if node.name == "br":
                lines.feed()
            elif node.name == "pre":
                lines.verbatim(_preformatted(node))
            elif node.name in ("table", "tr") and _is_data(node):
                lines.verbatim("\n".join(_rows(node)))
            else:
                lines.mark(_mark(node, lists))
                lists += node.name in ("ol", "ul")
                stack.append((breaks, 0))
                stack.extend((child, lists) for child in reversed(node.contents))
                continue
            lines.end(breaks)
    return "".join(lines.parts)


def _breaks(tag: Tag, lists: int) -> int:
    """How many line breaks stand before and after an element that is `lists` deep in lists."""
    if tag.name in ("ol", "ul") and lists:
        return 1
    return 2 if tag.name in _PARAGRAPHS else int(tag.name in _BLOCKS)


def _mark(tag: Tag, lists: int) -> str:
    """What Markdown writes before a heading or the item of a list."""
    if re.fullmatch("h[1-6]", tag.name):
        return "#" * int(tag.name[1]) + " "
    if tag.name != "li":
        return ""
    indent = "  " * (lists - 1)
    return f"{indent}{tag['data-number']}. " if tag.has_attr("data-number") else f"{indent}- "


def _preformatted(tag: Tag) -> str:
    for br in tag("br"):
        br.replace_with("\n")
    return tag.get_text().strip("\n")


def _is_data(table_or_row: Tag) -> bool:
    """Whether it is there to relate cells, and not to place blocks on the page."""
    if table_or_row.find(_NO_DATA):
        return False
    return len(table_or_row(["td", "th"])) > max(1, len(table_or_row("tr")))


def _rows(table: Tag) -> list[str]:
    """A line for each row, with its cells between |; a cell that spans rows stands in each."""
    rows = [" ".join(_text(table.caption).split())] if table.caption else []
    below: dict[int, tuple[str, int]] = {}  # column -> text, rows that it goes on for
    for row in table("tr") or [table]:
        cells = {column: text for column, (text, _) in below.items()}
        below = {column: (text, n - 1) for column, (text, n) in below.items() if n > 1}
        column = 0
        for cell in row(["td", "th"]):
            while column in cells:
                column += 1
            cells[column] = " ".join(_text(cell).split())
            if (rows_down := _span(cell, "rowspan")) > 1:
                below[column] = cells[column], rows_down - 1
            column += _span(cell, "colspan")
        if any(cells.values()):
            rows.append(" | ".join(cells[column] for column in sorted(cells)))
    return rows


def _span(cell: Tag, attribute: str) -> int:
    value = str(cell.get(attribute, ""))
    return int(value) if re.fullmatch(r"[1-9][0-9]{0,2}", value) else 1
