"""What is worked out of passages alone, and kept for the questions that find them again.

The passages of a collection that answer anything are few beside the questions, and to split one
into words and embed its sentences takes longer than to find it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
from cachetools import LRUCache

from rag.protocols import Embedder
from rag.sentences import sentences
from rag.terms import numbers, terms
from rag.types import Chunk

if TYPE_CHECKING:
    from rag.types import Vectors

# Bytes: of SciFact 8,400 passages (chunks of 220 tokens), and 48,000 sentences in 384 dimensions.
_MOST = 96 * 2**20
_ENTRY, _SENTENCE = 300, 400  # what a value and a sentence take besides, as tracemalloc counts


class Said(NamedTuple):
    """A sentence of a passage: its [start, end) range, and what is compared with a question.

    `text` begins with what stands over the sentence; `words` are the terms of all of it, `own` of
    the sentence alone.
    """

    start: int
    end: int
    text: str
    words: frozenset[str]
    own: frozenset[str]


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk as it is read: its terms, those of its title, its numbers and its sentences."""

    title: frozenset[str]
    words: frozenset[str]
    numbers: frozenset[str]
    sentences: tuple[Said, ...]

    @classmethod
    def of(cls, title: str, text: str) -> Passage:
        """What is read in a text under a title."""
        pool: dict[str, str] = {}  # pairs of CJK characters are made anew each time

        def shared(found: frozenset[str]) -> frozenset[str]:
            return frozenset(pool.setdefault(term, term) for term in found)

        words, said = shared(terms(text)), []
        for start, end, heading in sentences(text):
            own = shared(terms(text[start:end]))
            all_of_it = own | shared(terms(heading)) if heading else own
            said.append(Said(start, end, f"{heading} {text[start:end]}", all_of_it, own))
        return cls(shared(terms(title)), words, numbers(f"{title} {text}"), tuple(said))


_Kept: TypeAlias = "LRUCache[Any, tuple[Any, int]]"  # each with the bytes that it takes
_lock = threading.Lock()


def _cache() -> _Kept:
    return LRUCache(_MOST, getsizeof=itemgetter(1))


_passages = _cache()
_vectors: WeakKeyDictionary[Embedder, _Kept] = WeakKeyDictionary()  # go with their embedder


def read(chunk: Chunk) -> Passage:
    """What is read in a chunk; of the 96 MB that were asked for last, without reading again."""
    key = chunk.title, chunk.text
    with _lock:
        kept = _passages.get(key)
    if kept is not None:
        passage: Passage = kept[0]
        return passage
    passage = Passage.of(*key)
    _keep(_passages, key, passage, _bytes(passage) + sum(map(sys.getsizeof, key)))
    return passage


def vectors(texts: Sequence[str], embedder: Embedder) -> Vectors:
    """As `embedder.embed_queries`, for texts that come again, such as sentences and titles.

    The 96 MB of an embedder that were asked for last are kept.
    """
    with _lock:
        known = _vectors.setdefault(embedder, _cache())
        found = {text: known.get(text) for text in texts}
    new = [text for text, kept in found.items() if kept is None]
    if new:
        for text, vector in zip(new, embedder.embed_queries(new), strict=True):
            row = vector.copy()  # a view would keep all of them
            found[text] = row, row.nbytes
            _keep(known, text, row, row.nbytes + sys.getsizeof(text))
    rows = [kept[0] for text in texts if (kept := found[text])]
    return np.stack(rows) if rows else np.zeros((0, embedder.fingerprint.dim), np.float32)


def _keep(cache: _Kept, key: object, value: object, size: int) -> None:
    with _lock:
        if size + _ENTRY <= cache.maxsize:
            cache[key] = value, size + _ENTRY


def _bytes(passage: Passage) -> int:
    """About what a passage takes. Stems are shared with others, CJK terms are its own."""
    sets = [passage.title, passage.words, passage.numbers]
    for said in passage.sentences:
        sets += [said.own] if said.own is said.words else [said.own, said.words]
    texts = [said.text for said in passage.sentences]
    own = [term for term in passage.title | passage.words if not term.isascii()]
    return sum(map(sys.getsizeof, chain(sets, texts, own))) + _SENTENCE * len(texts)
