from __future__ import annotations

import pytest

from stores.contract import OpenBackend, StoreContract
from stores.memory import MemoryBackend


class TestMemory(StoreContract):
    persistent = False

    @pytest.fixture
    def open_backend(self) -> OpenBackend:
        return MemoryBackend
