"""The sentences that are quoted are the best ones, although not all of them are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from embedders import WordEmbedder
from hypothesis import given
from hypothesis import strategies as st

from rag.extract import Quote, best_sentences
from rag.sentences import sentences
from rag.terms import coverage, terms
from rag.types import Chunk, Hit

QUESTION = "When does the depot open on Sunday?"
WORDS = "depot opens sunday pump seven closes parking costs when pounds".split()


class Counting(WordEmbedder):
    """Remembers which texts it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def embed_queries(self, texts: Sequence[str]) -> Any:
        self.texts += texts
        return super().embed_queries(texts)


class Signed(WordEmbedder):
    """Its cosines go below zero, as those of models do."""

    def embed_queries(self, texts: Sequence[str]) -> Any:
        vectors = super().embed_queries(texts)
        vectors -= vectors.mean(axis=1, keepdims=True)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def hits(texts: Sequence[str]) -> list[Hit]:
    return [Hit(Chunk(f"c{n}", "d", "v", n, text, "s"), -n) for n, text in enumerate(texts)]


def every_sentence(question: str, passages: Sequence[Hit], most: int) -> list[Quote]:
    """What `best_sentences` gives, of all sentences one by one."""
    found = [
        (number, start, end, f"{heading} {hit.chunk.text[start:end]}")
        for number, hit in enumerate(passages)
        for start, end, heading in sentences(hit.chunk.text)
    ]
    words = [terms(text) for *_, text in found]
    held = {term: sum(term in one for one in words) for term in terms(question)}
    weights = {t: math.log(1 + len(found) / (n + 0.5)) for t, n in held.items() if n}
    vectors = Signed().embed_queries([question, *(text for *_, text in found)])
    alone = [
        float(vectors[row + 1] @ vectors[0]) + coverage(weights, words[row]) - 0.1 * one[0]
        for row, one in enumerate(found)
    ]
    quotes = []
    for row, (number, start, end, _) in enumerate(found):
        beside = [m for m in (row - 1, row + 1) if 0 <= m < len(found) and found[m][0] == number]
        gain = 0.3 * max((alone[m] for m in beside), default=0.0)
        quotes.append(Quote(number, start, end, alone[row] + gain))
    quotes.sort(key=lambda quote: (-quote.score, quote.passage, quote.start))
    return [quote for quote in quotes if quote.score >= quotes[0].score - 0.5][:most]


SENTENCE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(
    lambda words: " ".join(words).capitalize() + "."
)
PASSAGES = st.lists(
    st.lists(SENTENCE, min_size=1, max_size=8).map(" ".join), min_size=1, max_size=6
)


@given(PASSAGES, st.lists(st.sampled_from(WORDS), min_size=1, max_size=5), st.integers(1, 4))
def test_they_are_those_that_all_sentences_compared_would_give(
    texts: list[str], asked: list[str], most: int
) -> None:
    question, passages = " ".join(asked), hits(texts)
    expected = every_sentence(question, passages, most)
    found = best_sentences(question, passages, Signed(), most)
    np.testing.assert_allclose([q.score for q in found], [q.score for q in expected], atol=1e-6)
    for one, other in zip(found, expected, strict=True):  # of equal ones either will do
        assert one == other or math.isclose(one.score, other.score, abs_tol=1e-6)


def test_a_sentence_without_a_word_of_the_question_wins_by_its_meaning() -> None:
    class Understanding(WordEmbedder):
        def embed_queries(self, texts: Sequence[str]) -> Any:
            near = [text == QUESTION or "seven" in text for text in texts]
            return np.array([[1, 0] if one else [0, 1] for one in near], np.float32)

    shared = "The tour of the depot is on Sunday. Open days are rare."
    passages = hits([shared, "From seven until nine."])
    [best] = best_sentences(QUESTION, passages, Understanding(), 1)
    assert best.passage == 1


def test_what_cannot_be_among_the_best_is_not_embedded() -> None:
    answer = "The depot opens at nine on Sunday. "
    others = "".join(f"Pump {n} was serviced by the second crew. " for n in range(40))
    embedder = Counting()
    [best, *_] = best_sentences(QUESTION, hits([answer, others, others]), embedder, 1)
    assert (best.passage, best.start) == (0, 0)
    assert len(embedder.texts) < 20


def test_a_sentence_that_was_embedded_is_not_embedded_for_another_question() -> None:
    embedder, passages = Counting(), hits(["The depot opens at seven. Parking costs four pounds."])
    best_sentences(QUESTION, passages, embedder, 2)
    embedder.texts.clear()
    other = "What does parking cost?"
    best_sentences(other, passages, embedder, 2)
    assert embedder.texts == [other]


def test_the_vector_of_the_question_is_taken_where_it_is_known() -> None:
    passages = hits(["The depot opens at seven. It closes at nine.", "Parking costs four pounds."])
    plain = best_sentences(QUESTION, passages, WordEmbedder(), 2)
    embedder = Counting()
    vector = WordEmbedder().embed_queries([QUESTION])[0]
    assert best_sentences(QUESTION, passages, embedder, 2, vector) == plain
    assert QUESTION not in embedder.texts


def test_passages_without_words_give_nothing() -> None:
    assert best_sentences(QUESTION, hits(["---", "", "* * *"]), WordEmbedder(), 3) == []
