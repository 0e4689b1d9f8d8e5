"""What goes in comes back: upsert, get, documents, scan, count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rag.filters import parse
from rag.protocols import VectorStore
from rag.types import CollectionSpec
from stores.contract.data import DIM, FINGERPRINT, chunk, library, random_vectors
from stores.contract.setting import ContractSetting


class WritingTests(ContractSetting):
    """Write and read back."""

    def test_empty_collection(self, store: VectorStore) -> None:
        assert store.count() == 0
        assert store.search(random_vectors(2), 5) == [[], []]
        assert list(store.documents()) == []
        assert list(store.scan()) == []
        assert store.get(["x"]) == []
        assert store.delete(ids=["x"]) == 0

    def test_describe_tells_what_it_was_created_with(
        self, shelf: VectorStore, store: VectorStore, spec: CollectionSpec
    ) -> None:
        info = store.describe()
        assert (info.collection, info.dim, info.metric) == (spec.name, DIM, "cosine")
        assert info.embedder == FINGERPRINT
        assert info.count == 0
        assert shelf.describe().count == 30

    def test_get_returns_chunks_whole_and_in_the_order_asked(self, shelf: VectorStore) -> None:
        wanted = [library()[i] for i in (7, 0, 29)]
        ids = [wanted[0].id, "missing", wanted[1].id, wanted[2].id]
        assert shelf.get(ids) == wanted
        assert shelf.get([]) == []

    def test_vectors_come_back_in_the_order_asked(self, shelf: VectorStore) -> None:
        wanted = [7, 0, 29]
        ids = [library()[n].id for n in wanted]
        found = shelf.vectors([ids[0], "missing", *ids[1:]])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, random_vectors(30)[wanted], atol=1e-6)
        assert shelf.vectors([]).shape == (0, DIM)
        assert shelf.vectors(["missing"]).shape == (0, DIM)

    def test_upsert_replaces_the_same_id(self, filled: VectorStore) -> None:
        old = library()[3]
        new = replace(old, text="new", metadata={"only": "this"})
        vector = random_vectors(1, seed=9)
        filled.upsert([new], vector)
        assert filled.get([old.id]) == [new]
        assert filled.count() == 30
        best = filled.search(vector, 1)[0][0]
        assert best.chunk == new
        assert best.score == pytest.approx(1.0, abs=1e-4)
        assert filled.count(parse({"lang": {"$exists": True}, "document_id": "d0"})) < 10

    def test_upsert_can_move_a_chunk_to_another_document(self, store: VectorStore) -> None:
        old = chunk(0)
        new = replace(old, document_id="another")
        store.upsert([old], random_vectors(1))
        store.upsert([new], random_vectors(1))
        assert store.get([old.id]) == [new]
        assert store.count() == 1
        assert store.delete(document_ids=["another"]) == 1

    def test_of_duplicates_in_one_call_the_last_stays(self, store: VectorStore) -> None:
        first, last = chunk(0, text="first"), chunk(0, text="last")
        vectors = random_vectors(2)
        store.upsert([first, last], vectors)
        assert store.count() == 1
        assert store.get([first.id]) == [last]
        assert store.search(vectors[1:], 1)[0][0].score == pytest.approx(1.0, abs=1e-4)

    def test_upsert_of_nothing_is_nothing(self, store: VectorStore) -> None:
        store.upsert([], np.zeros((0, DIM), np.float32))
        assert store.count() == 0

    def test_documents_tells_versions_and_whether_they_are_whole(self, store: VectorStore) -> None:
        whole = [chunk(n, document=1) for n in range(3)]
        partial = [replace(chunk(n, document=0), id=f"p{n}", version="v2") for n in (1, 2)]
        store.upsert([*whole, *partial], random_vectors(5))
        records = list(store.documents())
        assert [(r.id, r.version, r.chunks, r.complete) for r in records] == [
            ("d0", "v2", 2, False),
            ("d1", "v1", 3, True),
        ]
        assert records[1].source == "/docs/1.txt"
        assert records[1].title == "Document 1"
        assert records[1].ingested_at == whole[0].ingested_at

    def test_scan_gives_everything_back_as_it_was_given(self, shelf: VectorStore) -> None:
        vectors = random_vectors(30)
        seen: dict[str, Any] = {}
        for chunks, rows in shelf.scan(batch=7):
            assert 0 < len(chunks) == len(rows) <= 7
            assert rows.dtype == np.float32
            seen.update({c.id: (c, row) for c, row in zip(chunks, rows, strict=True)})
        assert len(seen) == 30
        for expected, row in zip(library(), vectors, strict=True):
            assert seen[expected.id][0] == expected
            np.testing.assert_array_equal(seen[expected.id][1], row)

    def test_any_text_survives(self, store: VectorStore) -> None:
        texts = [
            "汉字 かな 한국어 😀 é \u202e",
            "x" * 100_000,
            "😀" * 100_000,
            "\t\n'\";--",
            "\x00nul",
        ]
        chunks = [
            replace(
                chunk(n, text=text),
                id=f"字-{n}-é #?%/",
                document_id="文档 #1",
                title="题 'quoted'",
                metadata={"naïve 键 $x.y": "值\x00" * 9},
            )
            for n, text in enumerate(texts)
        ]
        store.upsert(chunks, random_vectors(5))
        ids = [c.id for c in chunks]
        assert store.get(ids) == chunks
        found = store.search(random_vectors(1), 5, parse({"document_id": "文档 #1"}))[0]
        assert {hit.chunk.id: hit.chunk for hit in found} == dict(zip(ids, chunks, strict=True))
        assert [c for batch, _ in store.scan(2) for c in batch if c.id == ids[1]] == [chunks[1]]
        assert store.delete(document_ids=["文档 #1"]) == 5
        assert store.get(ids) == []

    def test_many_chunks_at_once(self, store: VectorStore) -> None:
        """More than any engine's own limit for a request (Chroma's is 5,461)."""
        chunks = [chunk(n, document=n % 7) for n in range(6_000)]
        store.upsert(chunks, random_vectors(6_000))
        assert store.count() == 6_000
        assert sum(record.chunks for record in store.documents()) == 6_000
        assert sum(len(batch) for batch, _ in store.scan()) == 6_000
        ids = [c.id for c in chunks]
        assert store.get(ids) == chunks
        assert store.delete(document_ids=["d0"]) == 858
        assert store.delete(ids=ids) == 6_000 - 858
