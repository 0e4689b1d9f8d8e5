"""A page of a PDF as a picture, passages marked. It runs in a process with limits."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageDraw

from rag.errors import NotFound, UnreadableFile
from rag.service.marking import Letters
from rag.service.originals import Original

if TYPE_CHECKING:
    import pypdfium2

_WIDTH, _HEIGHT = 1200, 3600  # pixels, at most
_MARK = (255, 208, 0)
_STRENGTH = 100  # of 255: black on it stays black enough to be read, white too
_PAD = 2
_BOX = tuple[int, int, int, int]


class Picture(NamedTuple):
    """A PNG, and how many of the passages are marked in it, at least in part."""

    png: bytes
    found: int


def draw(original: Original, number: int, passages: Sequence[str]) -> Picture:
    """The page of that number, from 1. Raises NotFound, UnreadableFile."""
    import pypdfium2

    from ingest.readers.pdf import opened, page_of

    data = original.read()
    try:
        with opened(data) as pdf:
            if number > len(pdf):
                raise NotFound(f"the document has no page {number}", f"its last is {len(pdf)}")
            return _draw(page_of(pdf, number - 1), passages)
    except UnreadableFile as error:
        raise UnreadableFile(f"the PDF {error.message}", error.hint) from error
    except pypdfium2.PdfiumError as error:
        reason = " ".join(str(error).split())[:120]
        raise UnreadableFile(f"the page cannot be drawn ({reason})", "repair the PDF") from error


def _draw(page: pypdfium2.PdfPage, passages: Sequence[str]) -> Picture:
    width, height = page.get_size()
    if not (width > 0 and height > 0):
        raise UnreadableFile("has a page without a size", "re-export it")
    bitmap = page.render(scale=min(_WIDTH / width, _HEIGHT / height), rev_byteorder=True)
    image = bitmap.to_pil().convert("RGB")
    marked = [list(boxes) for boxes in _marked(page, bitmap, passages)]
    mask = Image.new("L", image.size)  # one, so that what is marked twice is no darker
    pen = ImageDraw.Draw(mask)
    for box in (box for boxes in marked for box in boxes):
        pen.rectangle(box, fill=_STRENGTH)
    image.paste(_MARK, mask=mask)
    png = io.BytesIO()
    image.save(png, "PNG", compress_level=1)  # three times as fast as 6, and little larger
    return Picture(png.getvalue(), sum(map(bool, marked)))


def _marked(
    page: pypdfium2.PdfPage, bitmap: pypdfium2.PdfBitmap, passages: Sequence[str]
) -> Iterator[Iterator[_BOX]]:
    """For each passage the boxes around its lines, in pixels."""
    from pypdfium2 import raw

    if not passages:
        return
    text = page.get_textpage()
    letters = Letters([chr(raw.FPDFText_GetUnicode(text, n)) for n in range(text.count_chars())])
    to_bitmap = bitmap.get_posconv(page).to_bitmap

    def boxes(passage: str) -> Iterator[_BOX]:
        for first, last in letters.find(passage):
            for n in range(text.count_rects(first, last - first + 1)):
                left, bottom, right, top = text.get_rect(n)
                (x, y), (u, v) = to_bitmap(left, top), to_bitmap(right, bottom)
                (x, u), (y, v) = sorted((x, u)), sorted((y, v))  # the page may be turned
                yield x - _PAD, y - _PAD, u + _PAD, v + _PAD

    for passage in passages:
        yield boxes(passage)
