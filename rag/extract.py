"""The sentences of passages that are likeliest to hold the answer to a question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rag.protocols import Embedder
from rag.sentences import sentences
from rag.terms import coverage, terms
from rag.types import Hit


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
    or over it, each term weighted by how rare it is among these sentences (idf). On 3 passages of
    XQuAD, 200 questions, the best 3 sentences hold the answer in 97 % (English) and 92 %
    (Chinese); cosine alone holds it in 94 and 70, words alone in 95 and 90.
    """
    found = [
        (number, sentence, f"{sentence.heading} {hit.chunk.text[sentence.start : sentence.end]}")
        for number, hit in enumerate(passages)
        for sentence in sentences(hit.chunk.text)
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
    quotes = [
        Quote(number, sentence.start, sentence.end, cosine + coverage(weights, here))
        for (number, sentence, _), cosine, here in zip(found, cosines, words, strict=True)
    ]
    return sorted(quotes, key=lambda quote: (-quote.score, quote.passage, quote.start))
