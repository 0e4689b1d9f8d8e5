"""Plain text."""

from __future__ import annotations

import codecs

from ingest.read import Parsed
from rag.errors import UnreadableFile
from rag.types import Page

# UTF-32's mark begins with UTF-16's, so it is tried first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read(data: bytes) -> Parsed:
    """The whole text as one page; a short first line is the title, unless its sentence goes on."""
    text = decode(data)
    first, _, rest = text.strip().partition("\n")
    alone = len(first) <= 150 and not rest.lstrip()[:1].islower()
    return Parsed((Page(text),), title=first if alone else "")


def decode(data: bytes) -> str:
    """Text from UTF-8, or from UTF-16 or UTF-32 with a byte order mark.

    Other encodings are not guessed: a wrong guess is silent and ends up in answers.
    """
    encoding = byte_order_mark(data) or "utf-8"
    try:
        text = data.decode(encoding)
        if "\x00" in text:  # UTF-16 without its mark, or no text at all
            raise UnicodeDecodeError(encoding, data, data.find(b"\0"), 0, "NUL")
        return text
    except UnicodeDecodeError as error:
        raise UnreadableFile(
            f"is not {encoding.removesuffix('-sig').upper()} text (byte {error.start})",
            "convert it, as with: iconv -f GB18030 -t UTF-8 (or -f WINDOWS-1252, -f UTF-16BE)",
        ) from error


def byte_order_mark(data: bytes) -> str | None:
    """The encoding that the first bytes declare."""
    return next((name for mark, name in _MARKS if data.startswith(mark)), None)
