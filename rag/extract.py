"""The sentences of passages that are likeliest to hold the answer to a question."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from rag.passages import read, vectors
from rag.protocols import Embedder
from rag.terms import coverage, terms
from rag.types import Hit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Figures: TypeAlias = NDArray[np.float64]

_LATER = 0.1  # what each place further down in the search takes off a sentence's score
_BESIDE = 0.3  # how much of its better neighbour's score it gets: answers stand beside the subject
_WORSE = 0.5  # how far below the best sentence's score one is still worth quoting
_LIKELY = 0.6  # the cosine of a sentence that holds the answer


@dataclass(frozen=True, slots=True)
class Quote:
    """A sentence of `passages[passage]`: its [start, end) range in the chunk's text, its score."""

    passage: int
    start: int
    end: int
    score: float


def best_sentences(
    question: str,
    passages: Sequence[Hit],
    embedder: Embedder,
    most: int,
    vector: NDArray[np.float32] | None = None,
) -> list[Quote]:
    """The `most` sentences of the passages that are likeliest to hold the answer, best first.

    Fewer if the others are much worse. `vector` is that of the question, where it is known.

    The score is the cosine to the question plus the share of its terms that stand in the sentence
    or over it, each term weighted by how rare it is among these sentences (idf); a sentence gains
    from its neighbours, and loses with each place that its passage stands further down.
    """
    found = [
        (number, said)
        for number, hit in enumerate(passages)
        for said in read(hit.chunk).sentences
        if any(map(str.isalnum, hit.chunk.text[said.start : said.end]))
    ]
    if not found:
        return []
    weights = {}
    for term in terms(question):
        holding = sum(term in said.words for _, said in found)
        if holding:  # a term that is nowhere cannot tell one sentence from another
            weights[term] = math.log(1 + len(found) / (holding + 0.5))
    places = np.array([number for number, _ in found])
    words = np.array([coverage(weights, said.words) for _, said in found]) - _LATER * places
    asked = embedder.embed_queries([question])[0] if vector is None else vector

    def cosines(rows: Sequence[int]) -> Figures:
        texts = [found[row][1].text[:2000] for row in rows]
        return np.asarray(vectors(texts, embedder) @ asked, np.float64)

    scores = _best(words, places, cosines, most)
    order = sorted(scores, key=lambda row: (-scores[row], row))[:most]
    return [
        Quote(number, said.start, said.end, scores[row])
        for row in order
        for number, said in [found[row]]
        if scores[row] >= scores[order[0]] - _WORSE
    ]


def _best(
    words: Figures,
    places: NDArray[np.int64],
    cosines: Callable[[list[int]], Figures],
    most: int,
) -> dict[int, float]:
    """The scores of the `most` best rows, and of others that might have been.

    A cosine is at most 1, and what would not be quoted with that is not embedded: four sentences
    in ten, on SciFact and XQuAD. How high the bar is, is guessed at first. It holds once what
    reaches it has its true score; until then that is embedded, and the bar sinks.
    """
    guess, high = words + _LIKELY, words + 1
    while True:
        score, top = (one + _BESIDE * _beside(one, places) for one in (guess, high))
        bar = max(np.sort(score)[-most:][0], score.max() - _WORSE)
        hopeful = np.flatnonzero(top >= bar)
        unsure = hopeful[score[hopeful] < top[hopeful]]
        if not len(unsure):
            return {int(row): float(top[row]) for row in hopeful}
        unknown = guess < high
        wanted = unsure[unknown[unsure]]
        if not len(wanted):  # only what they gain from their neighbours is
            beside = np.concatenate([unsure - 1, unsure + 1])
            wanted = np.intersect1d(beside, np.flatnonzero(unknown))
        guess[wanted] = high[wanted] = words[wanted] + cosines(wanted.tolist())


def _beside(scores: Figures, places: NDArray[np.int64]) -> Figures:
    """For each row the better score of the rows before and after it in its passage."""
    best = np.full(len(scores), -np.inf)
    same = places[1:] == places[:-1]
    np.maximum(best[:-1], scores[1:], out=best[:-1], where=same)
    np.maximum(best[1:], scores[:-1], out=best[1:], where=same)
    return np.where(np.isinf(best), 0.0, best)
