"""question -> Hit: the passages that answer a question, by meaning and by words."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from rag.diversity import diverse, without_repeats
from rag.errors import InputError, ModelError, StoreUnavailable
from rag.filters import Filter, matches
from rag.fusion import Fusion, fuse, single
from rag.laps import Lap, Laps
from rag.protocols import Embedder, Reranker, VectorStore
from rag.types import Chunk, Hit, Leg, Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_QUESTION = 8_000  # characters

Mode: TypeAlias = Literal["hybrid", "dense", "keyword"]

_FIRST = 30  # hits of each leg, of which
_FEEDBACK = 3  # the best show the dense leg what is meant


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How to search. What is not asked for costs nothing.

    `diversity`, 0 to 1, trades relevance for hits that differ from those above (MMR). `expand` adds
    so many of a hit's neighbours on either side, in the order of the document, after it.
    """

    mode: Mode = "hybrid"
    rerank: bool = True
    diversity: float = 0.0
    expand: int = 0

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InputError(f"there is no mode {self.mode!r}", "use hybrid, dense or keyword")
        if not 0 <= self.diversity <= 1:
            raise InputError(f"diversity is {self.diversity}", "use 0 to 1")
        if not 0 <= self.expand <= 10:
            raise InputError(f"expand is {self.expand}", "use 0 to 10")


DEFAULT = SearchOptions()


