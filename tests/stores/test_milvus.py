from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from milvus_server import QUICK, TOKEN, milvus_server

from stores.contract import OpenBackend, StoreContract
from stores.milvus import MilvusBackend


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a real server."""
    with milvus_server(**QUICK) as address:
        yield address


class TestMilvusLite(StoreContract):
    shared = False
    exact = False

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("milvus")

    @pytest.fixture(scope="class")
    @classmethod
    def open_backend(cls, folder: Path) -> OpenBackend:
        return lambda: MilvusBackend(data_dir=folder)

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls, folder: Path) -> str:
        return f"""
from pathlib import Path
from stores.milvus import MilvusBackend
backend = MilvusBackend(data_dir=Path({str(folder)!r}))
"""


class TestMilvusServer(StoreContract):
    exact = False
    examples = 3

    @pytest.fixture(scope="class")
    @classmethod
    def open_backend(cls, server: str) -> OpenBackend:
        return lambda: MilvusBackend(data_dir=Path(), uri=server, token=TOKEN)

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls, server: str) -> str:
        return f"""
from pathlib import Path
from stores.milvus import MilvusBackend
backend = MilvusBackend(data_dir=Path(), uri={server!r}, token={TOKEN!r})
"""
