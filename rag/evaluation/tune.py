"""Learns how a collection's two legs are joined, from questions whose documents are known.

Every combination on a grid is tried on what the two legs find. Each is averaged with those around
it before the best is taken, for the best single one owes much to chance; and that only if it is
better on questions that it was not chosen on (five-fold cross-validation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    if dataset is None:
        margin = _MARGIN_CLOZE
        part, dataset, name = cloze(retriever.store, retriever.embedder)
        retriever = retriever.over(part)
    else:
        margin = _MARGIN
        dataset, name = judged_in(dataset, retriever.store)
    check_enough(dataset)
    asked = sample(list(dataset.queries), _MOST)
    present = retriever.fusion
    grid = [replace(how, candidates=present.candidates) for how in _GRID]
    grid = [present, *(how for how in grid if how != present)]
    rows = _measured(retriever, dataset, asked, grid, name, progress)
    figures = np.concatenate(list(rows))
    near = _nearness(grid)
    chosen, before, after = _choose(figures, near), figures[:, 0], _held_out(figures, near)
    gains = after - before
    better = chosen != 0 and gains.mean() > margin * gains.std(ddof=1) / np.sqrt(len(gains))
    return Tuning(
        grid[chosen] if better else present,
        float(before.mean()),
        float((after if better else before).mean()),
        bool(better),
        len(asked),
        dataset.name,
        dataset.remarks,
    )


def check_enough(dataset: Dataset) -> None:
    """Raise InputError for fewer than `LEAST` questions."""
    if len(dataset.queries) < LEAST:
        raise InputError(
            f"{dataset.name}: {len(dataset.queries)} questions are too few to learn from",
            f"give {LEAST} or more with --queries and --qrels",
        )


def _measured(
    retriever: Retriever,
    dataset: Dataset,
    asked: Sequence[str],
    grid: Sequence[Fusion],
    name: Callable[[Chunk], str],
    progress: Callable[[int, int], None],
) -> Iterator[Figures]:
    """What each combination is worth for each question, shape (questions, grid), in batches."""
    feedback = sorted({how.feedback for how in grid})
    columns = [[n for n, how in enumerate(grid) if how.feedback == amount] for amount in feedback]
    for start in range(0, len(asked), _BATCH):
        some = asked[start : start + _BATCH]
        found = retriever.legs([dataset.queries[query] for query in some], feedback)
        figures = np.zeros((len(some), len(grid)))
        for legs, those in zip(found, columns, strict=True):
            for row, (query, one) in enumerate(zip(some, legs, strict=True)):
                hows = [grid[n] for n in those]
                figures[row, those] = _figures(one, dataset.qrels[query], hows, name)
        progress(start + len(some), len(asked))
        yield figures


def _held_out(figures: Figures, near: Figures) -> Figures:
    """For each question what the combination is worth that was chosen on other questions."""
    folds = np.arange(len(figures)) % _FOLDS
    after = np.zeros(len(figures))
    for fold in range(_FOLDS):
        chosen = _choose(figures[folds != fold], near)
        after[folds == fold] = figures[folds == fold, chosen]
    return after


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
    # Copies of a document tie; a search gives only one of them.
    return np.asarray((np.minimum(gains / best, 1) + hits / len(relevant)) / 2)


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
