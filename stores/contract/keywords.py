"""Keyword and hybrid search, of stores that have them."""

from __future__ import annotations

from typing import Any

from rag.filters import parse
from rag.protocols import VectorStore
from stores.contract.data import chunk, random_vectors
from stores.contract.setting import ContractSetting, not_applicable

TEXTS = [
    "The pump stops when the float switch rises",
    "Battery cells are balanced over night",
    "Error IVF_FLAT 4711 means that the pump is dry",
    "电池需要在夜间均衡充电",
    "Nothing to see",
]


class KeywordTests(ContractSetting):
    """BM25 over the same chunks, with the same filters."""

    def _keyword(self, store: VectorStore, capability: str) -> Any:
        if capability not in store.describe().capabilities:
            not_applicable(f"the store does not claim {capability}")
        chunks = [chunk(n, document=n, text=text, n=n) for n, text in enumerate(TEXTS)]
        store.upsert(chunks, random_vectors(5))
        return store

    def test_keyword_search_finds_words(self, store: VectorStore) -> None:
        found = self._keyword(store, "keyword_search")
        hits = found.keyword_search(["balanced cells", "4711", "zebra"], 3)
        assert [[hit.chunk.position for hit in row][:1] for row in hits] == [[1], [2], []]
        assert all(hit.score > 0 for row in hits for hit in row)
        pumps = found.keyword_search(["pump float switch"], 5)[0]
        assert [hit.chunk.position for hit in pumps] == [0, 2]
        assert pumps[0].score > pumps[1].score

    def test_keyword_search_follows_writes_and_filters(self, store: VectorStore) -> None:
        found = self._keyword(store, "keyword_search")
        only = found.keyword_search(["pump"], 5, parse({"n": {"$gt": 0}}))[0]
        assert [hit.chunk.position for hit in only] == [2]
        store.delete(document_ids=["d2"])
        store.upsert([chunk(9, document=9, text="another pump")], random_vectors(1))
        assert {h.chunk.position for h in found.keyword_search(["pump"], 5)[0]} == {0, 9}

    def test_hybrid_search_joins_both(self, store: VectorStore) -> None:
        found = self._keyword(store, "hybrid_search")
        vectors = random_vectors(5)
        rows = found.hybrid_search(vectors[4:], ["4711 pump"], 3)
        assert {hit.chunk.position for hit in rows[0]} >= {2, 4}
        only = found.hybrid_search(vectors[4:], ["pump"], 5, parse({"n": {"$lt": 2}}))[0]
        assert {hit.chunk.position for hit in only} == {0, 1}
