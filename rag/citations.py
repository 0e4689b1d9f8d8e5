"""Markers [n] in an answer as it streams: those that lead to a passage stay, others go."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rag.sentences import sentences
from rag.terms import coverage, terms
from rag.types import Citation, Hit

# Models write [1], [1, 2], [1-3] and in Chinese 【1】 or ［1］, whatever they are told. A number of
# four digits is a year or a part number, not a marker.
_MARKER = re.compile(r"(\s*)[\[【［]\s*(\d{1,3}(?:\s*[,，、;；–-]\s*\d{1,3})*)\s*[\]】］]\Z")
# White space waits too: it goes with a marker that goes.
_BEGUN = re.compile(r"\s*(?:[\[【［][\d\s,，、;；–-]*)+\Z|\s+\Z")
_UP_TO_CLOSE = re.compile(r"[^\]】］]*[\]】］]?")
_RESOLVED = re.compile(r"(?:\s*\[\d{1,3}\])+")


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
            text = _MARKER.sub(self._resolved, text)
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


def cite(answer: str, passages: Sequence[Hit]) -> tuple[Citation, ...]:
    """The citations of a finished answer, in the order of its markers' first use.

    Each carries the spans of the passage that share most words with the sentences that cite it.
    """
    spans: dict[int, list[tuple[int, int]]] = {}
    for numbers, statements in _claims(answer):
        for number in numbers:
            if 1 <= number <= len(passages):
                text = passages[number - 1].chunk.text
                kept = spans.setdefault(number, [])
                found = next(filter(None, (_support(said, text) for said in statements)), None)
                if found and found not in kept:
                    kept.append(found)
    return tuple(
        Citation.of(number, passages[number - 1], tuple(found)) for number, found in spans.items()
    )


def _claims(answer: str) -> Iterator[tuple[list[int], list[str]]]:
    """The numbers of each run of markers, and what they may vouch for, the likeliest first.

    That is what stands between them and the markers before, and else the whole sentence that they
    stand in, as in "According to [1], it holds 5 l."
    """
    runs = list(_RESOLVED.finditer(answer))
    for position, run in enumerate(runs):
        start = runs[position - 1].end() if position else 0
        end = runs[position + 1].start() if position + 1 < len(runs) else len(answer)
        before = answer[start : run.start()]
        numbers = [int(number) for number in re.findall(r"\d+", run[0])]
        around = _sentence_at(before + answer[run.end() : end], len(before.rstrip()))
        yield numbers, [_sentence_at(before, len(before)), around]


def _sentence_at(text: str, position: int) -> str:
    """The sentence of `text` that ends at `position` or stands around it."""
    found = sentences(text)
    begun = [s for s in found if s.start < position] or found[:1]
    if not begun:
        return text
    # A short last line without a mark passes for a heading, which is no sentence.
    rest = text[begun[-1].end : position]
    return rest if terms(rest) else text[begun[-1].start : begun[-1].end]


def _support(statement: str, text: str) -> tuple[int, int] | None:
    """The sentence of `text` nearest to a statement, if any is near."""
    words = dict.fromkeys(terms(statement), 1.0)
    best: tuple[float, int, int] = (0.0, 0, 0)
    for sentence in sentences(text):
        here = terms(text[sentence.start : sentence.end])
        # How much of the statement is here, and how much of this is said: both, or it is chance.
        score = coverage(words, here) + coverage(dict.fromkeys(here, 1.0), frozenset(words))
        if score > best[0]:
            best = (score, sentence.start, sentence.end)
    return (best[1], best[2]) if best[0] > 0.3 else None
