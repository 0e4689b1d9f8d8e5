from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from stores_under_test import OpenStore, Options

from rag import plugins
from rag.protocols import VectorStore
from rag.types import CollectionSpec


@pytest.fixture(params=["memory", "faiss"])
def store_options(request: pytest.FixtureRequest, tmp_path: Path) -> Options:
    """Each store in turn, with the settings that open it."""
    return request.param, {"data_dir": str(tmp_path)}


@pytest.fixture
def open_store(store_options: Options) -> OpenStore:
    kind, options = store_options
    values: dict[str, Any] = {**options, "data_dir": Path(options["data_dir"])}
    backend = plugins.load("store", kind)(**values)

    @contextmanager
    def opened(dim: int) -> Iterator[VectorStore]:
        name = f"adapter-{uuid4().hex[:8]}"
        store = backend.create(CollectionSpec(name, dim))
        try:
            yield store
        finally:
            store.close()
            backend.drop(name)
            backend.close()

    return opened
