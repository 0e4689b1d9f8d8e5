"""A collection of made-up texts, and questions to it, of any number and always the same."""

from __future__ import annotations

import random

from rag.app import App
from rag.types import Chunk, CollectionSpec

WORDS = (
    "harbour pump valve filter oyster salinity probe battery cabinet torque warranty invoice "
    "service depot engineer calibration firmware release sensor record customer policy travel"
).split()


def fill(app: App, count: int) -> None:
    """The collection "default" of `count` chunks of about 40 words, 5 to a document."""
    embedder = app.embedder()
    store = app.backend.create(
        CollectionSpec("default", embedder.fingerprint.dim, embedder=embedder.fingerprint)
    )
    draw = random.Random(0)
    for start in range(0, count, 1000):
        numbers = range(start, min(start + 1000, count))
        texts = [" ".join(_sentence(draw) for _ in range(4)) for _ in numbers]
        chunks = [
            Chunk(f"c{n}", f"d{n // 5}", "v", n % 5, text, f"/docs/{n // 5}.txt", f"Document {n}")
            for n, text in zip(numbers, texts, strict=True)
        ]
        store.upsert(chunks, embedder.embed_documents(texts))
    store.close()


def questions(count: int) -> list[str]:
    """Different sentences of the same words; what they find says nothing about quality."""
    draw = random.Random(1)
    return [_sentence(draw) for _ in range(count)]


def _sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=10)).capitalize() + "."
