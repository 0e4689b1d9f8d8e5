"""What is worked out of a passage is kept, within bounds, and the same as if it were not."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from embedders import WordEmbedder

from rag import passages
from rag.passages import Passage, read, vectors
from rag.terms import terms
from rag.types import Chunk

TEXT = "# Opening hours\n\nThe depot opens at 7. It closes at 1,900.\n\n电池需要充电。"


class Counting(WordEmbedder):
    """Counts the texts that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given = 0

    def embed_queries(self, texts: Sequence[str]) -> Any:
        self.given += len(texts)
        return super().embed_queries(texts)


def chunk(text: str, title: str = "Depot") -> Chunk:
    return Chunk("c", "d", "v", 0, text, "s", title)


def test_a_passage_is_read_once() -> None:
    found = read(chunk(TEXT))
    assert read(Chunk("other", "d2", "v", 3, TEXT, "s2", "Depot")) is found
    assert read(chunk(TEXT, "Another title")).title != found.title
    assert found.words == terms(TEXT)
    assert found.numbers == {"7", "1900"}
    assert [TEXT[s.start : s.end] for s in found.sentences] == [
        "The depot opens at 7.",
        "It closes at 1,900.",
        "电池需要充电。",
    ]
    for said in found.sentences:
        assert said.own == terms(TEXT[said.start : said.end])
        assert said.words == terms(said.text) == said.own | terms("Opening hours")


def test_a_vector_is_that_of_its_text_and_made_once() -> None:
    embedder = Counting()
    texts = ["one two", "three", "one two", "four"]
    plain = WordEmbedder().embed_queries(texts)
    for _ in range(2):
        np.testing.assert_array_equal(vectors(texts, embedder), plain)
    assert embedder.given == 3
    np.testing.assert_array_equal(vectors(["five", "four"], embedder)[1], plain[3])
    assert embedder.given == 4
    assert vectors([], embedder).shape == (0, 32)


def test_embedders_do_not_get_each_others_vectors() -> None:
    class Reversed(WordEmbedder):
        def embed_queries(self, texts: Sequence[str]) -> Any:
            return super().embed_queries(texts)[:, ::-1]

    one, other = vectors(["depot"], WordEmbedder()), vectors(["depot"], Reversed())
    np.testing.assert_array_equal(one[:, ::-1], other)


def test_what_was_asked_for_last_is_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "_MOST", 100_000)
    embedder = Counting()
    texts = [f"text {n}" for n in range(1_000)]
    for text in texts:
        vectors([texts[0], text], embedder)  # the first is asked for again and again
    embedder.given = 0
    vectors([texts[0], texts[-1]], embedder)
    assert embedder.given == 0
    vectors(texts, embedder)
    assert 500 < embedder.given < 1_000
    huge = "x" * 200_000
    assert vectors([huge], embedder).shape == (1, 32)


def test_a_passage_is_counted_for_about_what_it_takes() -> None:
    import tracemalloc

    texts = [" ".join(f"电池第{n}次充电需要{m}小时。" for m in range(9)) for n in range(200)]
    Passage.of("", texts[0])
    tracemalloc.start()
    try:
        kept = [Passage.of("", text) for text in texts]
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    counted = sum(map(passages._bytes, kept))
    assert 0.6 < counted / taken < 1.6


def test_vectors_go_with_their_embedder() -> None:
    embedder = WordEmbedder()
    vectors(["depot"], embedder)
    gone = weakref.ref(embedder)
    del embedder
    gc.collect()
    assert gone() is None


def test_threads_get_the_vectors_of_their_own_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "_MOST", 20_000)  # so that entries go all the time
    embedder, failed = WordEmbedder(), []

    def ask(seed: int) -> None:
        for n in range(200):
            texts = [f"word{(seed * n + m) % 97}" for m in range(5)]
            same = (vectors(texts, embedder) == WordEmbedder().embed_queries(texts)).all()
            read(chunk(" ".join(texts)))
            if not same:
                failed.append(texts)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
