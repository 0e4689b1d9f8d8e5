from __future__ import annotations

import pytest

from stores.contract import OpenBackend, StoreContract
from stores.memory import MemoryBackend


class TestMemory(StoreContract):
    persistent = False

    @pytest.fixture(scope="class")
    @classmethod
    def open_backend(cls) -> OpenBackend:
        backend = MemoryBackend()
        return lambda: backend
