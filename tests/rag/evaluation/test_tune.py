"""What is learnt follows which leg is right; what is not better is not taken."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from embedders import WordEmbedder

from rag.errors import InputError, StoreUnavailable
from rag.evaluation.cloze import cloze
from rag.evaluation.dataset import Dataset
from rag.evaluation.evaluate import evaluate
from rag.evaluation.tune import LEAST, tune
from rag.fusion import Fusion
from rag.retrieve import Retriever
from rag.types import Chunk, CollectionSpec
from stores.contract import random_vectors
from stores.memory import MemoryBackend, MemoryStore

WORDS = [a + b + c for a in "kmpt" for b in "aeiou" for c in "lnrs"]


class Blind(WordEmbedder):
    """Sees nothing of a text: its vectors are noise."""

    def embed_queries(self, texts: Any) -> Any:
        return np.concatenate([random_vectors(1, crc32(text.encode()), 32) for text in texts])


def collection(embedder: WordEmbedder, documents: int = 40) -> tuple[MemoryStore, Dataset]:
    """Documents of three chunks of five sentences, about a few words each that others share.

    The questions are three such words and three others.
    """
    chance = random.Random(3)
    store = MemoryBackend().create(CollectionSpec("docs", 32, "cosine", embedder.fingerprint))
    queries, qrels = {}, {}
    for number in range(documents):
        about = chance.sample(WORDS, 24)
        texts = [
            " ".join(" ".join(chance.choices(words, k=8)).capitalize() + "." for _ in range(5))
            for words in (about[:12], about[6:18], about[12:])
        ]
        name = f"d{number}"
        chunks = [Chunk(f"{name}:v:{n}", name, "v", n, t, f"/{name}") for n, t in enumerate(texts)]
        store.upsert(chunks, embedder.embed_documents([chunk.text for chunk in chunks]))
        asked = [*chance.sample(about, 3), *chance.sample(WORDS, 3)]
        queries[f"q{number}"] = " ".join(asked)
        qrels[f"q{number}"] = {name: 1 + number % 2}
    return store, Dataset("made", queries, qrels)


def mean_of(retriever: Retriever, dataset: Dataset) -> float:
    def search(questions: Any, k: int) -> Any:
        return [found.hits[:k] for found in retriever.search_many(questions, 50)]

    figures = evaluate(search, dataset, [10]).metrics
    return (figures["ndcg@10"] + figures["recall@10"]) / 2


def test_the_leg_that_finds_nothing_loses_its_weight() -> None:
    blind = Blind()
    store, dataset = collection(blind)
    retriever = Retriever(store, blind, fusion=Fusion(dense=1))
    learnt = tune(retriever, dataset)
    assert learnt.changed
    assert learnt.fusion.dense <= 0.3
    assert learnt.after > learnt.before
    assert learnt.questions == 40
    assert mean_of(retriever.joined_by(learnt.fusion), dataset) > mean_of(retriever, dataset)


@pytest.mark.parametrize(
    "fusion",
    [Fusion(), Fusion(0.8, 0, 0.25), Fusion(1, 0.5, 0), Fusion(0, 1, 1), Fusion(0.33, 0.1, 0.6)],
)
def test_what_a_combination_is_said_to_be_worth_is_what_a_search_with_it_is_worth(
    fusion: Fusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures of ir-measures for what the retriever really finds."""
    embedder = WordEmbedder()
    store, dataset = collection(embedder)
    retriever = Retriever(store, embedder, fusion=fusion)
    assert tune(retriever, dataset).before == pytest.approx(mean_of(retriever, dataset))
    # The same combination as one of those that are tried, from another that is present.
    monkeypatch.setattr("rag.evaluation.tune._GRID", [fusion])
    monkeypatch.setattr("rag.evaluation.tune._MARGIN", -1e9)
    monkeypatch.setattr("rag.evaluation.tune._choose", lambda _figures, _near: 1)
    learnt = tune(retriever.joined_by(Fusion(0.1, 0, 0)), dataset)
    assert (learnt.fusion, learnt.changed) == (fusion, True)
    assert learnt.after == pytest.approx(mean_of(retriever, dataset))


