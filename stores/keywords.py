"""Keyword search over a `ChunkTable`: an inverted index, kept equal to the table.

`keywords.bin` holds most chunks. What was written since is in a second index in memory, what was
deleted since is left out; the file is made anew when either grows, and when the writer is done.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rag.filters import Filter
from rag.terms import tokens
from rag.types import Chunk
from stores.derived import DerivedFile
from stores.postings import Postings, search
from stores.ranking import members
from stores.sqlite import ChunkTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stores.postings import Numbers

_BATCH = 1_000
# To split 200 chunks into terms takes 40 ms, which every process does for those not in the file.
# Readers put up with ten times as many while another process may be about to save them.
_TAIL, _PATIENCE = 200, 10
# A smaller index is cleared of the deleted at once: its scores never tell of what is gone.
_CLEARED = 20_000
_NONE = Postings.of([])


def words_of(chunk: Chunk) -> list[str]:
    """What a chunk is found by: the terms of its title and its text, repeated as they are."""
    return tokens(f"{chunk.title}\n{chunk.text}")


@dataclass(frozen=True, slots=True)
class _View:
    generation: int
    main: Postings
    tail: Postings
    alive: NDArray[np.bool_] | None  # of main.numbers; None when all are


class KeywordIndex:
    """Searches the chunks of a table by BM25. Safe to share between threads."""

    def __init__(self, table: ChunkTable) -> None:
        self._table = table
        self._file = DerivedFile(table, "keywords.bin")
        self._stamp: dict[str, Any] = {}
        self._view: _View | None = None
        self._lock = threading.RLock()

    def search(
        self, texts: Sequence[str], k: int, where: Filter | None = None
    ) -> list[list[tuple[float, int]]]:
        """(score, seq) of the `k` best, and of all that tie with the last, for each text."""
        view = self._current()
        wanted = None if where is None else self._table.seqs(where)
        parts = [view.main, view.tail]
        among = [view.alive, None]
        if wanted is not None:
            among = [members(part.numbers, wanted) for part in parts]
        return [search(parts, tokens(text), k, among) for text in texts]

    def save(self) -> None:
        """Bring the file up to date, unless next to nothing is missing."""
        with self._lock:
            view = self._current()
            if _long(view, 1):
                self._merge(view)

    def _current(self) -> _View:
        with self._lock:
            generation = self._table.generation
            if self._view is None or self._view.generation != generation:
                self._view = self._refreshed(generation)
            return self._view

    def _refreshed(self, generation: int) -> _View:
        view = self._loaded()
        seqs = self._table.seqs()
        main, tail, alive = view.main, view.tail, members(view.main.numbers, seqs)
        dead = len(alive) - int(alive.sum())
        if dead and (len(alive) <= _CLEARED or 5 * dead > len(alive)):
            main, dead = main.only(alive), 0
        kept = members(tail.numbers, seqs)
        tail = tail if kept.all() else tail.only(kept)
        new = seqs[~(members(seqs, main.numbers) | members(seqs, tail.numbers))]
        if len(new):
            tail = Postings.joined([tail, *self._postings(new)])
        view = _View(generation, main, tail, alive if dead else None)
        return self._merge(view) if _long(view, _PATIENCE) else view

    def _loaded(self) -> _View:
        """The view of before, or that of the file if this is newer."""
        stamp = self._file.stamp()
        if stamp and stamp != self._stamp:
            try:
                if self._file.is_sound(stamp):
                    main = Postings.load(self._file.path)
                    self._stamp = stamp
                    return _View(stamp["generation"], main, _NONE, None)
            except (OSError, ValueError):
                pass  # as if there were none
        return self._view or _View(-1, _NONE, _NONE, None)

    def _merge(self, view: _View) -> _View:
        main = view.main if view.alive is None else view.main.only(view.alive)
        merged = Postings.joined([main, view.tail])
        self._stamp = self._file.save(merged.save, view.generation) or self._stamp
        self._view = _View(view.generation, merged, _NONE, None)
        return self._view

    def _postings(self, seqs: Numbers) -> Iterator[Postings]:
        for start in range(0, len(seqs), _BATCH):
            found = self._table.chunks(seqs[start : start + _BATCH].tolist())
            yield Postings.of((seq, words_of(found[seq])) for seq in sorted(found))


def _long(view: _View, patience: int) -> bool:
    return len(view.tail.numbers) > patience * max(_TAIL, len(view.main.numbers) // 100)
