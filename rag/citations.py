"""Markers [n] in an answer as it streams: those that lead to a passage stay, others go."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Models write [1], [1, 2], [1-3] and in Chinese 【1】 or ［1］, whatever they are told. A number of
# four digits is a year or a part number, not a marker.
MARKER = re.compile(r"(\s*)[\[【［]\s*(\d{1,3}(?:\s*[,，、;；–-]\s*\d{1,3})*)\s*[\]】］]")
_LAST_MARKER = re.compile(rf"{MARKER.pattern}\Z")
# White space waits too: it goes with a marker that goes.
_BEGUN = re.compile(r"\s*(?:[\[【［][\d\s,，、;；–-]*)+\Z|\s+\Z")
_UP_TO_CLOSE = re.compile(r"[^\]】］]*[\]】］]?")


class Markers:
    """Rewrites the markers of one answer to [n]; `cited` and `invalid` grow as it is fed.

    The text and the counts are the same however the answer is split into pieces.
    """

    def __init__(self, passages: int) -> None:
        self._passages = passages
        self._held = ""
        self.cited: list[int] = []
        self.invalid = 0

    def feed(self, piece: str) -> str:
        """The text that can be shown now. What may be part of a marker is held back."""
        # To each closing bracket by itself: a marker that goes may leave a new one, as in
        # [[9]1], and that must not depend on where the pieces end.
        return "".join(map(self._step, _UP_TO_CLOSE.findall(piece)))

    def finish(self) -> str:
        """What was held back at the end of the answer, without white space at its end."""
        text, self._held = self._held, ""
        return text.rstrip()

    def _step(self, part: str) -> str:
        text = self._held + part
        if text.endswith(("]", "】", "］")):
            text = _LAST_MARKER.sub(self._resolved, text)
        begun = _BEGUN.search(text)
        cut = begun.start() if begun else len(text)
        self._held = text[cut:]
        return text[:cut]

    def _resolved(self, marker: re.Match[str]) -> str:
        kept = list(dict.fromkeys(self._valid(marker[2])))
        self.cited += [number for number in kept if number not in self.cited]
        return marker[1] + "".join(f"[{number}]" for number in kept) if kept else ""

    def _valid(self, numbers: str) -> Iterator[int]:
        """The passages that a marker names; each number or range that names another is counted."""
        for part in re.split(r"[,，、;；]", numbers):
            ends = [int(number) for number in re.split("[–-]", part)]
            first, last = min(ends), max(ends)
            self.invalid += first < 1 or last > self._passages
            yield from range(max(first, 1), min(last, self._passages) + 1)
