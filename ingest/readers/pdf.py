"""PDF, page by page. PDFium reads first; pypdf where PDFium fails or its text is broken.

On 60 awkward files PDFium was right more often (order of Arabic, CJK fonts that are not embedded)
and survived more; pypdf read some pages that PDFium could not, or gave text where PDFium gave
glyphs without a character. The better text of the two is taken for each page.
"""

from __future__ import annotations

import io
import logging
import re
import unicodedata
from collections.abc import Container
from contextlib import suppress
from itertools import zip_longest

import pypdf
import pypdfium2
from pypdfium2 import raw

from ingest.read import Parsed
from rag.errors import UnreadableFile
from rag.types import Page

_DOUBTFUL = 0.02  # the share of meaningless characters from which the other engine is asked,
_GIBBERISH = 0.2  # and from which a page is taken for a picture of text
_GLYPH_NAMES = re.compile(r"(?:/[A-Za-z]{1,8}\d{1,5}){3,}")  # what pypdf gives for unknown glyphs
# PDFium marks most hyphens at the end of a line with U+0002, pypdf none.
_LINE_HYPHEN = re.compile(r"(?<=\w)(?:[\x02\ufffe](?:\r\n)?|-\r?\n)(?=\w)")
_BROKEN_WORD = re.compile(r"(\w+)\ufffe(\w+)")
_HAN_OR_KANA = "[\u3040-\u30ff\u3400-\u9fff]"
_WRAPPED = re.compile(f"{_HAN_OR_KANA}\n{_HAN_OR_KANA}")
_LAM_ALEF = re.compile("([اأإآ])(ل)")


def read(data: bytes) -> Parsed:
    """A Page for each page, numbered from 1 as a PDF viewer counts them."""
    failure: Exception | None = None
    texts: list[str | None] = []
    title = ""
    try:
        texts, title = _pdfium(data)
    except pypdfium2.PdfiumError as error:
        failure = error
    doubtful = {n for n, text in enumerate(texts) if text is None or _broken(text) > _DOUBTFUL}
    others: list[str | None] = []
    if doubtful or failure:
        with suppress(Exception):  # it raises many kinds on broken files
            others, title = _pypdf(data, range(10**6) if failure else doubtful, title)
    best = [_better(*pair) for pair in zip_longest(texts, others)]
    if all(text is None for text in best):
        reason = " ".join(str(failure or "no page can be loaded").split())[:120]
        raise UnreadableFile(f"is not a readable PDF ({reason})", "repair or re-export it")
    return Parsed(_pages([text or "" for text in best]), title)


def _pages(texts: list[str]) -> tuple[Page, ...]:
    """The pages, gibberish blanked. Raises UnreadableFile if that, or nothing, is what there is."""
    lost = {n for n, text in enumerate(texts) if _broken(text) > _GIBBERISH}
    if 2 * len(lost) > sum(bool(text.strip()) for text in texts):
        raise UnreadableFile(
            "has fonts that do not say which characters they draw",
            "run OCR on it first (ocrmypdf --force-ocr)",
        )
    kept = ["" if n in lost else text for n, text in enumerate(texts)]
    if not any(text.strip() for text in kept):
        raise UnreadableFile("holds no text", "if it is a scan, run OCR on it first (ocrmypdf)")
    compounds = set(re.findall(r"\w+-\w+", "\n".join(kept).lower()))
    whole = (_unwrap(_rejoin(text, compounds)) for text in kept)
    return tuple(Page(text, n) for n, text in enumerate(whole, start=1))


def _better(first: str | None, second: str | None) -> str | None:
    found = [text for text in (first, second) if text is not None]
    return min(found, key=_broken, default=None)


