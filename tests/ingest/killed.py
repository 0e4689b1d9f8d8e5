"""Ingest and die: python killed.py DOCS DATA_DIR CALL before|after.

The process kills itself with SIGKILL before or after the CALL-th write to the store.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from embedders import WordEmbedder

from ingest import pipeline
from rag.types import CollectionSpec
from stores.faiss import FaissBackend, FaissStore


def dying(method: Any, calls: list[int], at: int, when: str) -> Any:
    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == at and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = method(*arguments, **named)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


def main() -> None:
    docs, data_dir, at, when = sys.argv[1:]
    pipeline._WINDOW = 4  # a document spans several windows
    calls: list[int] = []
    for name in ("upsert", "delete"):
        setattr(FaissStore, name, dying(getattr(FaissStore, name), calls, int(at), when))
    backend = FaissBackend(data_dir=Path(data_dir))
    embedder = WordEmbedder()
    store = backend.create(CollectionSpec("killed", 32, embedder=embedder.fingerprint))
    pipeline.ingest([Path(docs)], store=store, embedder=embedder, options=pipeline.Options(12, 0))
    store.close()


if __name__ == "__main__":
    main()
