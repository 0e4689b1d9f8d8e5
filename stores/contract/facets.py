"""Facets: the metadata that is really there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rag.filters import matches, parse
from rag.protocols import FacetCounts, VectorStore
from rag.types import Facet, Facets
from stores.contract.data import chunk, library, random_vectors
from stores.contract.setting import ContractSetting, not_applicable


class FacetTests(ContractSetting):
    """Values with the number of documents that have them, of stores that count them."""

    def test_facets_count_documents(self, store: VectorStore) -> None:
        counting = _counting(store)
        assert counting.facets() == Facets((), complete=True)
        chunks = [
            *(chunk(n, document=1, team="ops", year=2024, draft=False) for n in range(3)),
            *(chunk(n, document=2, team="运维", year=2023.5, 键="a\0b") for n in range(2)),
            chunk(2, document=2, team="ops"),
            chunk(0, document=3, team=7, draft=True, year=2024),
        ]
        newer = [replace(c, id=f"n{c.id}", version="v2") for c in chunks[:3]]
        store.upsert([*chunks, *newer], random_vectors(10))
        assert counting.facets() == Facets(
            (
                Facet("draft", "truth", ((False, 1), (True, 1))),
                Facet("team", "number", ((7, 1),), least=7, greatest=7),
                Facet("team", "text", (("ops", 2), ("运维", 1))),
                Facet("year", "number", ((2024, 2), (2023.5, 1)), least=2023.5, greatest=2024),
                Facet("键", "text", (("a\0b", 1),)),
            ),
            complete=True,
        )
        truths = counting.facets().fields[0].values
        assert all(isinstance(value, bool) for value, _ in truths)

    def test_facets_follow_writes(self, filled: VectorStore) -> None:
        counting = _counting(filled)
        filled.delete(where=parse({"lang": {"$exists": True}}))
        assert "lang" not in {field.name for field in counting.facets().fields}
        filled.upsert([chunk(1, document=9, lang="fr")], random_vectors(1))
        (lang,) = (field for field in counting.facets().fields if field.name == "lang")
        assert lang.values == (("fr", 1),)

    @pytest.mark.parametrize(
        "where",
        [{"lang": "en"}, {"year": {"$ne": 2024}}, {"position": {"$lt": 9}}, {"nothing": 1}],
        ids=str,
    )
    def test_facets_of_a_filter(self, shelf: VectorStore, where: dict[str, Any]) -> None:
        condition = parse(where)
        assert condition is not None
        documents: dict[tuple[str, str], set[str]] = {}
        for each in library():
            if matches(condition, each.fields()):
                for name, value in each.metadata.items():
                    documents.setdefault((name, repr(value)), set()).add(each.document_id)
        found = _counting(shelf).facets(condition)
        assert found.complete
        assert {
            (field.name, repr(value)): count
            for field in found.fields
            for value, count in field.values
        } == {key: len(ids) for key, ids in documents.items()}

    def test_the_most_frequent_values_are_given(self, store: VectorStore) -> None:
        counting = _counting(store)
        chunks = [chunk(0, document=n, n=n, often=n % 2, wide="x") for n in range(120)]
        store.upsert(chunks, random_vectors(120))
        n, often, wide = counting.facets().fields
        assert (n.more, often.more, wide.more) == (True, False, False)
        assert n.values == tuple((value, 1) for value in range(50))
        assert (n.least, n.greatest) == (0, 119)
        assert often.values == ((0, 60), (1, 60))
        assert (wide.values, wide.least, wide.greatest) == ((("x", 120),), None, None)

    def test_of_many_fields_the_frequent_ones_are_given(self, store: VectorStore) -> None:
        counting = _counting(store)
        chunks = [
            replace(chunk(0, document=n), metadata={"often": 1, f"own {n}": n}) for n in range(120)
        ]
        store.upsert(chunks, random_vectors(120))
        found = counting.facets()
        assert not found.complete
        assert len(found.fields) == 100
        assert found.fields[0] == Facet("often", "number", ((1, 120),), least=1, greatest=1)


def _counting(store: VectorStore) -> FacetCounts:
    if "facets" not in store.describe().capabilities:
        not_applicable("the store does not claim facets")
    counting: FacetCounts = store  # type: ignore[assignment]
    return counting
