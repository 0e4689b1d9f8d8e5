"""Facets of stores that do not count them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rag.filters import parse
from rag.types import StoreInfo
from stores.around import StoreAround
from stores.contract import SPEC, chunk, library, random_vectors
from stores.facets import facets
from stores.memory import MemoryBackend, MemoryStore


class Uncounted(StoreAround):
    """The store in memory without what it counts."""

    def describe(self) -> StoreInfo:
        return replace(super().describe(), capabilities=frozenset())


@pytest.fixture
def store() -> MemoryStore:
    return MemoryBackend().create(SPEC)


def test_they_are_those_that_others_count(store: MemoryStore) -> None:
    assert facets(Uncounted(store)) == facets(store)
    store.upsert(library(), random_vectors(30))
    for where in (None, parse({"lang": "en"}), parse({"page": 2}), parse({"nothing": 1})):
        found = facets(Uncounted(store), where)
        assert found.complete
        assert found == facets(store, where) == store.facets(where)
    assert len(found.fields) == 0


def test_of_many_chunks_the_first_are_looked_at(store: MemoryStore) -> None:
    chunks = [chunk(n, document=n // 100, third=n // 10_000) for n in range(20_000)]
    store.upsert(chunks, random_vectors(20_000))
    assert facets(Uncounted(store)).complete
    store.upsert([chunk(0, document=999, last=True)], random_vectors(1))
    found = facets(Uncounted(store), parse({"third": {"$gt": 0}}))
    assert not found.complete
    (third,) = found.fields
    assert third.values == ((1, 100),)
    assert facets(store).complete
