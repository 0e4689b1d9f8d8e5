"""How well a passage's sentences answer a question: for quoting them, and for abstaining."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rag.protocols import Embedder
from rag.sentences import is_cjk, sentences
from rag.terms import coverage, terms
from rag.types import Hit


@dataclass(frozen=True, slots=True)
class Quote:
    """A sentence of `passages[passage]`, with its range in the chunk's text and its score."""

    passage: int
    start: int
    end: int
    cosine: float
    overlap: float
    score: float


def rank_sentences(question: str, passages: Sequence[Hit], embedder: Embedder) -> list[Quote]:
    """Every sentence of the passages, the likeliest to hold the answer first.

    The score is the cosine to the question plus the share of the question's terms that stand in
    the sentence or its heading. In CJK the words decide: small embedders are weak there.
    """
    found = [
        (number, sentence, f"{sentence.heading} {hit.chunk.text[sentence.start : sentence.end]}")
        for number, hit in enumerate(passages)
        for sentence in sentences(hit.chunk.text)
    ]
    if not found:
        return []
    wanted = terms(question)
    vectors = embedder.embed_queries([question, *(text[:2000] for _, _, text in found)])
    cosines = vectors[1:] @ vectors[0]
    weight = 0.2 if is_cjk(question) else 1.0
    quotes = []
    for (number, sentence, text), cosine in zip(found, cosines.tolist(), strict=True):
        overlap = coverage(wanted, terms(text))
        score = weight * cosine + 0.5 * overlap
        quotes.append(Quote(number, sentence.start, sentence.end, cosine, overlap, score))
    return sorted(quotes, key=lambda quote: (-quote.score, quote.passage, quote.start))


def evidence(question: str, passages: Sequence[Hit], embedder: Embedder) -> float:
    """TODO"""
    return 1.0
