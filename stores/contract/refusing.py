"""What every store refuses, with which error, and what is unharmed afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rag.errors import (
    DimensionMismatch,
    EmbedderMismatch,
    InputError,
    MetricMismatch,
    UnknownCollection,
)
from rag.protocols import StoreBackend, VectorStore
from rag.types import CollectionSpec
from stores.contract.data import FINGERPRINT, SPEC, chunk, random_vectors
from stores.contract.setting import ContractSetting


class RefusingTests(ContractSetting):
    """Mistakes are told, never stored."""

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_vectors_that_are_not_finite_are_refused(self, store: VectorStore, bad: float) -> None:
        vectors = random_vectors(2)
        vectors[1, 3] = bad
        with pytest.raises(InputError):
            store.upsert([chunk(0), chunk(1)], vectors)
        with pytest.raises(InputError):
            store.search(vectors, 3)
        assert store.count() == 0

    def test_wrong_dimension_is_refused(self, store: VectorStore) -> None:
        with pytest.raises(DimensionMismatch, match=r"8 .*5"):
            store.upsert([chunk(0)], random_vectors(1, dim=5))
        with pytest.raises(DimensionMismatch, match=r"8 .*5"):
            store.search(random_vectors(1, dim=5), 3)

    @pytest.mark.parametrize(
        "bad", [{"list": [1]}, {"none": None}, {"source": "x"}, {"$x": 1}, {"nan": np.nan}]
    )
    def test_metadata_that_cannot_be_filtered_is_refused(
        self, store: VectorStore, bad: dict[str, Any]
    ) -> None:
        with pytest.raises(InputError):
            store.upsert([replace(chunk(0), metadata=bad)], random_vectors(1))
        assert store.count() == 0

    @pytest.mark.parametrize("field", ["id", "document_id"])
    def test_nul_in_an_id_is_refused_and_finds_nothing(
        self, store: VectorStore, field: str
    ) -> None:
        """Engines cut texts at it, and would take the chunk for another."""
        store.upsert([chunk(0)], random_vectors(1))
        change: dict[str, Any] = {field: f"{getattr(chunk(0), field)}\x00b"}
        with pytest.raises(InputError, match="NUL"):
            store.upsert([replace(chunk(0), **change)], random_vectors(1))
        those: dict[str, Any] = {f"{name}s": [value] for name, value in change.items()}
        assert store.delete(**those) == 0
        assert store.get([f"{chunk(0).id}\x00b"]) == []
        assert store.get([chunk(0).id]) == [chunk(0)]

    def test_lengths_that_differ_are_refused(self, store: VectorStore) -> None:
        with pytest.raises(InputError):
            store.upsert([chunk(0)], random_vectors(2))

    def test_another_dimension_metric_or_embedder_is_refused(
        self, backend: StoreBackend, spec: CollectionSpec
    ) -> None:
        backend.create(spec).close()
        with pytest.raises(DimensionMismatch):
            backend.create(CollectionSpec(spec.name, 5))
        with pytest.raises(MetricMismatch):
            backend.create(replace(spec, metric="l2"))
        with pytest.raises(EmbedderMismatch, match=r"a-model.*other"):
            backend.create(replace(spec, embedder=replace(FINGERPRINT, model="other")))
        backend.create(spec).close()

    def test_an_unknown_collection_is_told(self, backend: StoreBackend) -> None:
        for refused in (backend.open, backend.drop):
            with pytest.raises(UnknownCollection, match="no-such"):
                refused("no-such")
        with pytest.raises(UnknownCollection, match="no-such"):
            backend.replace("name", by="no-such")

    @pytest.mark.parametrize("name", ["", "../x", "A", "a b", "x" * 64, ".", "名"])
    def test_names_that_not_every_store_takes_are_refused(
        self, backend: StoreBackend, name: str
    ) -> None:
        with pytest.raises(InputError):
            backend.create(replace(SPEC, name=name))
