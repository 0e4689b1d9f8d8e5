"""The same operations on every store and on the exact one in memory give the same answers."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rag.filters import parse
from rag.protocols import StoreBackend, VectorStore
from stores.contract import FILTERS, SPEC, chunk, random_vectors
from stores.faiss import FaissBackend
from stores.memory import MemoryBackend

TOLERANCE = 1e-4

metadata = st.dictionaries(
    st.sampled_from(["year", "lang", "draft"]),
    st.one_of(st.integers(2022, 2026), st.sampled_from(["en", "zh", "e"]), st.booleans()),
)
scalars = st.one_of(
    st.integers(2022, 2026), st.sampled_from(["en", "zh", "e"]), st.booleans(), st.just(2023.5)
)
fields = st.sampled_from(["year", "lang", "draft", "page", "source", "document_id", "nothing"])
comparisons = st.one_of(
    st.builds(lambda f, v: {f: v}, fields, scalars),
    st.builds(lambda f, o, v: {f: {o: v}}, fields, st.sampled_from(["$eq", "$ne"]), scalars),
    st.builds(
        lambda f, o, v: {f: {o: v}},
        fields,
        st.sampled_from(["$gt", "$gte", "$lt", "$lte"]),
        scalars.filter(lambda value: not isinstance(value, bool)),
    ),
    st.builds(
        lambda f, o, v: {f: {o: v}}, fields, st.sampled_from(["$in", "$nin"]), st.lists(scalars)
    ),
    st.builds(lambda f, v: {f: {"$exists": v}}, fields, st.booleans()),
)
filters = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.builds(
            lambda o, parts: {o: parts},
            st.sampled_from(["$and", "$or"]),
            st.lists(inner, min_size=1, max_size=3),
        ),
        st.builds(lambda part: {"$not": part}, inner),
    ),
    max_leaves=5,
)


def ids_and_scores(store: VectorStore, seed: int, k: int, where: Any) -> list[tuple[str, float]]:
    return [
        (hit.chunk.id, round(hit.score / TOLERANCE) * TOLERANCE)
        for hit in store.search(random_vectors(1, seed), k, parse(where))[0]
    ]


class Congruence(RuleBasedStateMachine):
    """Any sequence of writes, deletions and reopenings leaves a store like the reference."""

    def open_backend(self) -> StoreBackend:
        return FaissBackend(data_dir=Path(self.folder.name))

    @initialize(metric=st.sampled_from(["cosine", "ip", "l2"]))
    def create(self, metric: Any) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.reference = MemoryBackend().create(replace(SPEC, metric=metric))
        self.store = self.open_backend().create(replace(SPEC, metric=metric))

    @rule(
        numbers=st.lists(st.integers(0, 20), min_size=1, max_size=8),
        document=st.integers(0, 3),
        seed=st.integers(0, 5),
        values=metadata,
    )
    def upsert(self, numbers: list[int], document: int, seed: int, values: Any) -> None:
        chunks = [chunk(n, document=document, text=f"seed {seed}", **values) for n in numbers]
        vectors = random_vectors(len(chunks), seed)
        for store in (self.store, self.reference):
            store.upsert(chunks, vectors)

    @rule(document=st.integers(0, 3), where=st.none() | filters)
    def delete(self, document: int, where: Any) -> None:
        went = [
            store.delete(document_ids=[f"d{document}"], where=parse(where))
            for store in (self.store, self.reference)
        ]
        assert went[0] == went[1]

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self.open_backend().open(SPEC.name)

    @rule(seed=st.integers(10, 15), k=st.integers(1, 30), where=st.none() | filters)
    def search(self, seed: int, k: int, where: Any) -> None:
        found, expected = (
            ids_and_scores(store, seed, k, where) for store in (self.store, self.reference)
        )
        assert sorted(score for _, score in found) == pytest.approx(
            sorted(score for _, score in expected), abs=2 * TOLERANCE
        )
        # Scores that are equal but for rounding may change places; nothing else may.
        worst = min((score for _, score in expected), default=0.0) + 2 * TOLERANCE
        assert {i for i, s in found if s > worst} == {i for i, s in expected if s > worst}

    @invariant()
    def same_contents(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.count() == self.reference.count()
        assert list(self.store.documents()) == list(self.reference.documents())

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()


TestCongruence = Congruence.TestCase
TestCongruence.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@settings(max_examples=150, deadline=None)
@given(where=filters)
def test_any_filter_finds_the_same(where: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stores = [
            backend.create(SPEC)
            for backend in (MemoryBackend(), FaissBackend(data_dir=Path(folder)))
        ]
        chunks = [
            chunk(n, document=n % 3, **values)
            for n, values in enumerate(
                [
                    {},
                    {"year": 2024},
                    {"lang": "en", "year": 2023},
                    {"draft": True},
                    {"year": 2023.5},
                    {"lang": "zh", "draft": False},
                    {"year": True},
                    {"lang": "e", "year": "en"},
                ]
            )
        ]
        for store in stores:
            store.upsert(chunks, random_vectors(len(chunks)))
        expected, found = ({i for i, _ in ids_and_scores(s, 1, 20, where)} for s in stores)
        counts = {store.count(parse(where)) for store in stores}
        stores[1].close()
        assert found == expected
        assert counts == {len(expected)}


def test_the_filter_examples_are_not_vacuous() -> None:
    """Some filters match all, some nothing, most a part: otherwise they would prove little."""
    from rag.filters import matches
    from stores.contract import library

    shares = []
    for where in FILTERS:
        condition = parse(where)
        assert condition is not None
        shares.append(sum(matches(condition, c.fields()) for c in library()) / 30)
    assert sum(0 < share < 1 for share in shares) >= 20