@dataclass(slots=True)
class Retrieved:
    """The hits for one question, best first, and how they came about.

    `similarity` is the cosine between the question and the chunk nearest to it, `vector` that of
    the question; both are None when only words were compared. `degraded` names the parts that
    failed, without which these were found; `timings_ms` has a figure for each stage, `laps` when
    each was.
    """

    hits: list[Hit]
    similarity: float | None = None
    degraded: list[str] = field(default_factory=list)
    timings_ms: dict[str, float] = field(default_factory=dict)
    vector: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    laps: list[Lap] = field(default_factory=list, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Legs:
    """What each leg found for a question, and how much of it the embedder reads, 0 to 1."""

    dense: Sequence[Hit]
    keyword: Sequence[Hit]
    legibility: float


class Retriever:
    """Searches one collection with the embedder that it was made with."""

    def __init__(
        self,
        store: VectorStore,
        embedder: Embedder,
        *,
        metric: Metric = "cosine",
        fusion: Fusion | None = None,
        reranker: Reranker | None = None,
        candidates: int = 50,
    ) -> None:
        """`candidates` is how many hits the reranker reads."""
        self.store = store
        self.embedder = embedder
        self.fusion = fusion or Fusion()
        self._metric = metric
        self._reranker = reranker
        self._candidates = candidates

    def search(
        self,
        question: str,
        k: int,
        where: Filter | None = None,
        options: SearchOptions = DEFAULT,
    ) -> Retrieved:
        """The `k` best chunks that match `where`. InputError for what is no question."""
        return self.search_many([question], k, where, options)[0]

    def search_many(
        self,
        questions: Sequence[str],
        k: int,
        where: Filter | None = None,
        options: SearchOptions = DEFAULT,
        vectors: NDArray[np.float32] | None = None,
    ) -> list[Retrieved]:
        """The `k` best chunks for each question: one call of the embedder, one of each leg.

        `vectors` are those of the questions, shape (n, dim), where they are known already.
        """
        for question in questions:
            check_question(question)
        if k < 1:
            raise InputError(f"top k is {k}", "use 1 or more")
        if not questions:
            return []
        run = _Run()
        found = self._found(questions, k, where, options, run, vectors)
        if options.rerank and self._reranker is not None:
            found = [
                self._reranked(self._reranker, question, hits, run)
                for question, hits in zip(questions, found, strict=True)
            ]
            run.lap("rerank")
        found = [without_repeats(hits, k) for hits in found]
        if options.diversity:
            found = [diverse(self.store, hits, k, options.diversity) for hits in found]
        found = [self._expanded(hits[:k], options.expand, where) for hits in found]
        run.lap("search")
        nothing = [None] * len(found)
        similar, known = run.similarities or nothing, run.vectors or nothing
        return [
            Retrieved(hits, similarity, run.degraded, run.timings_ms, vector, run.laps)
            for hits, similarity, vector in zip(found, similar, known, strict=True)
        ]

    def _found(
        self,
        questions: Sequence[str],
        k: int,
        where: Filter | None,
        options: SearchOptions,
        run: _Run,
        vectors: NDArray[np.float32] | None,
    ) -> list[list[Hit]]:
        """More than `k` hits for each question, of the legs that the mode asks for."""
        # Twice, because repeats go; four times, to choose from, where hits are to differ.
        wanted = max((4 if options.diversity else 2) * k, self._candidates if self._reranker else 0)
        if options.mode == "keyword":
            hits = self._keyword(questions, wanted, where)
            run.lap("search")
            return [single(row, "keyword") for row in hits]
        if options.mode == "dense":
            vectors = self._embedded(questions, run) if vectors is None else vectors
            run.vectors = list(vectors)
            rows = self.store.search(vectors, wanted, where)
            run.similarities = [self._similarity(row) for row in rows]
            run.lap("search")
            return [single(row, "dense") for row in rows]
        depth = max(wanted, self.fusion.candidates)
        try:
            words = self._keyword(questions, depth, where)
        except StoreUnavailable:
            run.degraded.append("keyword")
            words = [[] for _ in questions]
        run.lap("search")
        vectors = self._embedded(questions, run) if vectors is None else vectors
        run.vectors = list(vectors)
        first, [legs] = self._legs(questions, vectors, words, depth, where, [self.fusion.feedback])
        run.similarities = [self._similarity(row) for row in first]
        found = [
            fuse(one.dense, one.keyword, self.fusion.weight(one.legibility), self.fusion, wanted)
            for one in legs
        ]
        run.lap("search")
        return found

    def _embedded(self, questions: Sequence[str], run: _Run) -> NDArray[np.float32]:
        vectors = self.embedder.embed_queries(questions)
        run.lap("embed")
        return vectors

    def over(self, store: VectorStore) -> Retriever:
        """The same for another collection of the same embedder."""
        same = copy(self)
        same.store = store
        return same

    def joined_by(self, fusion: Fusion) -> Retriever:
        """The same with its legs joined so."""
        same = copy(self)
        same.fusion = fusion
        return same

    def legs(self, questions: Sequence[str], feedback: Sequence[float]) -> list[list[Legs]]:
        """For each amount of feedback: what each leg of a hybrid search finds for each question.

        Raises StoreUnavailable.
        """
        depth = self.fusion.candidates
        words = self._keyword(questions, depth, None)
        vectors = self.embedder.embed_queries(questions)
        return self._legs(questions, vectors, words, depth, None, feedback)[1]

    def _legs(
        self,
        questions: Sequence[str],
        vectors: NDArray[np.float32],
        words: Sequence[Sequence[Hit]],
        depth: int,
        where: Filter | None,
        feedback: Sequence[float],
    ) -> tuple[list[list[Hit]], list[list[Legs]]]:
        """What the questions' own vectors find, and the legs for each amount of feedback."""
        legible = [self.embedder.legibility(text) for text in questions]
        if not any(feedback):
            first = self.store.search(vectors, depth, where)
            return first, [[Legs(*row) for row in zip(first, words, legible, strict=True)]]
        first = self.store.search(vectors, min(_FIRST, depth), where)
        meant = [self._meant(*row) for row in zip(first, words, legible, strict=True)]
        found = []
        for amount in feedback:
            dense = self.store.search(_moved(vectors, meant, amount), depth, where)
            found.append([Legs(*row) for row in zip(dense, words, legible, strict=True)])
        return first, found

    def _meant(
        self, dense: Sequence[Hit], words: Sequence[Hit], legibility: float
    ) -> NDArray[np.float32] | None:
        """The mean vector of the first hits; None where the embedder does not read the question.

        Of the defaults, whatever was learnt: so only the amount of feedback changes the legs.
        """
        how = Fusion()
        weight = how.weight(legibility)
        if weight <= how.dense / 2:
            return None
        hits = fuse(dense, words[:_FIRST], weight, how, _FEEDBACK)
        best = self.store.vectors([hit.chunk.id for hit in hits])
        return best.mean(axis=0) if len(best) else None

    def _similarity(self, hits: Sequence[Hit]) -> float | None:
        """The cosine of the nearest; vectors of embedders have length one."""
        if not hits:
            return None
        return 1 + hits[0].score / 2 if self._metric == "l2" else hits[0].score

    def _keyword(
        self, questions: Sequence[str], wanted: int, where: Filter | None
    ) -> list[list[Hit]]:
        store: Any = self.store  # each that the application opens has it: see `stores.sidecar`
        hits: list[list[Hit]] = store.keyword_search(list(questions), wanted, where)
        return hits

    def _reranked(self, reranker: Reranker, question: str, hits: list[Hit], run: _Run) -> list[Hit]:
        head, tail = hits[: self._candidates], hits[self._candidates :]
        if not head or "reranker" in run.degraded:
            return hits
        try:
            scores = reranker.scores(question, [hit.chunk.text for hit in head])
        except ModelError:
            run.degraded.append("reranker")
            return hits
        order = sorted(range(len(head)), key=lambda n: (-scores[n], n))
        best = [
            replace(
                head[n],
                score=scores[n],
                legs=(*head[n].legs, Leg("rerank", rank, scores[n], 1.0)),
            )
            for rank, n in enumerate(order, start=1)
        ]
        # What was not read stands below all that was, in the old order.
        least = min(scores)
        return best + [replace(h, score=least - n) for n, h in enumerate(tail, start=1)]

    def _expanded(self, hits: list[Hit], reach: int, where: Filter | None) -> list[Hit]:
        """The hits, each followed by its neighbours that match and are not among them."""
        if not reach:
            return hits
        seen = {hit.chunk.id for hit in hits}
        ids = {hit.chunk.id: _around(hit.chunk, reach) for hit in hits}
        around = self.store.get([i for near in ids.values() for i in near])
        held = {c.id: c for c in around if where is None or matches(where, c.fields())}
        found = []
        for hit in hits:
            found.append(hit)
            for near in ids[hit.chunk.id]:
                if near in held and near not in seen:
                    seen.add(near)
                    found.append(Hit(held[near], hit.score, (Leg("neighbour", 0, hit.score, 1.0),)))
        return found


def check_question(question: str) -> None:
    """Raise InputError for what is no question: empty, not Unicode, or a whole book."""
    if not question.strip():
        raise InputError("the question is empty", "ask something")
    if len(question) > MAX_QUESTION:
        raise InputError(f"the question is over {MAX_QUESTION} characters", "ask a shorter one")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            "the question is not valid Unicode", "check the terminal's encoding"
        ) from error


def _moved(
    vectors: NDArray[np.float32], meant: Sequence[NDArray[np.float32] | None], amount: float
) -> NDArray[np.float32]:
    """The questions' vectors, moved by so much towards what is meant (Rocchio 1971)."""
    import numpy as np

    nearer = vectors.copy()
    for row, mean in enumerate(meant):
        if mean is not None and amount:
            nearer[row] += amount * mean
            nearer[row] /= max(float(np.linalg.norm(nearer[row])), 1e-9)
    return nearer


def _around(chunk: Chunk, reach: int) -> list[str]:
    """The ids of a chunk's neighbours, if its id is made as ingestion makes them."""
    stem = chunk.id.removesuffix(f":{chunk.position}")
    if stem == chunk.id:
        return []
    positions = range(max(0, chunk.position - reach), chunk.position + reach + 1)
    return [f"{stem}:{position}" for position in positions if position != chunk.position]


class _Run(Laps):
    """What is known so far of one search."""

    def __init__(self) -> None:
        super().__init__()
        self.degraded: list[str] = []
        self.similarities: list[float | None] = []
        self.vectors: list[NDArray[np.float32]] = []
