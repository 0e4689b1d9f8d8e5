"""Questions out of the documents themselves, for collections that nobody has judged.

A sentence is taken out of its chunk and becomes the question: what is left of the chunk, and its
document, is what should be found (the inverse cloze task: Lee, Chang and Toutanova 2019). That is
done in a copy of a part of the collection, in memory; the collection itself is only read.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from ingest.embed import embed
from rag.evaluation.dataset import Dataset
from rag.protocols import Embedder, VectorStore
from rag.sentences import sentences
from rag.terms import terms
from rag.types import Chunk, CollectionSpec
from stores.memory import MemoryBackend

_CHUNKS = 5_000  # among which is searched
_QUESTIONS = 200
_DOCUMENTS = 20  # in fewer, nearly every search finds the right one
_TERMS = range(5, 40)  # that a sentence has which can be a question
_REST = 2  # sentences at least that stay


def cloze(
    store: VectorStore, embedder: Embedder
) -> tuple[VectorStore, Dataset, Callable[[Chunk], str]]:
    """A collection in memory, up to 200 questions that it answers, and by what a chunk is judged.

    By its document; where there are few of these, by itself. The same documents give the same
    questions; none, where no chunk has sentences to spare.
    """
    info = store.describe()
    part = MemoryBackend().create(CollectionSpec("cloze", info.dim, info.metric, info.embedder))
    held: list[Chunk] = []
    for chunks, vectors in islice(store.scan(500), _CHUNKS // 500):
        part.upsert(chunks, vectors)
        held += chunks
    few = len({chunk.document_id for chunk in held}) < _DOCUMENTS

    def name(chunk: Chunk) -> str:
        return chunk.id if few else chunk.document_id

    held.sort(key=lambda chunk: chunk.id)  # each store has an order of its own
    chance = random.Random(1)
    chance.shuffle(held)
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    changed: list[Chunk] = []
    for chunk in held:
        taken = _take(chunk, chance)
        # Where chunks overlap or files are copied, the sentence still stands elsewhere.
        if taken is None or any(taken[0] in other.text for other in held if other is not chunk):
            continue
        queries[chunk.id], rest = taken
        qrels[chunk.id] = {name(chunk): 1}
        changed.append(replace(chunk, text=rest))
        if len(changed) == _QUESTIONS:
            break
    if changed:
        part.upsert(changed, embed(changed, embedder))
    return part, Dataset("its own sentences", queries, qrels), name


def _take(chunk: Chunk, chance: random.Random) -> tuple[str, str] | None:
    """A sentence of the chunk and the text without it; None where no sentence can be spared."""
    found = sentences(chunk.text)
    fit = [s for s in found if len(terms(chunk.text[s.start : s.end])) in _TERMS]
    if len(found) <= _REST or not fit:
        return None
    start, end, _ = chance.choice(fit)
    return chunk.text[start:end], chunk.text[:start] + chunk.text[end:]
