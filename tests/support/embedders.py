"""An embedder for tests of what lies around it: fast, deterministic, and it counts its work."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from rag.errors import ContextTooLong
from rag.types import Fingerprint


class WordEmbedder:
    """Vectors of hashed words; a token is a word or a CJK character, and one marks the end."""

    def __init__(self, max_tokens: int = 64, model: str = "words") -> None:
        self.max_tokens = max_tokens
        self.fingerprint = Fingerprint(model, "1", 32)
        self.embedded = 0

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(self._words(text)) + 1 for text in texts]

    def legibility(self, text: str) -> float:
        return 1.0

    def embed_documents(self, texts: Sequence[str]) -> Any:
        if any(count > self.max_tokens for count in self.count_tokens(texts)):
            raise ContextTooLong("a text is too long", "cut it")
        self.embedded += len(texts)
        return self.embed_queries(texts)

    def embed_queries(self, texts: Sequence[str]) -> Any:
        vectors = np.full((len(texts), 32), 1e-3, np.float32)
        for row, text in enumerate(texts):
            for word in self._words(text.lower()):
                vectors[row, hashlib.md5(word.encode()).digest()[0] % 32] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    @staticmethod
    def _words(text: str) -> list[str]:
        return re.findall(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+", text)
