from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from embedders import WordEmbedder
from hypothesis import given
from hypothesis import strategies as st

from rag.diversity import without_repeats
from rag.errors import InputError, ModelUnavailable, StoreUnavailable
from rag.filters import parse
from rag.fusion import Fusion
from rag.retrieve import Retriever, SearchOptions
from rag.types import Chunk, CollectionSpec, Hit
from stores.memory import MemoryStore

TEXTS = [
    ("manual", "The pump stops when the float switch rises"),
    ("manual", "It starts again by itself after ten minutes"),
    ("manual", "Code E-22 asks for a balance charge"),
    ("hours", "The depot opens at seven and closes at five"),
    ("hours", "On Sundays the depot stays closed"),
    ("copy", "The depot opens at seven and closes at five"),
    ("中文", "电池需要在夜间均衡充电"),
]


class Counted(MemoryStore):
    """Counts the calls that a server would see."""

    calls = 0

    def search(self, *arguments: Any, **options: Any) -> list[list[Hit]]:
        self.calls += 1
        return super().search(*arguments, **options)


@pytest.fixture
def store() -> Counted:
    embedder = WordEmbedder()
    store = Counted(CollectionSpec("docs", 32, "cosine", embedder.fingerprint))
    chunks, positions = [], dict.fromkeys((name for name, _ in TEXTS), 0)
    for name, text in TEXTS:
        position = positions[name]
        positions[name] += 1
        chunks.append(Chunk(f"{name}:v:{position}", name, "v", position, text, f"/{name}"))
    store.upsert(chunks, embedder.embed_documents([chunk.text for chunk in chunks]))
    return store


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.chunk.id for hit in hits]


def retriever(store: MemoryStore, **changes: Any) -> Retriever:
    return Retriever(store, WordEmbedder(), **changes)


@pytest.mark.parametrize("mode", ["hybrid", "dense", "keyword"])
def test_each_mode_finds_and_names_its_legs(store: Counted, mode: Any) -> None:
    question = "Code E-22 asks for a charge?"
    found = retriever(store).search(question, 2, options=SearchOptions(mode=mode))
    assert found.hits[0].chunk.id == "manual:v:2"
    legs = {leg.name for hit in found.hits for leg in hit.legs}
    assert legs == ({"dense", "keyword"} if mode == "hybrid" else {mode})
    assert (found.similarity is None) == (mode == "keyword")
    assert set(found.timings_ms) >= {"search"}


def test_a_batch_is_one_call_of_each_and_finds_what_single_questions_find(store: Counted) -> None:
    questions = ["depot opens", "E-22", "电池充电", "pump switch"]
    one_by_one = [ids(retriever(store).search(text, 3).hits) for text in questions]
    store.calls = 0
    together = retriever(store).search_many(questions, 3)
    assert [ids(found.hits) for found in together] == one_by_one
    assert store.calls == 2  # the second with feedback
    assert retriever(store).search_many([], 3) == []


@pytest.mark.parametrize("mode", ["hybrid", "dense", "keyword"])
def test_questions_whose_vectors_are_known_are_not_embedded(store: Counted, mode: Any) -> None:
    class Mute(WordEmbedder):
        def embed_queries(self, texts: Sequence[str]) -> Any:
            raise AssertionError(f"embedded {texts}")

    questions, options = ["depot opens", "pump switch"], SearchOptions(mode=mode)
    plain = retriever(store).search_many(questions, 3, options=options)
    vectors = WordEmbedder().embed_queries(questions)
    found = Retriever(store, Mute()).search_many(questions, 3, None, options, vectors=vectors)
    assert [one.hits for one in found] == [one.hits for one in plain]
    assert [one.similarity for one in found] == [one.similarity for one in plain]
    assert all("embed" not in one.timings_ms for one in found)


def test_stages_are_given_with_their_times(store: Counted) -> None:
    found = retriever(store).search("depot", 3)
    assert [stage for stage, _, _ in found.laps] == ["search", "embed", "search", "search"]
    spent = sum(ended - began for _, began, ended in found.laps) / 1e6
    assert sum(found.timings_ms.values()) == pytest.approx(spent, abs=0.05)


def test_a_filter_holds_for_both_legs(store: Counted) -> None:
    where = parse({"document_id": "hours"})
    for mode in ("hybrid", "dense", "keyword"):
        options = SearchOptions(mode=mode)  # type: ignore[arg-type]
        hits = retriever(store).search("the depot and the pump E-22", 9, where, options).hits
        assert {hit.chunk.document_id for hit in hits} == {"hours"}


def test_a_script_that_the_embedder_cannot_read_is_left_to_the_words(store: Counted) -> None:
    class English(WordEmbedder):
        def legibility(self, text: str) -> float:
            return float(text.isascii())

    found = Retriever(store, English()).search("均衡", 3).hits[0]
    keyword, dense = found.leg("keyword"), found.leg("dense")
    assert found.chunk.document_id == "中文"
    assert keyword is not None
    assert keyword.weight > 0.9
    assert dense is None or dense.weight < 0.1


def test_the_same_passage_is_not_given_twice(store: Counted) -> None:
    hits = retriever(store).search("when does the depot open, at seven?", 3).hits
    assert len(hits) == 3
    assert len({hit.chunk.text for hit in hits}) == 3
    every = retriever(store).search("when does the depot open, at seven?", 7).hits
    assert len(every) == 6  # rather fewer than asked for


