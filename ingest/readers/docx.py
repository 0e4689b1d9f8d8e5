"""Word documents (.docx): all that a reader of the printed page sees, in its order.

python-docx opens the package; the text is taken from the XML itself, because its objects leave out
content controls, text boxes, footnotes and inserted text, and fail on tables with uneven rows.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import docx
from docx.oxml import parse_xml
from docx.oxml.ns import qn

from ingest.read import Parsed
from rag.errors import UnreadableFile
from rag.types import Page

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # the container of .doc and of encrypted .docx
_MAX_UNPACKED = 2**30

_P, _TABLE, _BOX = qn("w:p"), qn("w:tbl"), qn("w:txbxContent")
_UNSEEN = {
    qn("w:del"),
    qn("w:moveFrom"),
    qn("w:pPr"),
    "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback",
}
_WRAPPERS = {qn(f"w:{n}") for n in ("sdt", "sdtContent", "customXml", "ins", "moveTo", "smartTag")}
_TEXT = {qn("w:t"), "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"}
_SIGNS = {
    qn("w:tab"): "\t",
    qn("w:ptab"): "\t",
    qn("w:br"): "\n",
    qn("w:cr"): "\n",
    qn("w:noBreakHyphen"): "-",
}
_ITEM = re.compile(r" *- ")
_NOTES = {qn("w:footnoteReference"): "footnotes", qn("w:endnoteReference"): "endnotes"}


def read(data: bytes) -> Parsed:
    """The document as one page: Word fixes page breaks only when it prints."""
    if data.startswith(_OLE):
        raise UnreadableFile(
            "is password-protected or an old .doc", "save it as .docx without a password"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(item.file_size for item in archive.infolist()) > _MAX_UNPACKED:
                raise UnreadableFile("unpacks to more than 1 GB", "remove its pictures")
        document = docx.Document(io.BytesIO(data))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise UnreadableFile(f"is not a .docx file ({error})", "save it again as .docx") from error
    reader = _Reader(document)
    body = joined(reader.blocks(document.element.body))
    heading = re.search(r"^#+ (.+)", body, re.MULTILINE)
    title = document.core_properties.title or (heading[1] if heading else "")
    text = "\n\n".join([*reader.margins("header"), body, *reader.margins("footer")])
    return Parsed((Page(text),), title)


class _Reader:
    def __init__(self, document: Any) -> None:
        self._part = document.part
        self._body = document.element.body
        self._styles = {s.get(qn("w:styleId")): s for s in document.styles.element.style_lst}
        self._notes = {kind: self._read_notes(kind) for kind in _NOTES.values()}

    def blocks(self, container: Any) -> Iterator[str]:
        """Paragraphs, with their notes and text boxes below them, and tables."""
        for element in _children(container, {_P, _TABLE}):
            if element.tag == _TABLE:
                yield self._table(element)
                continue
            yield self._paragraph(element)
            for part in _seen(element):
                if part.tag == _BOX:
                    yield from self.blocks(part)
                elif part.tag in _NOTES:
                    note = self._notes[_NOTES[part.tag]].get(part.get(qn("w:id")), ())
                    yield f"{_note_mark(part)}: {_one_line(self.blocks(note))}"

    def margins(self, kind: str) -> list[str]:
        """The texts of the headers or footers that are printed, each once."""
        found: dict[str, None] = {}
        for section in self._body.iter(qn("w:sectPr")):
            for reference in section.findall(qn(f"w:{kind}Reference")):
                first = reference.get(qn("w:type")) == "first" and _is_on(section, "titlePg")
                if first or reference.get(qn("w:type")) == "default":
                    part = self._part.related_parts[reference.get(qn("r:id"))]
                    found[joined(self.blocks(part.element))] = None
        return [text for text in found if text]

    def _paragraph(self, paragraph: Any) -> str:
        parts = (
            part.text or "" if part.tag in _TEXT else _SIGNS.get(part.tag) or _note_mark(part)
            for part in _seen(paragraph)
        )
        text = "".join(parts).strip()
        level = self._setting(paragraph, "outlineLvl")
        if text and level is not None and int(level) < 9:
            return f"{'#' * min(int(level) + 1, 6)} {' '.join(text.split())}"
        if text and self._style_name(paragraph) == "title":
            return f"# {text}"
        if text and self._setting(paragraph, "numPr/w:numId") not in (None, "0"):
            return "  " * int(self._setting(paragraph, "numPr/w:ilvl") or 0) + f"- {text}"
        return text

    def _setting(self, paragraph: Any, name: str) -> str | None:
        """A value that the paragraph has of its own, or from its style or a style below that."""
        element, seen = paragraph, set()
        while element is not None and element not in seen:
            seen.add(element)
            found = element.find(f"w:pPr/w:{name}", element.nsmap)
            if found is not None:
                return str(found.get(qn("w:val"), "0"))
            path = "w:pPr/w:pStyle" if element is paragraph else "w:basedOn"
            parent = element.find(path, element.nsmap)
            element = None if parent is None else self._styles.get(parent.get(qn("w:val")))
        return None

    def _style_name(self, paragraph: Any) -> str:
        style = self._styles.get(paragraph.style)
        return "" if style is None else str(style.name_val or "").lower()

    def _table(self, table: Any) -> str:
        """A line for each row, with its cells between |; a cell merged downwards is in each row."""
        rows: list[str] = []
        above: dict[int, str] = {}
        for row in _children(table, {qn("w:tr")}):
            cells: list[str] = []
            column = 0
            blocks: list[str] = []
            for cell in _children(row, {qn("w:tc")}):
                if cell.vMerge != "continue":
                    blocks = list(self.blocks(cell))
                    above[column] = _one_line(blocks)
                cells.append(above.get(column, ""))
                column += cell.grid_span
            # A single cell is a frame around text, and keeps its paragraphs.
            rows.append(joined(blocks) if len(cells) == 1 else " | ".join(cells))
        return "\n".join(row for row in rows if row.strip(" |"))

    def _read_notes(self, kind: str) -> dict[str, Any]:
        for relation in self._part.rels.values():
            if relation.reltype.endswith(f"/{kind}") and not relation.is_external:
                notes = parse_xml(relation.target_part.blob)
                return {note.get(qn("w:id")): note for note in notes}
        return {}


def joined(blocks: Iterable[str]) -> str:
    """The blocks with a blank line between them, but none between the items of a list."""
    text = ""
    for block in filter(None, blocks):
        tight = _ITEM.match(block) and _ITEM.match(text[text.rfind("\n") + 1 :])
        text += ("\n" if tight else "\n\n") * bool(text) + block
    return text


def _one_line(blocks: Iterable[str]) -> str:
    return " ".join(" ".join(blocks).split())


def _seen(element: Any) -> Iterator[Any]:
    """All that a reader sees below an element, but not what is inside text boxes."""
    for child in element:
        if child.tag in _UNSEEN or (child.tag == qn("w:r") and _is_on(child, "rPr/w:vanish")):
            continue
        yield child
        if child.tag != _BOX:
            yield from _seen(child)


def _children(element: Any, tags: set[str]) -> Iterator[Any]:
    """The nearest elements of these kinds, whatever they are wrapped in."""
    for child in element:
        if child.tag in tags:
            yield child
        elif child.tag in _WRAPPERS:
            yield from _children(child, tags)


def _is_on(element: Any, name: str) -> bool:
    found = element.find(f"w:{name}", element.nsmap)
    return found is not None and found.get(qn("w:val")) not in ("0", "false", "off")


def _note_mark(reference: Any) -> str:
    kind = _NOTES.get(reference.tag)
    return f"[^{kind[0] if kind == 'endnotes' else ''}{reference.get(qn('w:id'))}]" if kind else ""
