"""PDFs that are made here, and what of a picture of their page is marked."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import reportlab
from PIL import Image, ImageChops
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

WIDTH, HEIGHT = 600, 800  # points; two pixels each
SIZE = 12
Line = tuple[float, float, str]
Box = tuple[int, int, int, int]


def page(*lines: Line, font: str = "Vera") -> bytes:
    """A page with lines of text; (x, y) is where one begins, in points from the upper left."""
    pdfmetrics.registerFont(TTFont("Vera", Path(reportlab.__file__).parent / "fonts/Vera.ttf"))
    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    buffer = io.BytesIO()
    canvas = Canvas(buffer, (WIDTH, HEIGHT), invariant=True)
    canvas.setFont(font, SIZE)
    for x, y, text in lines:
        canvas.drawString(x, HEIGHT - y, text)
    canvas.save()
    return buffer.getvalue()


def raw(content: bytes, *, media_box: Sequence[int] = (0, 0, WIDTH, HEIGHT)) -> bytes:
    """A page of these drawing operators, with a font /F and a state /G that lets light through."""
    packed = zlib.compress(content, 9)
    box = b" ".join(b"%d" % side for side in media_box)
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[%s]/Contents 4 0 R/Resources<<"
        b"/Font<</F<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>"
        b"/ExtGState<</G<</ca .5/BM/Luminosity>>>>>>>>" % box,
        b"<</Length %d/Filter/FlateDecode>>stream\n%s\nendstream" % (len(packed), packed),
    ]
    whole = b"%PDF-1.7\n"
    for number, data in enumerate(objects, start=1):
        whole += b"%d 0 obj\n%s\nendobj\n" % (number, data)
    return whole + b"trailer<</Root 1 0 R>>\n%%EOF\n"


def marked(plain: bytes, picture: bytes) -> tuple[Image.Image, Box | None]:
    """Where two pictures of a page differ, white on black, and the box around all of it."""
    before, after = (Image.open(io.BytesIO(png)).convert("RGB") for png in (plain, picture))
    difference = ImageChops.difference(before, after).convert("L").point(lambda v: v and 255)
    return difference, difference.getbbox()


def share(difference: Image.Image, x: float, y: float, text_width: float) -> float:
    """How much is marked of the place of a line, 0 to 1: its small letters, in points."""
    place = (round(2 * x), round(2 * (y - SIZE / 2)), round(2 * (x + text_width)), round(2 * y))
    histogram = difference.crop(place).histogram()
    return histogram[255] / sum(histogram)
