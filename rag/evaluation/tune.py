"""Learns how a collection's two legs are joined, from questions whose documents are known.

Every combination on a grid is tried on the same legs. What is taken is the best once each has been
averaged with those around it, because the best single one owes much to chance; and only if that is
better on questions that it was not chosen on (five-fold cross-validation).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from rag.errors import InputError
from rag.evaluation.cloze import cloze
from rag.evaluation.dataset import Dataset, judged_in, sample
from rag.fusion import Fusion, Joined
from rag.retrieve import Legs, Retriever
from rag.types import Chunk

LEAST = 20  # questions; fewer tell nothing
_MOST = 1_000  # questions that are tried; more change the choice no further
_DEPTH = 10  # of nDCG and recall
_FOLDS = 5
_BATCH = 64
_DENSE = tuple(n / 10 for n in range(11))
_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Half a standard error: more likely better than not. The documents' own sentences are no questions
# that people asked, so what they teach must be better beyond doubt (one case in twenty).
_MARGIN, _MARGIN_CLOZE = 0.5, 1.64
_GRID = [Fusion(*values) for values in product(_DENSE, _QUARTERS, _QUARTERS)]

Grades = Mapping[str, int]
Figures = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was learnt from so many questions of `source`.

    `before` and `after` are means of nDCG@10 and recall@10, `after` on questions not learnt from.
    `fusion` is what to use now; what the collection had, where nothing better was found. `remarks`
    tell what was odd in the judgements.
    """

    fusion: Fusion
    before: float
    after: float
    changed: bool
    questions: int
    source: str
    remarks: tuple[str, ...] = ()


def tune(
    retriever: Retriever,
    dataset: Dataset | None = None,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Tuning:
    """The fusion for a retriever's collection, learnt from judged questions or its own sentences.

    Raises InputError for fewer than `LEAST` questions.
    """
    margin = _MARGIN_CLOZE if dataset is None else _MARGIN
    if dataset is None:
        part, dataset = cloze(retriever.store, retriever.embedder)
        retriever = retriever.over(part)
    dataset, name = judged_in(dataset, retriever.store)
    asked = sample(list(dataset.queries.items()), _MOST)
    if len(asked) < LEAST:
        raise InputError(
            f"{len(asked)} questions are too few to learn from",
            f"give {LEAST} or more with --queries and --qrels",
        )
    qrels = [dataset.qrels[query] for query, _ in asked]
    present = retriever.fusion
    feedbacks = sorted({how.feedback for how in _GRID} | {present.feedback})
    grid = [replace(how, candidates=present.candidates) for how in _GRID]
    grid = [present, *(how for how in grid if how != present)]
    figures = np.zeros((len(asked), len(grid)))
    for round_, feedback in enumerate(feedbacks):
        with_feedback = retriever.over(retriever.store, replace(present, feedback=feedback))
        columns = [n for n, how in enumerate(grid) if how.feedback == feedback]
        for start in range(0, len(asked), _BATCH):
            some = asked[start : start + _BATCH]
            legs = with_feedback.legs([text for _, text in some])
            for row, (one, grades) in enumerate(
                zip(legs, qrels[start : start + _BATCH], strict=True), start
            ):
                figures[row, columns] = _figures(one, grades, [grid[n] for n in columns], name)
            progress(round_ * len(asked) + start + len(some), len(feedbacks) * len(asked))
    near = _nearness(grid)
    chosen = _choose(figures, near)
    folds = np.arange(len(asked)) % _FOLDS
    before, after = figures[:, 0], np.zeros(len(asked))
    for fold in range(_FOLDS):
        held_out = folds == fold
        after[held_out] = figures[held_out, _choose(figures[~held_out], near)]
    gains = after - before
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    better = chosen != 0 and gains.mean() > margin * error
    return Tuning(
        grid[chosen] if better else present,
        float(before.mean()),
        float((after if better else before).mean()),
        bool(better),
        len(asked),
        dataset.name,
        dataset.remarks,
    )


def _figures(
    legs: Legs, grades: Grades, grid: Sequence[Fusion], name: Callable[[Chunk], str]
) -> Figures:
    """The mean of nDCG@10 and recall@10 that each combination gives for one question."""
    joined = Joined(legs.dense, legs.keyword)
    relevant = {document: grade for document, grade in grades.items() if grade > 0}
    ideal = sorted(relevant.values(), reverse=True)[:_DEPTH]
    best = sum(grade / np.log2(n + 2) for n, grade in enumerate(ideal))
    documents = [name(chunk) for chunk in joined.chunks]
    names, codes = np.unique(documents, return_inverse=True)
    found = [n for n, document in enumerate(names) if document in relevant]
    if not found:
        return np.zeros(len(grid))
    weights = np.array([[how.weight(legs.legibility)] for how in grid])
    totals = joined.totals(weights, np.array([[how.neighbours] for how in grid]))
    # A document counts by its best chunk.
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(names)))
    scores = np.maximum.reduceat(totals[:, order], starts, axis=1)
    gains = np.zeros(len(grid))
    hits = np.zeros(len(grid))
    for n in found:
        rank = (scores > scores[:, [n]]).sum(1)
        near = rank < _DEPTH
        gains += near * relevant[str(names[n])] / np.log2(rank + 2)
        hits += near
    return np.asarray((gains / best + hits / len(relevant)) / 2)


def _choose(figures: Figures, near: Figures) -> int:
    """The best column, each averaged with those near it."""
    return int((near @ figures.mean(0)).argmax())


def _nearness(grid: Sequence[Fusion]) -> Figures:
    """How much each combination counts in the average of each other: 1 a row, less with distance.

    A Gaussian, one step of the grid wide.
    """
    steps = np.array([(how.dense * 10, how.feedback * 4, how.neighbours * 4) for how in grid])
    apart = ((steps[:, None] - steps) ** 2).sum(2)
    weights = np.exp(-apart / 2)
    return np.asarray(weights / weights.sum(1, keepdims=True))
