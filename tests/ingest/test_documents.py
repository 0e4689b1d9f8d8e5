"""Documents that come from elsewhere than files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from embedders import WordEmbedder

from ingest.pipeline import Options, Progress, Report, ingest_documents
from rag.errors import StoreUnavailable
from rag.types import Chunk, CollectionSpec, Document, Page
from stores.memory import MemoryStore

SPEC = CollectionSpec("documents", 32, embedder=WordEmbedder().fingerprint)


def document(name: str, words: int, word: str = "word") -> Document:
    text = " ".join(f"{word}{n}." for n in range(words))
    return Document(name, f"set/{name}", "", name.title(), (Page(text),), {"year": 2024})


DOCUMENTS = [document("a b/ü", 40), document("b", 5), document("c", 25)]


class Dying(MemoryStore):
    """Fails at the n-th write, like a process that is killed."""

    left = 1000

    def upsert(self, chunks: Sequence[Chunk], vectors: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise StoreUnavailable("gone", "come back")
        super().upsert(chunks, vectors)


def run(store: MemoryStore, documents: Sequence[Document], tokens: int = 12) -> Report:
    options = Options(tokens=tokens, overlap=0)
    return ingest_documents(iter(documents), store=store, embedder=WordEmbedder(), options=options)


def ids(store: MemoryStore) -> set[str]:
    return {chunk.id for chunks, _ in store.scan() for chunk in chunks}


def test_documents_are_stored_whole_with_their_ids() -> None:
    store = MemoryStore(SPEC)
    report = run(store, DOCUMENTS)
    assert (report.new, report.embedded) == (3, store.count())
    records = {record.id: record for record in store.documents()}
    assert set(records) == {"a b/ü", "b", "c"}
    assert all(record.complete for record in records.values())
    assert records["b"].source == "set/b"
    assert (
        store.get([next(i for i in ids(store) if i.startswith("b:"))])[0].metadata["year"] == 2024
    )


def test_only_what_is_new_or_changed_is_embedded() -> None:
    store = MemoryStore(SPEC)
    run(store, DOCUMENTS)
    again = run(store, DOCUMENTS)
    assert (again.unchanged, again.embedded, again.new) == (3, 0, 0)
    changed = run(store, [document("b", 6), *DOCUMENTS[2:], document("d", 3)])
    assert (changed.changed, changed.unchanged, changed.new) == (1, 1, 1)
    assert len(list(store.documents())) == 4  # the old version of b is gone, a stays
    assert run(store, DOCUMENTS[2:], tokens=8).changed == 1
    titled = replace(DOCUMENTS[2], title="Other")
    assert run(store, [titled], tokens=8).changed == 1


@pytest.mark.parametrize("after", range(4))
def test_a_run_that_dies_is_made_whole_by_the_next(
    after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.pipeline._WINDOW", 3)
    store = Dying(SPEC)
    store.left = after
    with pytest.raises(StoreUnavailable):
        run(store, DOCUMENTS)
    store.left = 1000
    run(store, DOCUMENTS)
    undisturbed = MemoryStore(SPEC)
    run(undisturbed, DOCUMENTS)
    assert ids(store) == ids(undisturbed)


def test_a_document_without_text_is_skipped_with_a_reason() -> None:
    store = MemoryStore(SPEC)
    report = run(store, [replace(DOCUMENTS[0], id="empty", pages=(Page(" "),)), DOCUMENTS[1]])
    assert (report.new, [skipped.reason for skipped in report.skipped]) == (1, ["holds no text"])
    assert not report.failed


def test_progress_counts_documents() -> None:
    seen: list[Progress] = []
    ingest_documents(
        DOCUMENTS,
        store=MemoryStore(SPEC),
        embedder=WordEmbedder(),
        options=Options(tokens=12, overlap=0),
        progress=seen.append,
    )
    assert seen[-1].files == 3