def test_sentences_that_no_leg_can_find_teach_nothing() -> None:
    """Every chunk is random, so what is left of it has nothing to do with the sentence."""
    blind, chance = Blind(), random.Random(5)
    store = MemoryBackend().create(CollectionSpec("docs", 32, "cosine", blind.fingerprint))
    texts = [
        " ".join(" ".join(chance.choices(WORDS, k=8)).capitalize() + "." for _ in range(5))
        for _ in range(150)
    ]
    chunks = [Chunk(f"d{n}:v:0", f"d{n}", "v", 0, text, "/d") for n, text in enumerate(texts)]
    store.upsert(chunks, blind.embed_documents(texts))
    learnt = tune(Retriever(store, blind))
    assert (learnt.fusion, learnt.changed) == (Fusion(), False)


def test_a_collection_keeps_what_is_as_good_as_anything() -> None:
    embedder = WordEmbedder()
    store, dataset = collection(embedder, documents=30)
    # Every document is relevant: no order is better than another.
    every = {d: 1 for judged in dataset.qrels.values() for d in judged}
    learnt = tune(
        Retriever(store, embedder, fusion=Fusion(dense=0.3, candidates=77)),
        Dataset("all", dataset.queries, dict.fromkeys(dataset.queries, every)),
    )
    assert (learnt.fusion, learnt.changed) == (Fusion(dense=0.3, candidates=77), False)


def test_too_few_questions_are_refused() -> None:
    embedder = WordEmbedder()
    store, dataset = collection(embedder, documents=LEAST - 1)
    with pytest.raises(InputError, match=f"{LEAST - 1} questions"):
        tune(Retriever(store, embedder), dataset)


def test_questions_are_made_out_of_sentences_that_are_then_missing() -> None:
    embedder = WordEmbedder()
    store, _ = collection(embedder)
    before = list(store.scan())
    part, dataset, _ = cloze(store, embedder)
    assert len(dataset.queries) == 120
    held = {chunk.id: chunk for chunks, _ in part.scan() for chunk in chunks}
    for name, question in dataset.queries.items():
        [whole] = store.get([name])
        assert question in whole.text
        assert question not in held[name].text
        assert dataset.qrels[name] == {whole.document_id: 1}
    assert part.count() == store.count()
    assert cloze(store, embedder)[1] == dataset
    for (chunks, vectors), (chunks_after, vectors_after) in zip(before, store.scan(), strict=True):
        assert chunks == chunks_after
        assert np.array_equal(vectors, vectors_after)


def test_a_sentence_that_stands_elsewhere_too_is_no_question() -> None:
    embedder = WordEmbedder()
    store, _ = collection(embedder)
    copies = [
        replace(chunk, id=f"copy-{chunk.id}", document_id=f"copy-{chunk.document_id}")
        for chunks, _ in store.scan()
        for chunk in chunks
    ]
    store.upsert(copies, embedder.embed_documents([chunk.text for chunk in copies]))
    assert not cloze(store, embedder)[1].queries


def test_one_long_document_is_judged_by_its_chunks() -> None:
    embedder = WordEmbedder()
    store, _ = collection(embedder)
    chunks = [replace(c, document_id="book") for rows, _ in store.scan() for c in rows]
    store.upsert(chunks, embedder.embed_documents([chunk.text for chunk in chunks]))
    _, dataset, name = cloze(store, embedder)
    assert all(dataset.qrels[query] == {query: 1} for query in dataset.queries)
    assert name(chunks[0]) == chunks[0].id
    assert tune(Retriever(store, embedder)).before < 1


def test_nothing_is_learnt_while_one_leg_fails() -> None:
    class Broken(MemoryStore):
        def keyword_search(self, *_: Any, **__: Any) -> Any:
            raise StoreUnavailable("the index of words is away", "come back")

    embedder = WordEmbedder()
    whole, dataset = collection(embedder)
    broken = Broken(whole.spec)
    for chunks, vectors in whole.scan():
        broken.upsert(chunks, vectors)
    with pytest.raises(StoreUnavailable):
        tune(Retriever(broken, embedder), dataset)


def test_a_collection_without_judgements_learns_from_its_own_sentences() -> None:
    blind = Blind()
    store, _ = collection(blind)
    learnt = tune(Retriever(store, blind, fusion=Fusion(dense=1)))
    assert learnt.changed
    assert learnt.fusion.dense <= 0.3


def test_documents_without_sentences_to_spare_are_told() -> None:
    embedder = WordEmbedder()
    store = MemoryBackend().create(CollectionSpec("docs", 32, "cosine", embedder.fingerprint))
    store.upsert(
        [Chunk("a", "a", "v", 0, "Price list", "/a")], embedder.embed_documents(["Price list"])
    )
    with pytest.raises(InputError, match="--queries and --qrels"):
        tune(Retriever(store, embedder))
