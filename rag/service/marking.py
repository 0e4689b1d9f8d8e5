"""Where a passage stands in the text of a page, however that is broken and set.

A passage was cleaned, its words were joined across lines; and engines differ in spaces and hyphens.
So only letters, digits and signs are compared, in one form each.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

from ingest.clean import clean

_LEAST = 12  # letters of a part: fewer stand in other sentences too
_LEAST_HAN = 6
_ENOUGH = 0.5  # of a passage, or it is none of the page
# White space, what is not seen, hyphens, and marks that are also drawn as part of their letter.
_LEFT_OUT = ("Z", "C", "Mn", "Pd")
# PDFium turns round the two letters of the ligature lam-alef.
_ALEF = "\u0627"


class Letters:
    """The letters of a page, and at which of its characters each stands."""

    def __init__(self, characters: Sequence[str]) -> None:
        """`characters` are those that a PDF engine numbers, from 0."""
        folded = [_folded(character) for character in characters]
        self._text = "".join(folded)
        self._at = [n for n, letters in enumerate(folded) for _ in letters]

    def find(self, passage: str) -> list[tuple[int, int]]:
        """The [first, last] characters of the passage; of its longest parts if it is not whole.

        Empty if less than half of it is there.
        """
        wanted = "".join(map(_folded, passage))
        if not wanted:
            return []
        start = self._text.find(wanted)
        found = [(start, len(wanted))] if start >= 0 else list(self._parts(wanted))
        if sum(length for _, length in found) < _ENOUGH * len(wanted):
            return []
        return [(self._at[start], self._at[start + length - 1]) for start, length in found]

    def _parts(self, wanted: str) -> Iterator[tuple[int, int]]:
        """Where parts of `wanted` stand and how long they are, the longest from each place on."""
        han = sum("\u3040" <= letter <= "\u9fff" for letter in wanted)
        least = _LEAST_HAN if 2 * han > len(wanted) else _LEAST
        begin, after = 0, 0
        while begin + least <= len(wanted):
            if wanted[begin : begin + least] not in self._text:
                begin += 1
                continue
            longest, too_long = least, len(wanted) - begin + 1
            while longest + 1 < too_long:
                middle = (longest + too_long) // 2
                if wanted[begin : begin + middle] in self._text:
                    longest = middle
                else:
                    too_long = middle
            part = wanted[begin : begin + longest]
            start = self._text.find(part, after)
            start = start if start >= 0 else self._text.find(part)
            yield start, longest
            begin, after = begin + longest, start + longest


@lru_cache(maxsize=10_000)
def _folded(character: str) -> str:
    letters = unicodedata.normalize("NFKD", clean(character)).casefold()
    return "".join(
        letter
        for letter in letters
        if letter != _ALEF and not unicodedata.category(letter).startswith(_LEFT_OUT)
    )
