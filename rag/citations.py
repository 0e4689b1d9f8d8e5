"""Markers [n] in an answer as it streams: those that lead to a passage stay, others go."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rag.sentences import sentences
from rag.terms import coverage, terms
from rag.types import Citation, Hit

# Models write [1], [1, 2], [1-3] and in Chinese 【1】, whatever they are told.
_MARKER = re.compile(r"[\[【]\s*(\d{1,3}(?:\s*[,，、;–-]\s*\d{1,3})*)\s*[\]】]")
_OPEN = re.compile(r"\s*[\[【][\d\s,，、;–-]{0,24}$|\s+$")


class Markers:
    """Rewrites the markers of one answer to [n]; `cited` and `invalid` grow as it is fed."""

    def __init__(self, passages: int) -> None:
        self._passages = passages
        self._held = ""
        self.cited: list[int] = []
        self.invalid = 0

    def feed(self, piece: str) -> str:
        """The text that can be shown now. What may be half a marker is held back."""
        text = self._held + piece
        opened = _OPEN.search(text)
        cut = opened.start() if opened else len(text)
        self._held = text[cut:]
        return self._resolve(text[:cut])

    def finish(self) -> str:
        """What was held back at the end of the answer."""
        text, self._held = self._held, ""
        return self._resolve(text).rstrip()

    def _resolve(self, text: str) -> str:
        return re.sub(r"\s*" + _MARKER.pattern, self._replacement, text)

    def _replacement(self, match: re.Match[str]) -> str:
        kept = []
        for part in re.split(r"\s*[,，、;]\s*", match[1]):
            ends = [int(number) for number in re.split(r"\s*[–-]\s*", part)]
            for number in range(ends[0], min(ends[-1], ends[0] + 20) + 1):
                if 1 <= number <= self._passages:
                    kept.append(number)
                else:
                    self.invalid += 1
        self.cited += [number for number in kept if number not in self.cited]
        space = match[0][: len(match[0]) - len(match[0].lstrip())]
        return space + "".join(f"[{number}]" for number in kept) if kept else ""


def cite(answer: str, passages: Sequence[Hit]) -> tuple[Citation, ...]:
    """The citations of a finished answer, in the order of its markers' first use.

    Each carries the spans of the passage that share most words with the sentences that cite it.
    """
    spans: dict[int, list[tuple[int, int]]] = {}
    # A marker belongs to what stands before it, so the marks go with the sentence they follow.
    for statement in re.finditer(r"(.*?)((?:\s*\[\d+\])+|\Z)", answer, re.DOTALL):
        for number in map(int, re.findall(r"\[(\d+)\]", statement[2])):
            if 1 <= number <= len(passages):
                found = _support(statement[1], passages[number - 1].chunk.text)
                kept = spans.setdefault(number, [])
                kept += [span for span in found if span not in kept]
    return tuple(
        Citation.of(number, passages[number - 1], tuple(found)) for number, found in spans.items()
    )


def _support(statement: str, text: str) -> list[tuple[int, int]]:
    """The sentence of `text` nearest to what stands before the marker, if any is near."""
    said = [statement[s.start : s.end] for s in sentences(statement)] or [statement]
    words = dict.fromkeys(terms(said[-1]), 1.0)
    best: tuple[float, int, int] = (0.0, 0, 0)
    for sentence in sentences(text):
        here = terms(text[sentence.start : sentence.end])
        # How much of the statement is here, and how much of this is said: both, or it is chance.
        score = coverage(words, here) + coverage(dict.fromkeys(here, 1.0), frozenset(words))
        if score > best[0]:
            best = (score, sentence.start, sentence.end)
    return [(best[1], best[2])] if best[0] > 0.3 else []
