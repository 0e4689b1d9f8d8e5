"""Word documents (.docx): paragraphs, headings, lists and tables in the order of the page."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import docx
from docx.table import Table

from ingest.read import Parsed
from rag.errors import UnreadableFile
from rag.types import Page

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # the container of .doc and of encrypted .docx
_MAX_UNPACKED = 2**30


def read(data: bytes) -> Parsed:
    """The body as one page: Word fixes page breaks only when it prints."""
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
    blocks = list(_blocks(document))
    heading = next((b.lstrip("# ") for b in blocks if b.startswith("#")), "")
    return Parsed((Page("\n\n".join(blocks)),), document.core_properties.title or heading)


def _blocks(document: Any) -> Iterator[str]:
    listed: list[str] = []
    for item in document.iter_inner_content():
        text = _table(item) if isinstance(item, Table) else item.text.strip()
        style = "" if isinstance(item, Table) or item.style is None else item.style.name or ""
        if style.startswith("List"):
            listed.append(f"- {text}")
            continue
        if listed:
            yield "\n".join(listed)
            listed = []
        level = re.fullmatch(r"Heading (\d)", style)
        if text and level:
            yield f"{'#' * int(level[1])} {text}"
        elif text:
            yield f"# {text}" if style == "Title" else text
    if listed:
        yield "\n".join(listed)


def _table(table: Table) -> str:
    rows = []
    for row in table.rows:
        cells: list[str] = []
        for cell in row.cells:  # a merged cell comes once for each column that it spans
            text = " ".join(cell.text.split())
            if not cells or cells[-1] != text:
                cells.append(text)
        rows.append(" | ".join(cells))
    return "\n".join(rows)
