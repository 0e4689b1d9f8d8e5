"""Searching a collection of Milvus: by vectors, by words, by both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from pymilvus import AnnSearchRequest, RRFRanker

from rag.types import Chunk, Metric
from stores.milvus_collection import MOST, Collection
from stores.milvus_connection import TooLarge
from stores.milvus_filters import EVERY
from stores.milvus_rows import FIELDS, MORE, SPARSE, VECTOR, has_more, to_chunk
from stores.ranking import scores

if TYPE_CHECKING:
    from rag.types import Vectors

METRICS = {"cosine": "COSINE", "ip": "IP", "l2": "L2"}
PAGE = 4_096
"""Rows with their vectors that are read at once."""

# An index looks at the nearest only, and finds few of those that a filter leaves; so does the
# temporary one of a server (nprobe 16 of 128), until what is new is sealed. Measured with 12,000
# vectors and filters that leave from a half to a 300th: where it finds 8 times as many as are
# asked for, looking 8 times as far, recall is over 0.95; where it does not, few match, and
# these are compared here.
_WIDER = 8
_WIDER_IN_LITE = 64  # it evaluates a filter in 5 µs a row: better once than twice
_FEW = 1_000
_RRF = 60
_DEPTH = 4  # times k: the candidates of each half of a hybrid search

Found: TypeAlias = list[list[tuple[float, Chunk]]]
Ranked: TypeAlias = list[tuple[float, str]]


class Searcher:
    """Finds (score, chunk), best first. `index` is the live one."""

    def __init__(
        self, collection: Collection, metric: Metric, index: str, *, ef: int, nprobe: int
    ) -> None:
        self._collection = collection
        self._metric = metric
        self._index = index
        self._ef = ef
        self._nprobe = nprobe

    def by_vectors(self, queries: Vectors, n: int, condition: str) -> Found:
        """The n nearest of what matches, for each query."""
        exact = self._index == "FLAT"
        if condition and not exact:
            return self._carefully(queries, n, condition)
        found = self._whole(VECTOR, list(queries), n, condition, self._score)
        few = not exact and any(len(row) < n for row in found)
        return self._carefully(queries, n, condition) if few else found

    def by_words(self, words: list[str], n: int, condition: str) -> Found:
        """The n best by BM25. Lite gives it as a distance: below zero, the best lowest."""
        return self._whole(SPARSE, words, n, condition, abs)

    def by_both(self, queries: Vectors, words: list[str], k: int, condition: str) -> Found:
        """The k best of both, fused by reciprocal rank in one round trip."""
        depth = min(_DEPTH * k, MOST)

        def ask(rows: list[int], fields: list[str]) -> Any:
            halves = {VECTOR: list(queries[rows]), SPARSE: [words[row] for row in rows]}
            asked = [
                AnnSearchRequest(data, field, self._params(field, depth), depth, expr=condition)
                for field, data in halves.items()
            ]
            options = {"limit": min(k, MOST), "output_fields": fields}
            return self._collection.read("hybrid_search", asked, RRFRanker(_RRF), **options)

        with_words = [row for row, text in enumerate(words) if text]
        found = dict(zip(with_words, self._answers(ask, with_words, depth, float), strict=True))
        for row in range(len(queries)):
            if row not in found:  # nothing but stop words
                (near,) = self.by_vectors(queries[row : row + 1], min(k, MOST), condition)
                found[row] = [(1 / (_RRF + 1 + i), chunk) for i, (_, chunk) in enumerate(near)]
        return [found[row] for row in range(len(queries))]

    def chunks(self, ids: Iterable[str]) -> dict[str, Chunk]:
        """The chunks of these ids that are there."""
        rows = self._collection.rows(list(dict.fromkeys(ids)), [*FIELDS, MORE])
        return {row["id"]: to_chunk(row, row["id"], row[MORE]) for row in rows}

    def _carefully(self, queries: Vectors, n: int, condition: str) -> Found:
        wide = min(n * _WIDER, MOST)
        ranked: list[Ranked] = []
        most = max(1, MOST // wide)
        look = _WIDER_IN_LITE if self._collection.milvus.is_lite else _WIDER
        for start in range(0, len(queries), most):
            some = list(queries[start : start + most])
            for hits in self._search(VECTOR, some, wide, condition, ["id"], look):
                ranked.append([(self._score(hit["distance"]), hit["id"]) for hit in hits])
        short = [row for row, found in enumerate(ranked) if len(found) < wide]
        if short and (rows := self._few(condition)):
            for row, found in zip(short, self._compared(queries[short], n, rows), strict=True):
                ranked[row] = found
        best = [row[:n] for row in ranked]
        chunks = self.chunks(chunk_id for row in best for _, chunk_id in row)
        return [[(score, chunks[i]) for score, i in row if i in chunks] for row in best]

    def _few(self, condition: str) -> list[Any]:
        """All rows that match, with their vectors; none where they are too many."""
        fields = ["id", VECTOR]
        options = {"filter": condition or EVERY, "output_fields": fields, "limit": _FEW}
        rows = list(self._collection.read("query", **options))
        if len(rows) < _FEW:
            return rows
        if self._collection.count(condition) > MOST:
            return []
        return [row for page in self._collection.pages(condition, fields, PAGE) for row in page]

    def _compared(self, queries: Vectors, n: int, rows: list[Any]) -> list[Ranked]:
        vectors = np.array([row[VECTOR] for row in rows], np.float32)
        table = scores(queries, vectors, self._metric)
        best = np.argsort(-table, axis=1, kind="stable")[:, :n].tolist()
        return [
            [(line[i], rows[i]["id"]) for i in row] for line, row in zip(table, best, strict=True)
        ]

    def _whole(
        self,
        field: str,
        data: list[Any],
        n: int,
        condition: str,
        score: Callable[[float], float],
    ) -> Found:
        def ask(rows: list[int], fields: list[str]) -> Any:
            return self._search(field, [data[row] for row in rows], n, condition, fields)

        return self._answers(ask, list(range(len(data))), n, score)

    def _answers(
        self,
        ask: Callable[[list[int], list[str]], Any],
        rows: list[int],
        n: int,
        score: Callable[[float], float],
    ) -> Found:
        """What `ask(rows, fields)` finds, in as many answers as are needed."""
        most = max(1, MOST // n)
        if not rows:
            return []
        if len(rows) <= most:
            try:
                return self._read(ask(rows, FIELDS), score)
            except TooLarge:
                most = (len(rows) + 1) // 2
        if len(rows) == 1:  # it does not fit even alone: first what it is, then that in parts
            found = {hit["id"]: score(hit["distance"]) for hit in ask(rows, ["id"])[0]}
            return [[(found[i], chunk) for i, chunk in self.chunks(found).items()]]
        parts = [rows[start : start + most] for start in range(0, len(rows), most)]
        return [found for part in parts for found in self._answers(ask, part, n, score)]

    def _read(self, answers: Any, score: Callable[[float], float]) -> Found:
        long = self.chunks(hit["id"] for hits in answers for hit in hits if has_more(hit["entity"]))
        return [
            [
                (score(hit["distance"]), long.get(hit["id"]) or to_chunk(hit["entity"], hit["id"]))
                for hit in hits
                if hit["id"] in long or not has_more(hit["entity"])
            ]
            for hits in answers
        ]

    def _search(
        self,
        field: str,
        data: list[Any],
        n: int,
        condition: str,
        fields: list[str],
        wider: int = 1,
    ) -> Any:
        return self._collection.read(
            "search",
            data=data,
            anns_field=field,
            filter=condition,
            limit=n,
            search_params=self._params(field, n, wider),
            output_fields=fields,
        )

    def _params(self, field: str, n: int, wider: int = 1) -> dict[str, Any]:
        if field == SPARSE:
            return {"metric_type": "BM25"}
        params: dict[str, int] = {}
        if self._index in ("HNSW", "AUTOINDEX"):
            params["ef"] = max(self._ef * wider, n)
        elif self._index.startswith("IVF"):
            params["nprobe"] = self._nprobe * wider
        return {"metric_type": METRICS[self._metric], "params": params}

    def _score(self, distance: float) -> float:
        return -distance if self._metric == "l2" else distance
