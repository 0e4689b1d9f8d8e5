"""PDF, page by page. PDFium reads first; pypdf where PDFium fails or its text is broken.

On 60 awkward files PDFium was right more often (order of Arabic, CJK fonts that are not embedded)
and survived more; pypdf read some that PDFium could not, or gave text where PDFium gave unmapped
glyphs. The better text of the two is taken.
"""

from __future__ import annotations

import io
import logging
import unicodedata

import pypdf
import pypdfium2

from ingest.read import Parsed
from rag.errors import UnreadableFile
from rag.types import Page

_PROTECTED = UnreadableFile("is password-protected", "remove the password and try again")
_BROKEN_SHARE = 0.02  # of characters without meaning, from which the other engine is asked


def read(data: bytes) -> Parsed:
    """A Page for each page, numbered from 1 as a PDF viewer counts them."""
    found: list[Parsed] = []
    errors: list[Exception] = []
    for engine in (_pdfium, _pypdf):
        try:
            found.append(engine(data))
        except UnreadableFile:
            raise
        except Exception as error:  # both engines raise many kinds on broken files
            errors.append(error)
        else:
            if _quality(found[-1]) > 1 - _BROKEN_SHARE:
                break
    if not found:
        reason = " ".join(str(errors[0]).split())[:120]
        raise UnreadableFile(f"is not a readable PDF ({reason})", "repair or re-export it")
    return max(found, key=lambda parsed: (_quality(parsed), found[0] is parsed))


def _quality(parsed: Parsed) -> float:
    """The share of characters that mean something; 0 for no text."""
    text = "".join(page.text for page in parsed.pages)
    seen = [c for c in text if not c.isspace()]
    if not seen:
        return 0.0
    broken = sum(c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cn", "Co") for c in seen)
    return 1 - broken / len(seen)


def _pdfium(data: bytes) -> Parsed:
    try:
        pdf = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            raise _PROTECTED from error
        raise
    with pdf:
        pages = []
        for number, page in enumerate(pdf, start=1):
            text = page.get_textpage()
            # PDFium marks a hyphen at a line's end with U+FFFE: the word goes on.
            plain = text.get_text_bounded().replace("\ufffe\r\n", "").replace("\ufffe", "")
            pages.append(Page(plain, number))
            text.close()
            page.close()
        title = pdf.get_metadata_value("Title").removeprefix("Microsoft Word - ")
        return Parsed(tuple(pages), title)


def _pypdf(data: bytes) -> Parsed:
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # its warnings are for its authors
    reader = pypdf.PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise _PROTECTED
    title = (reader.metadata.title if reader.metadata else "") or ""
    texts = [page.extract_text() for page in reader.pages]
    return Parsed(tuple(Page(t, n) for n, t in enumerate(texts, start=1)), str(title))
