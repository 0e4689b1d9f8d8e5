"""Deletion by id, document and filter."""

from __future__ import annotations

from rag.filters import parse
from rag.protocols import VectorStore
from stores.contract.data import chunk, library, random_vectors
from stores.contract.setting import ContractSetting


class DeletingTests(ContractSetting):
    """What is deleted is gone from every answer."""

    def test_delete_by_id_document_and_filter(self, filled: VectorStore) -> None:
        chunks = library()
        assert filled.delete(ids=[chunks[0].id, "missing", chunks[1].id]) == 2
        assert filled.delete(document_ids=["d2", "missing"]) == 10
        old = [c for c in chunks[2:] if c.document_id != "d2" and c.metadata.get("year") == 2024]
        assert filled.delete(where=parse({"year": 2024})) == len(old)
        assert filled.count() == 30 - 12 - len(old)
        found = filled.search(random_vectors(1), 30)[0]
        assert len(found) == filled.count()
        assert not {hit.chunk.document_id for hit in found} & {"d2"}

    def test_delete_takes_what_matches_every_argument(self, filled: VectorStore) -> None:
        assert filled.delete(document_ids=["d1"], where=parse({"position": {"$lt": 10}})) == 3
        assert filled.count(parse({"document_id": "d1"})) == 7
        assert filled.delete(ids=[library()[13].id], document_ids=["d2"]) == 0
        assert filled.delete(ids=[library()[13].id], document_ids=["d1"]) == 1
        assert filled.delete(ids=[library()[16].id], where=parse({"position": 1})) == 0

    def test_a_document_whose_id_begins_another_is_not_taken_along(
        self, store: VectorStore
    ) -> None:
        store.upsert([chunk(0, document=1), chunk(0, document=12)], random_vectors(2))
        assert store.delete(document_ids=["d1"]) == 1
        assert [record.id for record in store.documents()] == ["d12"]

    def test_delete_without_argument_deletes_nothing(self, filled: VectorStore) -> None:
        assert filled.delete() == 0
        assert filled.delete(ids=[]) == 0
        assert filled.delete(document_ids=[]) == 0
        assert filled.count() == 30

    def test_what_was_deleted_can_be_written_again(self, filled: VectorStore) -> None:
        for _ in range(3):
            assert filled.delete(document_ids=["d0"]) == 10
            again = [c for c in library() if c.document_id == "d0"]
            filled.upsert(again, random_vectors(30)[::3])
        assert filled.count() == 30
        found = filled.search(random_vectors(30)[3:4], 30)[0]
        assert found[0].chunk == library()[3]
        assert len({hit.chunk.id for hit in found}) == len(found) == 30
