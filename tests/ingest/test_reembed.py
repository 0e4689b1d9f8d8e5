from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from embedders import WordEmbedder

from ingest.reembed import reembed
from rag.errors import ContextTooLong, StoreError
from rag.protocols import VectorStore
from rag.types import CollectionSpec
from stores.contract import SPEC, chunk, library, random_vectors
from stores.faiss import FaissBackend
from stores.memory import MemoryBackend


@pytest.fixture
def source() -> VectorStore:
    store = MemoryBackend().create(SPEC)
    store.upsert(library(), random_vectors(30))
    return store


def shadow_for(embedder: WordEmbedder) -> VectorStore:
    made_by = embedder.fingerprint
    return MemoryBackend().create(CollectionSpec("shadow", made_by.dim, embedder=made_by))


def test_the_shadow_has_the_same_chunks_with_new_vectors(source: VectorStore) -> None:
    embedder = WordEmbedder()
    shadow = shadow_for(embedder)
    told: list[tuple[int, int]] = []
    assert reembed(source, shadow, embedder, lambda done, of: told.append((done, of))) == 30
    assert shadow.get([c.id for c in library()]) == library()
    found = shadow.search(embedder.embed_queries(["text 17"]), 1)[0][0]
    assert found.chunk.text == "text 17"
    assert told[-1] == (30, 30)


def test_a_second_run_embeds_only_what_is_missing(source: VectorStore) -> None:
    embedder = WordEmbedder()
    shadow = shadow_for(embedder)
    reembed(source, shadow, embedder)
    source.delete(document_ids=["d1"])
    source.upsert([chunk(50, document=5)], random_vectors(1))
    assert reembed(source, shadow, embedder) == 1
    assert sorted(c.id for batch, _ in shadow.scan() for c in batch) == sorted(
        c.id for batch, _ in source.scan() for c in batch
    )


def test_what_is_written_meanwhile_is_made_up(source: VectorStore) -> None:
    class Busy(WordEmbedder):
        def embed_documents(self, texts: Any) -> Any:
            if self.embedded == 0:
                source.delete(document_ids=["d0"])
                source.upsert([chunk(n, document=8) for n in range(3)], random_vectors(3))
            return super().embed_documents(texts)

    embedder = Busy()
    shadow = shadow_for(embedder)
    reembed(source, shadow, embedder)
    assert list(shadow.documents()) == list(source.documents())


def test_a_source_that_never_rests_is_told(source: VectorStore) -> None:
    class Busier(WordEmbedder):
        turn = 100

        def embed_documents(self, texts: Any) -> Any:
            Busier.turn += 1
            source.upsert([chunk(0, document=Busier.turn)], random_vectors(1))
            return super().embed_documents(texts)

    embedder = Busier()
    with pytest.raises(StoreError, match="all the time"):
        reembed(source, shadow_for(embedder), embedder)


def test_a_chunk_too_long_for_the_new_model_is_told(source: VectorStore) -> None:
    embedder = WordEmbedder(max_tokens=2)
    source.upsert([replace(library()[0], text="far too many words")], random_vectors(1))
    with pytest.raises(ContextTooLong):
        reembed(source, shadow_for(embedder), embedder)
    assert source.count() == 30


def test_an_open_reader_of_the_old_vectors_is_told_after_the_swap(tmp_path: Path) -> None:
    backend = FaissBackend(data_dir=tmp_path)
    store = backend.create(SPEC)
    store.upsert(library(), random_vectors(30))
    store.close()
    reader = backend.open(SPEC.name)
    assert len(reader.search(random_vectors(1), 5)[0]) == 5
    backend.create(replace(SPEC, name="shadow", dim=5, embedder=None)).close()
    backend.replace(SPEC.name, by="shadow")
    with pytest.raises(StoreError, match="replaced"):
        reader.search(random_vectors(1), 5)
    reader.close()
