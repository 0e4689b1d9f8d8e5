"""Where the sentences of a passage begin and end, in English, Chinese, Japanese and Korean."""

from __future__ import annotations

import re
from typing import NamedTuple


class Sentence(NamedTuple):
    """A sentence, list item or table row: the [start, end) range of its characters in a text.

    `heading` is what stands over it, a heading or a table's first row; it helps to understand the
    sentence and is not part of it.
    """

    start: int
    end: int
    heading: str


# Han, kana, bopomofo, hangul and their full-width forms.
CJK = (
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
)
_IS_CJK = re.compile(f"[{CJK}]")
_ABBREVIATIONS = "".join(
    rf"(?<!\b{word})" for word in "e\\.g i\\.e vs No Dr Mr Ms Mrs Fig approx Ltd Inc [A-Z]".split()
)
_END = re.compile(
    r"[。！？｡…]+[”’」』）】]*"
    rf"|{_ABBREVIATIONS}[.!?]+[\"'”’)\]]*(?=\s+[^a-z\s]|\s*$)",
)
_ITEM = re.compile(
    r"\s*(?:[-*+•–·▪◦]|\d{1,3}[.)、]|[(（]?[a-z\d一二三四五六七八九十]{1,2}[)）、])\s*"
)
_NUMBERED = re.compile(r"\W*\d{1,3}[.)]\W*")
_HEADING = re.compile(r"\s*#{1,6}\s+(.*)")


def sentences(text: str) -> list[Sentence]:
    """The sentences of `text` in order, without headings and without white space around them."""
    found: list[Sentence] = []
    heading = table = ""
    for start, end in _blocks(text):
        block = text[start:end]
        title = _HEADING.fullmatch(block)
        if title:
            heading, table = title[1].strip(), ""
            continue
        if " | " in block:
            if set(block) <= set("|-: \n"):  # the line under a Markdown table's first row
                continue
            if table:
                found.append(_trimmed(text, start, end, f"{heading} {table}".strip()))
            table = table or block.strip()
            continue
        table = ""
        at = start
        for mark in _END.finditer(text, start, end):
            if _NUMBERED.fullmatch(text, at, mark.end()):
                continue  # "2." begins an item
            found.append(_trimmed(text, at, mark.end(), heading))
            at = mark.end()
        if text[at:end].strip():
            found.append(_trimmed(text, at, end, heading))
        if not _END.search(block) and is_title(block):
            found.pop()
            heading = block.strip()
    return [sentence for sentence in found if sentence.end > sentence.start]


def is_cjk(text: str) -> bool:
    """Whether a text is Chinese, Japanese or Korean: a fifth of its letters or more."""
    letters = sum(character.isalnum() for character in text)
    return letters > 0 and len(_IS_CJK.findall(text)) >= letters / 5


def language(text: str) -> str:
    """The language of a text as a prompt names it, where its script tells; otherwise nothing.

    Latin script does not tell, and a model sees for itself.
    """
    if not is_cjk(text):
        return ""
    if re.search(r"[\u3040-\u30ff]", text):
        return "Japanese"
    return "Korean" if re.search(r"[\uac00-\ud7af]", text) else "Chinese"


def is_title(line: str) -> bool:
    """Whether a line without a sentence mark looks like a heading: a few words, no item."""
    words = line.split()
    short = len(words) <= 8 and len(line.strip()) <= (20 if is_cjk(line) else 60)
    return short and not _ITEM.match(line) and not re.search(r"[:：|,;，；]", line)


def _blocks(text: str) -> list[tuple[int, int]]:
    """Ranges that hold whole sentences: lines, joined where a line was only wrapped."""
    blocks: list[tuple[int, int]] = []
    for line in re.finditer(r"[^\n]+", text):
        start, end = line.span()
        if not line[0].strip():
            continue
        if blocks and _continues(
            text[blocks[-1][0] : blocks[-1][1]], text[blocks[-1][1] : start], line[0]
        ):
            blocks[-1] = (blocks[-1][0], end)
        else:
            blocks.append((start, end))
    return blocks


def _continues(before: str, gap: str, line: str) -> bool:
    """Whether `line` goes on with the sentence that `before` left open at its right margin."""
    last = before.rsplit("\n", 1)[-1]
    if gap.count("\n") > 1 or _HEADING.match(line) or _HEADING.match(last):
        return False
    if _ITEM.match(line) or " | " in line or " | " in last:
        return False
    if re.search(r"[。！？｡.!?:：]['\"”’」』）)\]]*\s*$", last):
        return False
    return len(last.rstrip()) >= (18 if is_cjk(last) else 45) or line.lstrip()[:1].islower()


def _trimmed(text: str, start: int, end: int, heading: str) -> Sentence:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return Sentence(start, end, heading)