def _broken(text: str) -> float:
    """The share of characters that mean nothing to a reader."""
    seen = [c for c in text if not c.isspace() and c != "\ufffe"]
    broken = sum(c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cn", "Co") for c in seen)
    broken += sum(len(names) for names in _GLYPH_NAMES.findall(text))
    return broken / len(seen) if seen else 0.0


def _rejoin(text: str, compounds: Container[str]) -> str:
    """`text` with the words whole that a line's end broke, which U+FFFE now marks.

    The hyphen stays where it would in the middle of a line: in a compound that the document also
    has whole, and before what is no small letter.
    """

    def whole(match: re.Match[str]) -> str:
        hyphenated = f"{match[1]}-{match[2]}"
        keep = not match[2][0].islower() or hyphenated.lower() in compounds
        return hyphenated if keep else match[1] + match[2]

    return _BROKEN_WORD.sub(whole, text).replace("\ufffe", "-")


def _unwrap(text: str) -> str:
    """`text` with Chinese and Japanese words whole that the end of a full line broke in two."""
    lines = [line.rstrip() for line in text.splitlines()]
    # A column for a letter, two for an ideograph; Latin lines are no measure.
    widths = [sum(1 + (ord(c) > 0x2E7F) for c in line) for line in lines]
    han = [
        width for line, width in zip(lines, widths, strict=True) if re.search(_HAN_OR_KANA, line)
    ]
    full = 0.85 * max(han, default=0)
    joined: list[str] = lines[:1]
    for before, line, width in zip(lines, lines[1:], widths, strict=False):
        if width >= full and _WRAPPED.match(f"{before[-1:]}\n{line[:1]}"):
            joined[-1] += line
        else:
            joined.append(line)
    return "\n".join(joined)


def opened(data: bytes) -> pypdfium2.PdfDocument:
    """The document, its forms ready. Raises UnreadableFile, or PdfiumError for a broken one."""
    try:
        pdf = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "password" in str(error).lower():
            hint = "remove the password and try again"
            raise UnreadableFile("is password-protected", hint) from error
        raise
    form = pdf.get_formtype()
    if form == raw.FORMTYPE_XFA_FULL:
        pdf.close()
        raise UnreadableFile("is an XFA form, which only Acrobat can show", "print it to a PDF")
    if form == raw.FORMTYPE_ACRO_FORM:
        pdf.init_forms()
    return pdf


def page_of(pdf: pypdfium2.PdfDocument, number: int) -> pypdfium2.PdfPage:
    """The page of a document that was `opened`, from 0. Raises PdfiumError."""
    page = pdf[number]
    if pdf.formenv is not None:  # what was filled in is text only once it is part of the page
        page.flatten()
        page.close()
        page = pdf[number]
    return page


def _pdfium(data: bytes) -> tuple[list[str | None], str]:
    """The text of each page, None for a page that cannot be loaded, and the title."""
    with opened(data) as pdf:
        texts: list[str | None] = []
        for n in range(len(pdf)):
            try:
                texts.append(_page_text(pdf, n))
            except pypdfium2.PdfiumError:
                texts.append(None)
        return texts, pdf.get_metadata_value("Title")


def _page_text(pdf: pypdfium2.PdfDocument, number: int) -> str:
    text = page_of(pdf, number).get_textpage()
    plain = _LINE_HYPHEN.sub("\ufffe", text.get_text_bounded())
    return _mend_lam_alef(plain, text)


def _mend_lam_alef(plain: str, text: pypdfium2.PdfTextPage) -> str:
    """PDFium turns the two letters of the Arabic ligature lam-alef round; one box gives it away."""
    if not _LAM_ALEF.search(plain):
        return plain
    letters = "".join(chr(raw.FPDFText_GetUnicode(text, n)) for n in range(text.count_chars()))
    pairs = [match.start() for match in _LAM_ALEF.finditer(letters)]
    turned = iter([text.get_charbox(n) == text.get_charbox(n + 1) for n in pairs])
    return _LAM_ALEF.sub(lambda pair: pair[2] + pair[1] if next(turned, False) else pair[0], plain)


def _pypdf(data: bytes, wanted: Container[int], title: str) -> tuple[list[str | None], str]:
    """The text of the pages `wanted`, None for any other and those that fail; the title."""
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # its warnings are for its authors
    reader = pypdf.PdfReader(io.BytesIO(data))
    if reader.is_encrypted:
        reader.decrypt("")
    texts: list[str | None] = []
    for n, page in enumerate(reader.pages):
        texts.append(None)
        if n in wanted:
            with suppress(Exception):
                texts[n] = _LINE_HYPHEN.sub("\ufffe", page.extract_text())
    with suppress(Exception):
        title = title or (reader.metadata and reader.metadata.title) or ""
    return texts, title
