"""The stores that the adapters are tested on: a line each in `STORES`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from pinecone_emulator import PineconeEmulator

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")

Options: TypeAlias = dict[str, Any]


@contextmanager
def _in_folder(folder: Path) -> Iterator[Options]:
    yield {"data_dir": str(folder)}


@contextmanager
def _pinecone(folder: Path) -> Iterator[Options]:
    with PineconeEmulator() as emulator:
        yield {"api_key": emulator.api_key, "controller_host": emulator.url}
        assert not emulator.violations


STORES: dict[str, Callable[[Path], AbstractContextManager[Options]]] = {
    "memory": _in_folder,
    "faiss": _in_folder,
    "chroma": _in_folder,
    "milvus": _in_folder,
    "pinecone": _pinecone,
}


@pytest.fixture(scope="module", params=STORES)
def kind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Options]]:
    """The name of a store and its settings; all tests of a module share its folder."""
    with STORES[request.param](tmp_path_factory.mktemp(request.param)) as options:
        yield request.param, options
