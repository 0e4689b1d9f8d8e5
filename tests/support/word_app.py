"""The application with an embedder that needs no model: real stores, real files."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from embedders import WordEmbedder

from rag.app import App
from rag.settings import load


class WordApp(App):
    """Embeds words; while `gate` is closed, an embedding of documents waits at it."""

    def __init__(self, data_dir: Path, collection: str = "docs") -> None:
        values = {"data_dir": data_dir, "collection": collection, "ingest.chunk_tokens": 16}
        super().__init__(load(values).settings)
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Event()

    def embedder(self, info: Any = None, model: str = "") -> Any:
        app = self

        class Gated(WordEmbedder):
            def embed_documents(self, texts: Any) -> Any:
                app.reached.set()
                assert app.gate.wait(60)
                return super().embed_documents(texts)

        return Gated()
