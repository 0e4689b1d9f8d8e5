"""The vectors that a search over a `ChunkTable` looks through, kept equal to the table.

`index.faiss` holds most of them, numbered by the rows' `seq`. What was written since is searched
beside it (the tail), what was deleted since is left out; when either grows, a new file is made.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from stores.derived import DerivedFile
from stores.faiss_index import MOST_POINTS, IndexOptions, VectorIndex
from stores.ranking import members, unit
from stores.sqlite import ChunkTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rag.types import Vectors
    from stores.faiss_index import Numbers

_BATCH = 10_000
# A tail of 2,000 is searched one by one in 0.2 ms. Readers put up with ten times as much while
# another process may be about to save a new index.
_TAIL, _PATIENCE = 2_000, 10


@dataclass(frozen=True, slots=True)
class View:
    """The vectors of one generation of the table; those of metric cosine have length one."""

    generation: int
    main: VectorIndex | None
    alive: NDArray[np.bool_] | None  # of main.numbers; None when all are
    tail: Numbers
    tail_vectors: Vectors


class Views:
    """Gives the view of the table as it is now. Safe to share between threads."""

    def __init__(self, table: ChunkTable, options: IndexOptions, device: str) -> None:
        self._table = table
        self._spec = table.spec
        self._options = options
        self._device = device
        self._file = DerivedFile(table, "index.faiss")
        self._lock = threading.RLock()
        self._view: View | None = None
        self._stamp: dict[str, Any] = {}  # of the file that the view came from

    def current(self, *, patient: bool = True) -> View:
        """The view of the table's generation, which another process may have moved.

        With `patient`, a tail that is only somewhat long, and an index that was built with other
        settings, are left for the writer.
        """
        with self._lock:
            generation = self._table.generation
            view = self._view
            if view is None or view.generation != generation or not patient:
                self._view = self._refreshed(generation, patient)
            assert self._view is not None
            return self._view

    def comparable(self, vectors: Vectors) -> Vectors:
        """Vectors as they stand in the index: of length one for metric cosine."""
        return unit(vectors) if self._spec.metric == "cosine" else vectors

    def _refreshed(self, generation: int, patient: bool) -> View:
        view = self._view
        stamp = self._file.stamp()
        if view is None or stamp != self._stamp:
            loaded = self._load(stamp, mapped=True)
            if loaded is not None:
                self._stamp = stamp
                loaded.use_device(self._device)
                view = self._empty(stamp["generation"], loaded)
        view = view or self._empty(-1, None)
        if view.generation == generation and patient:
            return view
        seqs = self._table.seqs()
        known = view.main.numbers if view.main else seqs[:0]
        alive = members(known, seqs)
        new = seqs[~members(seqs, known)]
        dead = len(known) - int(alive.sum())
        most = (_PATIENCE if patient else 1) * max(_TAIL, len(known) // 20)
        outdated = not patient and view.main is not None and not view.main.suits(len(seqs))
        if len(new) > most or 5 * dead > len(known) or outdated:
            return self._indexed(generation, view.main, seqs, new, dead)
        kept = members(view.tail, new)
        fresh, vectors = self._table.vectors(new[~members(new, view.tail)])
        return View(
            generation,
            view.main,
            alive if dead else None,
            np.concatenate([view.tail[kept], fresh]),
            np.concatenate([view.tail_vectors[kept], self.comparable(vectors)]),
        )

    def _indexed(
        self, generation: int, main: VectorIndex | None, seqs: Numbers, new: Numbers, dead: int
    ) -> View:
        """A view with all in one index, saved: the old one extended if it may be, or a new one."""
        if not len(seqs):
            return self._empty(generation, None)
        index = None
        if main is not None and 5 * dead <= len(seqs) and main.suits(len(seqs)):
            index = self._load(self._stamp, mapped=False)  # a mapped one cannot grow
        if index is None:
            index, new = self._untrained(seqs), seqs
        index.add(self._batches(new))
        self._stamp = self._file.save(index.save, generation) or self._stamp
        index.use_device(self._device)
        alive = members(index.numbers, seqs)
        view = self._empty(generation, index)
        return view if alive.all() else View(generation, index, alive, view.tail, view.tail_vectors)

    def _untrained(self, seqs: Numbers) -> VectorIndex:
        count = len(seqs)
        points = min(count, MOST_POINTS * max(MOST_POINTS, self._options.lists_for(count)))
        drawn = np.sort(np.random.default_rng(0).choice(seqs, points, replace=False))
        sample = np.concatenate([vectors for _, vectors in self._batches(drawn)])
        spec = self._spec
        return VectorIndex.new(spec.dim, spec.metric, count, sample, self._options)

    def _batches(self, seqs: Numbers) -> Iterator[tuple[Numbers, Vectors]]:
        for start in range(0, len(seqs), _BATCH):
            found, vectors = self._table.vectors(seqs[start : start + _BATCH])
            yield found, self.comparable(vectors)

    def _empty(self, generation: int, main: VectorIndex | None) -> View:
        none = np.zeros(0, np.int64)
        return View(generation, main, None, none, np.zeros((0, self._spec.dim), np.float32))

    def _load(self, stamp: dict[str, Any], *, mapped: bool) -> VectorIndex | None:
        """The saved index, None unless it is the one that `stamp` describes, of this table."""
        try:
            if not self._file.is_sound(stamp):
                return None
            index = VectorIndex.load(self._file.path, self._options, mapped=mapped)
        except (OSError, LookupError, RuntimeError):
            return None
        measure = faiss.METRIC_L2 if self._spec.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        if index is None or (index.dim, index.metric_type) != (self._spec.dim, measure):
            return None
        return index
