"""Every built-in store for tests that run over all of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

from rag.protocols import VectorStore

OpenStore: TypeAlias = Callable[[int], AbstractContextManager[VectorStore]]
"""An empty collection of that many dimensions."""

Options: TypeAlias = tuple[str, dict[str, Any]]
"""The name of a store and its settings, `data_dir` among them."""

STORES = ["memory", "faiss", "chroma", "milvus", "pinecone"]
