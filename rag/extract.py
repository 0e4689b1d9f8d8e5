"""The sentences of passages that are likeliest to hold the answer to a question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rag.protocols import Embedder
from rag.sentences import sentences
from rag.terms import coverage, terms
from rag.types import Hit

_LATER = 0.1  # what each place further down in the search takes off a sentence's score
_BESIDE = 0.3  # how much of its better neighbour's score it gets: answers stand beside the subject


@dataclass(frozen=True, slots=True)
class Quote:
    """A sentence of `passages[passage]`: its [start, end) range in the chunk's text, its score."""

    passage: int
    start: int
    end: int
    score: float


def rank_sentences(question: str, passages: Sequence[Hit], embedder: Embedder) -> list[Quote]:
    """Every sentence of the passages, the likeliest to hold the answer first.

    The score is the cosine to the question plus the share of its terms that stand in the sentence
    or over it, each term weighted by how rare it is among these sentences (idf); a sentence gains
    from its neighbours, and loses with each place that its passage stands further down.
    """
    found = [
        (number, sentence, f"{sentence.heading} {hit.chunk.text[sentence.start : sentence.end]}")
        for number, hit in enumerate(passages)
        for sentence in sentences(hit.chunk.text)
        if any(map(str.isalnum, hit.chunk.text[sentence.start : sentence.end]))
    ]
    if not found:
        return []
    words = [terms(text) for _, _, text in found]
    weights = {}
    for term in terms(question):
        holding = sum(term in here for here in words)
        if holding:  # a term that is nowhere cannot tell one sentence from another
            weights[term] = math.log(1 + len(found) / (holding + 0.5))
    vectors = embedder.embed_queries([question, *(text[:2000] for _, _, text in found)])
    cosines = (vectors[1:] @ vectors[0]).tolist()
    alone = [
        cosine + coverage(weights, here) - _LATER * number
        for (number, _, _), cosine, here in zip(found, cosines, words, strict=True)
    ]
    quotes = [
        Quote(number, sentence.start, sentence.end, alone[n] + _BESIDE * _beside(n, found, alone))
        for n, (number, sentence, _) in enumerate(found)
    ]
    return sorted(quotes, key=lambda quote: (-quote.score, quote.passage, quote.start))


def _beside(n: int, found: Sequence[tuple[int, object, str]], scores: Sequence[float]) -> float:
    """The better score of the sentences before and after one in its passage."""
    near = (m for m in (n - 1, n + 1) if 0 <= m < len(found) and found[m][0] == found[n][0])
    return max((scores[m] for m in near), default=0.0)
