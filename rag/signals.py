"""What speaks for and against that the hits for a question hold its answer.

Of a question that the embedder reads:

- similarity: the cosine of the question and the passage nearest to it
- beyond_title: the same, of what is left of both without the direction of the passage's title (a
  partial correlation): how near they are beyond their common subject
- rest: of the question's words that the title lacks, the share that the passage has, each weighted
  by how rare it is among the hits
- together: the share of the question's words in two sentences in a row, the best of all hits
- lead: how far the best by words (BM25) stands above the mean of the others, 0 to 1

Of a question that it does not read, or whose words alone were searched for, the last three; and of
every question, whether it has a name with digits, such as E-45, that no hit has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from rag.passages import read, vectors
from rag.terms import coverage, identifiers, terms
from rag.types import Hit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rag.retrieve import Retrieved, Retriever

_COLUMNS = 11
_LOOKED_AT = 5  # hits, the usual number: among more, chance finds more words


def signals(
    questions: Sequence[str], found: Sequence[Retrieved], retriever: Retriever
) -> NDArray[np.float64]:
    """A row for each question, a column for each field of `rag.evidence.Calibration`.

    Zeros where nothing was found. The embedder is called once, for titles that it has not read.
    """
    seen = [_Seen(*one, retriever) for one in zip(questions, found, strict=True)]
    _read_titles([one for one in seen if one.read and one.hits], retriever)
    return np.array([one.row() if one.hits else [0.0] * _COLUMNS for one in seen])


class _Seen:
    """A question and its first hits, without their neighbours, and the words of all."""

    def __init__(self, question: str, found: Retrieved, retriever: Retriever) -> None:
        self.question = question
        self.hits = [hit for hit in found.hits if not hit.leg("neighbour")][:_LOOKED_AT]
        self.similarity = found.similarity or 0.0
        self.vector = found.vector
        self.read = 0.0
        if found.similarity is not None:  # as in `rag.fusion`, a third unread is unread
            self.read = max(0.0, 1 - 3 * (1 - retriever.embedder.legibility(question)))
        # Where there is no title, what it is on the average of ClapNQ.
        self.beyond_title = 0.8 * self.similarity - 0.1
        self._asked = terms(question)
        self._passages = [read(hit.chunk) for hit in self.hits]

    @property
    def nearest(self) -> int:
        """Which of the hits is nearest in meaning; the first where that was not searched for."""
        legs = [hit.leg("dense") for hit in self.hits]
        return min(range(len(legs)), key=lambda n: leg.rank if (leg := legs[n]) else math.inf)

    def row(self) -> list[float]:
        held = [passage.title | passage.words for passage in self._passages]
        rare = {
            term: math.log(1 + len(held) / (sum(term in words for words in held) + 0.5))
            for term in self._asked
        }
        nearest, first = (self._rest(n, rare) for n in (self.nearest, 0))
        words = [self._together(), self._lead(), 1.0]
        meaning = [self.similarity, self.beyond_title, nearest, *words]
        unknown = not identifiers(self.question) <= frozenset().union(*held)
        return [
            *(self.read * value for value in meaning),
            *((1 - self.read) * value for value in (first, *words)),
            float(unknown),
        ]

    def _rest(self, n: int, weights: dict[str, float]) -> float:
        passage = self._passages[n]
        rest = {term: w for term, w in weights.items() if term not in passage.title}
        return coverage(rest, passage.words) if rest else 1.0

    def _together(self) -> float:
        wanted = dict.fromkeys(self._asked, 1.0)
        best = 0.0
        for passage in self._passages:
            words = [said.own for said in passage.sentences]
            rows = [one | other for one, other in pairwise(words)] or words
            best = max([best, *(coverage(wanted, row) for row in rows)])
        return best

    def _lead(self) -> float:
        legs = [hit.leg("keyword") for hit in self.hits]
        best, *others = sorted((leg.score if leg else 0.0 for leg in legs), reverse=True)
        return 1 - sum(others) / len(others) / best if others and best > 0 else 0.0


def _read_titles(seen: Sequence[_Seen], retriever: Retriever) -> None:
    """Set `beyond_title` of each whose nearest passage has a title."""
    nearest: list[tuple[_Seen, Hit]] = [(one, one.hits[one.nearest]) for one in seen]
    titled = [(one, hit.chunk) for one, hit in nearest if hit.chunk.title.strip()]
    titles = vectors([chunk.title for _, chunk in titled], retriever.embedder)
    for (one, chunk), title in zip(titled, titles, strict=True):
        question = one.vector
        if question is None:
            continue
        for passage in retriever.store.vectors([chunk.id]):  # none, if it was deleted meanwhile
            one.beyond_title = _partial(
                float(question @ passage), float(question @ title), float(title @ passage)
            )


def _partial(both: float, first: float, second: float) -> float:
    """The cosine of two unit vectors without a third, from those of the two and of each with it."""
    left = max((1 - first**2) * (1 - second**2), 1e-4)
    return max(-1.0, min(1.0, (both - first * second) / math.sqrt(left)))
