"""The one form that all text takes, so that a search for a word finds it however it was set."""

from __future__ import annotations

import re
import unicodedata

# Soft hyphens, zero-width spaces, direction marks and control characters only hide words from a
# search. The joiners U+200C and U+200D stay: they change words in Persian and in Indic scripts.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u2064\u2066-\u2069\ufeff\ud800-\udfff]"
)
_LINE_END = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_SPACE = re.compile("[\xa0\u2000-\u200a\u202f\u205f]")

# Shapes of a letter that PDF fonts map to characters of their own: Latin ligatures, Hebrew and
# Arabic presentation forms, Kangxi radicals.
_SHAPES = {
    code: unicodedata.normalize("NFKC", chr(code))
    for block in ((0x2F00, 0x2FD6), (0xFB00, 0xFBC2), (0xFBD3, 0xFC5E), (0xFE80, 0xFEFD))
    for code in range(*block)
}
# Radicals without a compatibility mapping; Unicode's EquivalentUnifiedIdeograph.txt.
_RADICALS = dict(
    zip(
        map(ord, "⺟⻁⻄⻅⻆⻉⻋⻓⻔⻘⻙⻚⻛⻜⻝⻢⻣⻤⻥⻦⻨⻩⻬⻮⻰⻳"),
        "母虎西见角贝车长门青韦页风飞食马骨鬼鱼鸟麦黄齐齿龙龟",
        strict=True,
    )
)
# Bullets of the fonts Symbol and Wingdings, in the private use area.
_BULLETS = dict.fromkeys((0xF06C, 0xF06E, 0xF0A7, 0xF0B7, 0xF0D8, 0xF0E0, 0xF0FC), "•")
_TABLE = {**_SHAPES, **_RADICALS, **_BULLETS}


def clean(text: str) -> str:
    """`text` in NFC, without invisible characters and shapes, with lines trimmed at their ends.

    Lines end in a line feed, at most one blank line stands between two, none at either end.
    """
    text = _SPACE.sub(" ", _LINE_END.sub("\n", text))
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text).translate(_TABLE))
    lines = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", lines).strip()