@given(st.lists(st.text("abc ", min_size=1, max_size=9), max_size=12), st.integers(1, 12))
def test_leaving_repeats_out_keeps_order_and_number(texts: list[str], k: int) -> None:
    hits = [Hit(Chunk(str(n), "d", "v", n, text, "s"), -n) for n, text in enumerate(texts)]
    kept = without_repeats(hits, k)
    said = [hit.chunk.text.split() for hit in kept[:k]]
    assert ids(kept) == sorted(ids(kept), key=int)
    assert all(set(a) != set(b) or not a for n, a in enumerate(said) for b in said[:n])
    different = {frozenset(text.split()) for text in texts if text.strip()}
    assert len(said) >= min(k, len(different))


def test_neighbours_come_after_their_passage_once(store: Counted) -> None:
    options = SearchOptions(mode="keyword", expand=1)
    hits = retriever(store).search("minutes", 1, options=options).hits
    assert ids(hits) == ["manual:v:1", "manual:v:0", "manual:v:2"]
    assert [hit.legs[0].name for hit in hits] == ["keyword", "neighbour", "neighbour"]


def test_neighbours_that_the_filter_leaves_out_do_not_come_along(store: Counted) -> None:
    options = SearchOptions(mode="keyword", expand=1)
    hits = retriever(store).search("minutes", 1, parse({"position": {"$gte": 1}}), options).hits
    assert ids(hits) == ["manual:v:1", "manual:v:2"]


def test_diversity_prefers_what_differs(store: Counted) -> None:
    question = "depot closes five seven sunday pump"
    plain = retriever(store).search(question, 2).hits
    varied = retriever(store).search(question, 2, options=SearchOptions(diversity=0.9)).hits
    assert ids(varied)[0] == ids(plain)[0]
    assert varied[1].chunk.document_id != varied[0].chunk.document_id


def test_nothing_that_is_found_is_nothing_diverse(store: Counted) -> None:
    nowhere = parse({"lang": "tlh"})
    assert retriever(store).search("balance", 2, nowhere, SearchOptions(diversity=0.5)).hits == []


class Reversing:
    """Likes long texts."""

    model = "long"

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        return [float(len(text)) for text in texts]


def test_a_reranker_reads_as_many_as_are_set_although_both_legs_agree() -> None:
    embedder = WordEmbedder()
    many = MemoryStore(CollectionSpec("docs", 32, "cosine", embedder.fingerprint))
    texts = [f"depot {n} opens" for n in range(300)]
    chunks = [Chunk(f"d{n}", f"d{n}", "v", 0, text, "/d") for n, text in enumerate(texts)]
    many.upsert(chunks, embedder.embed_documents(texts))
    found = retriever(many, reranker=Reversing(), candidates=250).search("depot opens", 300).hits
    assert sum(hit.leg("rerank") is not None for hit in found) == 250


class Broken:
    model = "broken"

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        raise ModelUnavailable("the reranker is down", "start it")


def test_a_reranker_decides_among_the_candidates(store: Counted) -> None:
    ranked = retriever(store, reranker=Reversing()).search("depot", 3).hits
    lengths = [len(hit.chunk.text) for hit in ranked]
    assert lengths == sorted(lengths, reverse=True)
    leg = ranked[0].leg("rerank")
    assert leg is not None
    assert leg.rank == 1
    off = SearchOptions(rerank=False)
    without = retriever(store, reranker=Reversing()).search("depot", 3, options=off).hits
    assert all(hit.leg("rerank") is None for hit in without)


def test_parts_that_fail_are_named_and_done_without(store: Counted) -> None:
    plain = retriever(store).search("depot", 3)
    found = retriever(store, reranker=Broken()).search("depot", 3)
    assert found.degraded == ["reranker"]
    assert ids(found.hits) == ids(plain.hits)

    class Wordless(MemoryStore):
        def keyword_search(self, *_: Any) -> Any:
            raise StoreUnavailable("the index is gone", "make it again")

    store.__class__ = Wordless
    found = retriever(store).search("depot", 3)
    assert found.degraded == ["keyword"]
    assert len(found.hits) == 3


def test_similarity_is_a_cosine_in_every_metric() -> None:
    embedder = WordEmbedder()
    cosines = []
    for metric in ("cosine", "ip", "l2"):
        store = MemoryStore(CollectionSpec("docs", 32, metric, embedder.fingerprint))  # type: ignore[arg-type]
        chunk = Chunk("a:v:0", "a", "v", 0, "the depot opens", "/a")
        store.upsert([chunk], embedder.embed_documents([chunk.text]))
        found = Retriever(store, embedder, metric=metric).search("depot opens", 1)  # type: ignore[arg-type]
        cosines.append(found.similarity)
    assert cosines == pytest.approx([cosines[0]] * 3, abs=1e-5)
    assert cosines[0] == pytest.approx(
        float(
            (
                embedder.embed_queries(["depot opens"])
                @ embedder.embed_queries(["the depot opens"]).T
            )[0, 0]
        ),
        abs=1e-5,
    )


def test_feedback_moves_the_question_towards_what_was_found(store: Counted) -> None:
    store.calls = 0
    retriever(store, fusion=Fusion(feedback=0.0)).search("depot", 2)
    assert store.calls == 1


@pytest.mark.parametrize("options", [{"mode": "sparse"}, {"diversity": 2}, {"expand": -1}], ids=str)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        SearchOptions(**options)


@pytest.mark.parametrize("question", ["", " \n", "x" * 8_001, "\ud800"])
def test_what_is_no_question_is_refused(store: Counted, question: str) -> None:
    with pytest.raises(InputError):
        retriever(store).search(question, 3)
    with pytest.raises(InputError):
        retriever(store).search("depot", 0)
