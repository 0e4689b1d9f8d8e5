"""Fits the weights of `rag.evidence` to one collection, from questions with and without an answer.

A logistic regression that is held near the default weights (a Gaussian prior), so that a few
questions move it a little. Learnt from 20 of each kind, the errors on all others, the mean of both
kinds, were 11 % on XQuAD, where a threshold learnt alone left 16; on SciFact 8 and 11, on CMRC 14
and 17, on ClapNQ itself, whose weights the default ones are, 20 and 20. Kept only if it is better
on questions not learnt from (five-fold cross-validation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from rag.evaluation.dataset import Dataset, sample
from rag.evidence import Calibration
from rag.retrieve import Retriever, SearchOptions
from rag.signals import signals

LEAST = 20  # questions of each kind; fewer tell nothing
_MOST = 1_000  # of each kind
_FOLDS = 5
_BATCH = 64
_MARGIN = 0.5  # standard errors: more likely better than not
# How far each weight is held: five over the variance that its signal has on ClapNQ, so that they
# are held alike. The constants are free, as far as the questions tell of them.
_FREE = 0.01
_HELD = 5 * np.array([0.14, 0.19, 0.33, 0.21, 0.2, 0, 0.33, 0.2, 0.2, 0, 0.3]) ** 2 + _FREE

Figures = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rates:
    """The shares of unanswerable questions that are answered and of answerable ones refused."""

    false_answers: float
    false_refusals: float


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What was learnt from so many questions of each kind.

    `after` is on questions not learnt from. `calibration` is what to use now; what the collection
    had, where nothing better was found.
    """

    calibration: Calibration
    before: Rates
    after: Rates
    changed: bool
    answerable: int
    unanswerable: int


def calibrate(
    retriever: Retriever,
    dataset: Dataset,
    present: Calibration,
    *,
    k: int,
    options: SearchOptions,
    min_evidence: float,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Calibrated:
    """The calibration for a retriever's collection; `present` is the one that it has.

    Both kinds of error weigh the same: what is made small is the mean of the two `Rates`, of
    answers from `k` hits and with the least evidence that is set. At least `LEAST` questions of
    each kind are needed.
    """
    can, cannot = (
        sample(list(some.values()), _MOST) for some in (dataset.queries, dataset.unanswerable)
    )
    answerable = np.arange(len(can) + len(cannot)) < len(can)
    rows = np.concatenate(list(_weighed(retriever, [*can, *cannot], k, options, progress)))

    def errors(calibration: Calibration, some: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.asarray((calibration.evidence(rows[some]) >= min_evidence) != answerable[some])

    before = errors(present, np.full(len(rows), True))
    after = np.zeros(len(rows), bool)
    folds = np.arange(len(rows)) % _FOLDS
    for fold in range(_FOLDS):
        held_out = folds == fold
        after[held_out] = errors(fitted(rows[~held_out], answerable[~held_out]), held_out)
    gains = _even(answerable) * (before.astype(float) - after)
    changed = bool(gains.mean() > _MARGIN * gains.std(ddof=1) / np.sqrt(len(gains)))
    return Calibrated(
        fitted(rows, answerable) if changed else present,
        _rates(before, answerable),
        _rates(after if changed else before, answerable),
        changed,
        len(can),
        len(cannot),
    )


def fitted(rows: Figures, answerable: NDArray[np.bool_]) -> Calibration:
    """The weights that tell the answerable rows of signals from the others, both kinds alike.

    Newton's method with a fixed bound of the curvature, so that each step descends (Böhning and
    Lindsay 1988).
    """
    start = np.array(astuple(Calibration()))
    even = _even(answerable)
    bound = np.linalg.inv((rows.T * even) @ rows / 4 + np.diag(_HELD))
    weights = start.copy()
    for _ in range(1_000):
        likely = 1 / (1 + np.exp(-np.clip(rows @ weights, -50, 50)))
        step = bound @ (rows.T @ (even * (likely - answerable)) + _HELD * (weights - start))
        weights -= step
        if np.abs(step).max() < 1e-5:
            break
    return Calibration(*np.round(weights, 4).tolist())


def _weighed(
    retriever: Retriever,
    questions: list[str],
    k: int,
    options: SearchOptions,
    progress: Callable[[int, int], None],
) -> Iterator[Figures]:
    """The signals of the questions, in batches."""
    for start in range(0, len(questions), _BATCH):
        some = questions[start : start + _BATCH]
        yield signals(some, retriever.search_many(some, k, None, options), retriever)
        progress(start + len(some), len(questions))


def _even(answerable: NDArray[np.bool_]) -> Figures:
    """The weight of each question with which both kinds weigh the same; the mean is one."""
    share = answerable.mean()
    return np.asarray(np.where(answerable, 0.5 / share, 0.5 / (1 - share)))


def _rates(errors: NDArray[np.bool_], answerable: NDArray[np.bool_]) -> Rates:
    return Rates(float(errors[~answerable].mean()), float(errors[answerable].mean()))
