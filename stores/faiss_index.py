"""An index of numbered vectors in FAISS: built, extended, saved, memory-mapped, searched.

Once built it only grows: what is deleted is left out by the bitmap that a search is given, until
the store builds a new one. So deletion is the same for every kind, and HNSW, which has none,
needs no case of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import faiss
import numpy as np

from rag.errors import ConfigError
from stores.faiss_gpu import MOST_OF_GPU, to_gpu
from stores.faiss_threads import threads_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rag.types import Metric, Vectors

    Numbers: TypeAlias = NDArray[np.int64]
    Scores: TypeAlias = NDArray[np.float32]

Kind: TypeAlias = Literal["Flat", "HNSW", "IVF_FLAT", "IVF_PQ", "SQ8"]

# Exact search over 20,000 vectors of 384 dimensions takes 7 ms on one core, HNSW 0.4 ms.
_FLAT_UP_TO = 20_000
# FAISS asks for 39 training points a centroid, and uses 256; PQ has 256 centroids a subspace.
_LEAST_POINTS, MOST_POINTS = 39, 256
_LEAST = {"IVF_FLAT": 1_000, "IVF_PQ": 256 * _LEAST_POINTS}
# As many vectors as this are compared one by one about as fast as a graph is walked for them.
_ONE_BY_ONE = 10_000


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """How to build and search. `nlist` and `m` of 0 follow from the number and size of vectors."""

    kind: str = "auto"
    M: int = 32
    ef_construction: int = 200
    ef_search: int = 64
    nlist: int = 0
    nprobe: int = 16
    m: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("auto", *get_args(Kind)):
            known = ", ".join(("auto", *get_args(Kind)))
            raise ConfigError(f"stores.faiss.index is {self.kind!r}", f"use one of: {known}")

    def check(self, dim: int) -> None:
        """Raise ConfigError unless vectors of that dimension can be indexed so."""
        if self.kind == "IVF_PQ" and self.m and dim % self.m:
            raise ConfigError(
                f"stores.faiss.m is {self.m}, which does not divide {dim} dimensions",
                f"use 0, which chooses {_subspaces(dim)}",
            )

    def kind_for(self, count: int) -> Kind:
        """The kind for so many vectors: exact until there are enough to train or to gain from."""
        if self.kind == "auto":
            return "HNSW" if count > _FLAT_UP_TO else "Flat"
        chosen: Kind = self.kind  # type: ignore[assignment]  # checked above
        return chosen if count >= _LEAST.get(chosen, 0) else "Flat"

    def lists_for(self, count: int) -> int:
        """`nlist` for so many vectors: 4 sqrt(n), FAISS' guideline, as far as they can train it."""
        return max(1, min(self.nlist or int(4 * sqrt(count)), count // _LEAST_POINTS))


class VectorIndex:
    """See the module. `numbers`, int64 of shape (n,), ascend."""

    def __init__(self, outer: Any, kind: Kind, options: IndexOptions) -> None:
        """`outer` is an IndexIDMap, which the file is too: FAISS alone can open and search it."""
        self.kind = kind
        self.numbers: Numbers = faiss.vector_to_array(outer.id_map)
        self._outer = outer
        self._inner = faiss.downcast_index(outer.index)
        self._options = options
        self._gpu: Any = None

    @classmethod
    def new(
        cls, dim: int, metric: Metric, count: int, sample: Vectors, options: IndexOptions
    ) -> VectorIndex:
        """An empty index for `count` vectors like `sample`, float32 of shape (n, dim)."""
        kind = options.kind_for(count)
        measure = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        inner: Any
        if kind == "Flat":
            inner = faiss.IndexFlat(dim, measure)
        elif kind == "HNSW":
            inner = faiss.IndexHNSWFlat(dim, options.M, measure)
            inner.hnsw.efConstruction = options.ef_construction
        elif kind == "SQ8":
            inner = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, measure)
        else:
            form = "Flat" if kind == "IVF_FLAT" else f"PQ{options.m or _subspaces(dim)}"
            inner = faiss.index_factory(dim, f"IVF{options.lists_for(count)},{form}", measure)
        if not inner.is_trained:
            inner.train(sample)
        return cls(faiss.IndexIDMap(inner), kind, options)

    @classmethod
    def load(cls, path: Path, options: IndexOptions, *, mapped: bool) -> VectorIndex | None:
        """The index in a file, None if it is none of ours. `mapped`, it opens at once, to read."""
        outer = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
        if not isinstance(outer, faiss.IndexIDMap):
            return None
        kinds: dict[str, Kind] = {
            "IndexFlat": "Flat",
            "IndexFlatIP": "Flat",
            "IndexFlatL2": "Flat",
            "IndexHNSWFlat": "HNSW",
            "IndexIVFFlat": "IVF_FLAT",
            "IndexIVFPQ": "IVF_PQ",
            "IndexScalarQuantizer": "SQ8",
        }
        kind = kinds.get(type(faiss.downcast_index(outer.index)).__name__)
        return kind and cls(outer, kind, options)

    @property
    def dim(self) -> int:
        """The size of its vectors."""
        return int(self._inner.d)

    @property
    def metric_type(self) -> int:
        """FAISS' own number of the metric."""
        return int(self._inner.metric_type)

    @property
    def lossy(self) -> bool:
        """Whether scores are of compressed vectors, and must be made again from the true ones."""
        return self.kind in ("IVF_PQ", "SQ8")

    def suits(self, count: int) -> bool:
        """Whether the options would build about the same for so many vectors.

        Lists that were not asked for by number may be half or twice as many.
        """
        options, inner = self._options, self._inner
        if self.kind != options.kind_for(count):
            return False
        if self.kind == "HNSW":
            graph = inner.hnsw.nb_neighbors(1), inner.hnsw.efConstruction
            return graph == (options.M, options.ef_construction)
        if self.kind == "IVF_PQ" and (options.m or _subspaces(self.dim)) != inner.pq.M:
            return False
        if self.kind.startswith("IVF"):
            lists, built = options.lists_for(count), int(inner.nlist)
            return lists == built if lists == options.nlist else 0.5 < lists / built < 2
        return True

    def add(self, batches: Iterable[tuple[Numbers, Vectors]]) -> None:
        """Take in batches of (numbers, vectors); the numbers are above all that are there."""
        for numbers, vectors in batches:
            self._outer.add_with_ids(vectors, numbers)
        self.numbers = faiss.vector_to_array(self._outer.id_map)

    def save(self, path: Path) -> None:
        """Write the file: always an index for the CPU."""
        faiss.write_index(self._outer, str(path))

    def use_device(self, device: str) -> None:
        """Search on the GPU that `device` names, where there is one and it has this kind."""
        if self.kind.startswith("IVF"):
            self._inner.nprobe = self._options.nprobe  # copied with it
        self._gpu = to_gpu(self._inner, self.kind, device)

    def search(
        self, queries: Vectors, n: int, among: NDArray[np.bool_] | None = None
    ) -> tuple[Scores, Numbers]:
        """(scores, numbers) of the n nearest, both of shape (len(queries), n), best first.

        `among` says of each of `numbers` whether it may be found. Number -1 fills rows that end
        early, which they do only when fewer than n may be found.
        """
        count = len(self.numbers) if among is None else int(among.sum())
        n = min(n, count)
        if n == 0:
            return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        selector = None if among is None else _selector(among)
        few = (among is not None and count <= _ONE_BY_ONE) or 4 * n > count
        # A GPU takes no bitmap: it is asked for more, and what may not be found is dropped.
        wide = min(n + len(self.numbers) - count, 2 * n * len(self.numbers) // count)
        if self._gpu is not None and wide <= MOST_OF_GPU:
            scores, positions = self._search_gpu(queries, n, wide, among)
        elif few:
            scores, positions = self._search_all(queries, n, selector)
        else:
            scores, positions = self._search_near(queries, n, selector, count)
        short = (positions < 0).any(axis=1)
        if short.any():
            scores[short], positions[short] = self._search_all(queries[short], n, selector)
        if self.metric_type == faiss.METRIC_L2:
            scores = -scores
        return scores, np.where(positions >= 0, self.numbers[positions], -1)

    def _search_gpu(
        self, queries: Vectors, n: int, wide: int, among: NDArray[np.bool_] | None
    ) -> Any:
        scores, positions = self._gpu.search(queries, wide)
        if among is None:
            return scores, positions
        dropped = (positions < 0) | ~among[positions]
        kept = np.argsort(dropped, axis=1, kind="stable")[:, :n]  # best first, as they were
        positions = np.where(dropped, -1, positions)
        return np.take_along_axis(scores, kept, 1), np.take_along_axis(positions, kept, 1)

    def _search_near(self, queries: Vectors, n: int, selector: Any, count: int) -> Any:
        options = self._options
        if self.kind == "HNSW":
            # Of what the graph leads to only a share counts, so more must be looked at.
            ef = max(options.ef_search, n) * len(self.numbers) // count
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=ef)
            looked_at = ef * options.M
        elif self.kind.startswith("IVF"):
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=options.nprobe)
            looked_at = len(self.numbers) * options.nprobe // self._inner.nlist
        else:
            parameters = selector and faiss.SearchParameters(sel=selector)
            looked_at = len(self.numbers)
        with threads_for(queries, looked_at):
            return self._inner.search(queries, n, params=parameters)

    def _search_all(self, queries: Vectors, n: int, selector: Any) -> Any:
        if self.kind.startswith("IVF"):
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=self._inner.nlist)
            index = self._inner
        else:
            parameters = selector and faiss.SearchParameters(sel=selector)
            index = faiss.downcast_index(
                self._inner.storage if self.kind == "HNSW" else self._inner
            )
        with threads_for(queries, len(self.numbers)):
            return index.search(queries, n, params=parameters)


def _selector(among: NDArray[np.bool_]) -> Any:
    return faiss.IDSelectorBitmap(np.packbits(among, bitorder="little"))


def _subspaces(dim: int) -> int:
    """The most subspaces of at least four dimensions: 16 times smaller than float32."""
    return next(m for m in range(max(1, dim // 4), 0, -1) if dim % m == 0)
