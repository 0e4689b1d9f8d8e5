"""Documents, a page at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rag.filters import parse
from rag.protocols import VectorStore
from rag.types import Chunk, DocumentKey, DocumentRecord
from stores.contract.data import SPEC, random_vectors
from stores.contract.setting import ContractSetting
from stores.memory import MemoryBackend

SOURCES = (
    "/docs/Report 2024.pdf",
    "/docs/report 2023.pdf",
    "/docs/100%.txt",
    "/docs/100_.txt",
    "/docs/1000.txt",
    "/docs/a\\b.txt",
    "/docs/a/b.txt",
    '/docs/it\'s "quoted".txt',
    "/文档/年度报告.pdf",
    "/文档/年度预算.pdf",
    "/docs/STRASSE.md",
    "/docs/straße.md",
    "/docs/ÉTÉ.md",
    "/docs/été.md",
    "/docs/😀.md",
)
TEXTS = [
    *("", "report", "REPORT", "%", "_", "0%", "0_", "\\", "a\\b", '"quoted"', "it's", "\0"),
    *(
        "年度",
        "报告",
        "strasse",
        "Straße",
        "été",
        "ÉTÉ",
        "😀",
        "title 3",
        "TITLE",
        "标题",
        "nothing",
    ),
]


def papers() -> list[Chunk]:
    """Chunks of documents with awkward sources, in no order.

    Some sources have several versions, or several documents; some versions are not whole.
    """
    found = []
    for number, source in enumerate(SOURCES):
        for version in ("v1", "v2")[: 1 + number % 2]:
            for document in (f"d{number}", f"e{number}")[: 1 + number % 3 // 2]:
                for position in range(number % 4 == 1, 3):
                    found.append(
                        Chunk(
                            id=f"{document}:{version}:{position}",
                            document_id=document,
                            version=version,
                            position=position,
                            text=f"text {position}",
                            source=source,
                            title=f"标题 Title {number}",
                            ingested_at=1_700_000_000 + number,
                            metadata={"even": number % 2 == 0, "number": number},
                        )
                    )
    return found[::2] + found[1::2]


def paged(store: VectorStore, limit: int, *given: Any, **more: Any) -> Iterator[DocumentRecord]:
    """All records, by as many calls as it takes."""
    after: DocumentKey | None = None
    while page := list(store.documents(*given, **more, after=after, limit=limit)):
        assert len(page) <= limit
        assert after is None or page[0].key > after
        yield from page
        after = page[-1].key


class ListingTests(ContractSetting):
    """Pages joined are the whole: in order, nothing twice, nothing left out."""

    @pytest.fixture
    def archive(self, store: VectorStore) -> VectorStore:
        """A collection with `papers()` in it."""
        store.upsert(papers(), random_vectors(len(papers())))
        return store

    def test_pages_joined_are_the_whole(self, archive: VectorStore) -> None:
        whole = list(archive.documents())
        assert [r.key for r in whole] == sorted(
            {(c.source, c.version, c.document_id) for c in papers()}
        )
        assert {r.complete for r in whole} == {True, False}
        for limit in (1, 2, 7, 100):
            assert list(paged(archive, limit)) == whole

    @pytest.mark.parametrize(
        "where", [{"even": True}, {"position": {"$gte": 1}}, {"number": 99}], ids=str
    )
    def test_pages_of_a_filter(self, archive: VectorStore, where: dict[str, Any]) -> None:
        whole = list(archive.documents(parse(where)))
        assert bool(whole) == (where != {"number": 99})
        assert list(paged(archive, 3, parse(where))) == whole

    def test_what_contains_a_text_whatever_the_case(self, archive: VectorStore) -> None:
        reference = MemoryBackend().create(SPEC)
        reference.upsert(papers(), random_vectors(len(papers())))
        whole = list(reference.documents())
        for where in (None, parse({"even": False})):
            for text in TEXTS:
                folded = text.casefold()
                assert list(archive.documents(where, containing=text)) == [
                    record
                    for record in reference.documents(where)
                    if folded in record.source.casefold() or folded in record.title.casefold()
                ]
        sources = {text: {r.source for r in archive.documents(containing=text)} for text in TEXTS}
        assert sources["%"] == {"/docs/100%.txt"}
        assert sources["0_"] == {"/docs/100_.txt"}
        assert sources["a\\b"] == {"/docs/a\\b.txt"}
        assert sources["年度"] == {"/文档/年度报告.pdf", "/文档/年度预算.pdf"}
        assert sources["REPORT"] == {"/docs/Report 2024.pdf", "/docs/report 2023.pdf"}
        assert sources["nothing"] == set()
        assert sources["TITLE"] == sources[""] == {record.source for record in whole}

    def test_pages_of_what_contains_a_text(self, archive: VectorStore) -> None:
        for where in (None, parse({"position": {"$lte": 1}})):
            whole = list(archive.documents(where, containing="DOCS/"))
            assert len(whole) > 10
            assert list(paged(archive, 4, where, containing="docs/")) == whole

    def test_a_page_begins_behind_a_key_that_need_not_be_there(self, archive: VectorStore) -> None:
        whole = list(archive.documents())
        last = whole[9]
        archive.delete(document_ids=[last.id])
        left = [record for record in whole if record.id != last.id]
        assert list(archive.documents(after=last.key)) == [r for r in left if r.key > last.key]
        assert list(archive.documents(after=DocumentKey("", "", ""), limit=2)) == left[:2]
        assert list(archive.documents(after=left[-1].key)) == []
        assert list(archive.documents(after=DocumentKey("\U0010ffff", "", ""))) == []
        assert list(archive.documents(after=DocumentKey('a"b\\\n\0%', "'", ")"))) == []
