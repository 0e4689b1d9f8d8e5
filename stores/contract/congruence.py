"""Congruence: the same operations on the store and on the exact one in memory, same answers.

The idea is qdrant-client's and Chroma's: the reference is the specification.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from rag.errors import UnsupportedFilter
from rag.filters import parse
from rag.protocols import StoreBackend, VectorStore
from stores.contract.data import SPEC, chunk, random_vectors
from stores.contract.filtering import has_text_range
from stores.contract.setting import ContractSetting
from stores.memory import MemoryBackend

TOLERANCE = 1e-4

_scalars = st.one_of(
    st.integers(2022, 2026), st.sampled_from(["en", "zh", "e"]), st.booleans(), st.just(2023.5)
)
_metadata = st.dictionaries(st.sampled_from(["year", "lang", "draft"]), _scalars)
_fields = st.sampled_from(["year", "lang", "draft", "page", "source", "document_id", "nothing"])
_comparisons = st.one_of(
    st.builds(lambda f, v: {f: v}, _fields, _scalars),
    st.builds(lambda f, o, v: {f: {o: v}}, _fields, st.sampled_from(["$eq", "$ne"]), _scalars),
    st.builds(
        lambda f, o, v: {f: {o: v}},
        _fields,
        st.sampled_from(["$gt", "$gte", "$lt", "$lte"]),
        _scalars.filter(lambda value: not isinstance(value, bool)),
    ),
    st.builds(
        lambda f, o, v: {f: {o: v}}, _fields, st.sampled_from(["$in", "$nin"]), st.lists(_scalars)
    ),
    st.builds(lambda f, v: {f: {"$exists": v}}, _fields, st.booleans()),
)
filters = st.recursive(
    _comparisons,
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
"""Any filter of the language, over the fields that `_metadata` and the chunks have."""


class CongruenceTests(ContractSetting):
    """Like the reference after any sequence of operations."""

    def test_any_sequence_of_operations_leaves_it_like_the_reference(
        self, backend: StoreBackend
    ) -> None:
        class Machine(_Congruence):
            def __init__(machine) -> None:
                super().__init__(backend, text_ranges=self.text_ranges, exact=self.exact)

        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=self.examples,
                stateful_step_count=12,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )

    def test_any_filter_finds_what_the_reference_finds(
        self, backend: StoreBackend, store: VectorStore
    ) -> None:
        reference = MemoryBackend().create(SPEC)
        values: list[dict[str, Any]] = [
            {},
            {"year": 2024},
            {"lang": "en", "year": 2023},
            {"draft": True},
            {"year": 2023.5},
            {"lang": "zh", "draft": False},
            {"year": True},
            {"lang": "e", "year": "en"},
        ]
        chunks = [chunk(n, document=n % 3, **v) for n, v in enumerate(values)]
        for each in (store, reference):
            each.upsert(chunks, random_vectors(len(chunks)))

        @settings(max_examples=10 * self.examples, deadline=None, derandomize=True, database=None)
        @given(where=filters)
        def check(where: dict[str, Any]) -> None:
            condition = parse(where)
            assert condition is not None
            if not self.text_ranges and has_text_range(condition):
                with pytest.raises(UnsupportedFilter):
                    store.count(condition)
                return
            query = random_vectors(1, 1)
            expected, found = (
                {hit.chunk.id for hit in each.search(query, 20, condition)[0]}
                for each in (reference, store)
            )
            assert found == expected
            assert store.count(condition) == len(expected)

        check()


class _Congruence(RuleBasedStateMachine):
    def __init__(self, backend: StoreBackend, *, text_ranges: bool, exact: bool) -> None:
        super().__init__()
        self.backend = backend
        self.text_ranges = text_ranges
        self.exact = exact
        self.store: VectorStore | None = None

    @initialize(metric=st.sampled_from(["cosine", "ip", "l2"]), scale=st.sampled_from([1.0, 1e-4]))
    def create(self, metric: Any, scale: float) -> None:
        self.scale = np.float32(scale)
        # What a score is measured by: those of ip and l2 grow with the square of the vectors.
        self.tolerance = TOLERANCE * (1.0 if metric == "cosine" else scale**2)
        self.name = f"machine-{uuid4().hex[:12]}"
        self.reference = MemoryBackend().create(replace(SPEC, metric=metric))
        self.store = self.backend.create(replace(SPEC, name=self.name, metric=metric))

    @rule(
        numbers=st.lists(st.integers(0, 20), min_size=1, max_size=8),
        document=st.integers(0, 3),
        seed=st.integers(0, 5),
        values=_metadata,
    )
    def upsert(self, numbers: list[int], document: int, seed: int, values: Any) -> None:
        chunks = [chunk(n, document=document, text=f"seed {seed}", **values) for n in numbers]
        vectors = random_vectors(len(chunks), seed) * self.scale
        for store in self._both():
            store.upsert(chunks, vectors)

    @rule(document=st.integers(0, 3), where=st.none() | filters)
    def delete(self, document: int, where: Any) -> None:
        condition = self._known(where)
        went = [
            store.delete(document_ids=[f"d{document}"], where=condition) for store in self._both()
        ]
        assert went[0] == went[1]

    @rule()
    def reopen(self) -> None:
        if self.store is not None:
            self.store.close()
            self.store = self.backend.open(self.name)

    @rule(seed=st.integers(10, 15), k=st.integers(1, 30), where=st.none() | filters)
    def search(self, seed: int, k: int, where: Any) -> None:
        condition = self._known(where)
        query = random_vectors(1, seed) * self.scale
        found, expected = (
            {hit.chunk.id: hit.score for hit in store.search(query, k, condition)[0]}
            for store in self._both()
        )
        assert len(found) == len(expected)
        for chunk_id in found.keys() & expected.keys():
            assert found[chunk_id] == pytest.approx(
                expected[chunk_id], rel=TOLERANCE, abs=self.tolerance
            )
        if self.exact:
            assert sorted(found.values()) == pytest.approx(
                sorted(expected.values()), rel=TOLERANCE, abs=self.tolerance
            )
            # Scores that are equal but for rounding may change places; nothing else may.
            worst = min(expected.values(), default=0.0)
            worst += 2 * max(self.tolerance, TOLERANCE * abs(worst))
            assert {i for i, s in found.items() if s > worst} == {
                i for i, s in expected.items() if s > worst
            }
        else:
            assert len(found.keys() & expected.keys()) >= 0.95 * len(expected) - 1

    @invariant()
    def same_contents(self) -> None:
        if self.store is not None:
            assert self.store.count() == self.reference.count()
            assert list(self.store.documents()) == list(self.reference.documents())

    def teardown(self) -> None:
        if self.store is not None:
            self.store.close()
            self.backend.drop(self.name)

    def _both(self) -> tuple[VectorStore, VectorStore]:
        assert self.store is not None
        return self.store, self.reference

    def _known(self, where: Any) -> Any:
        condition = parse(where)
        if condition and not self.text_ranges and has_text_range(condition):
            return None
        return condition
