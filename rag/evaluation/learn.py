"""What a collection is taught by questions, and keeps: how it is searched, and when to abstain."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

from rag import evidence, fusion
from rag.evaluation import abstain
from rag.evaluation.abstain import Calibrated, calibrate
from rag.evaluation.dataset import Dataset
from rag.evaluation.tune import Tuning, tune
from rag.evidence import Calibration
from rag.protocols import VectorStore
from rag.retrieve import Retriever, SearchOptions

Show: TypeAlias = Callable[[str, str], AbstractContextManager[Callable[[int, int], None]]]
"""Gets what is done and to what ("tried", "questions"), and gives what to tell (done, of) to."""


def learn(
    retriever: Retriever,
    dataset: Dataset | None,
    present: Calibration,
    *,
    k: int,
    options: SearchOptions,
    min_evidence: float,
    keep: bool,
    show: Show,
) -> tuple[Tuning, Calibrated | None]:
    """How the two legs of a retriever's collection are joined, and its evidence is weighed.

    From a dataset's questions; without one from questions made out of the documents. The second is
    None without enough unanswerable questions. `present` is the calibration that the collection
    has; `k`, `options` and `min_evidence` are how questions are answered. What is better is kept
    with the collection if `keep` says so. Raises InputError for too few questions.
    """
    with show("tried", "questions") as progress:
        learnt = tune(retriever, dataset, progress)
    notes = {fusion.NOTE: learnt.fusion.to_json()} if learnt.changed else {}
    weighed = None
    if dataset and len(dataset.unanswerable) >= abstain.LEAST:
        with show("weighed", "questions") as progress:
            weighed = calibrate(
                retriever.joined_by(learnt.fusion),  # evidence is of what is then found
                dataset,
                present,
                k=k,
                options=options,
                min_evidence=min_evidence,
                progress=progress,
            )
        if weighed.changed:
            notes[evidence.NOTE] = weighed.calibration.to_json()
    if notes and keep:
        retriever.store.annotate(notes)
    return learnt, weighed


def forget(store: VectorStore) -> None:
    """Search a collection, and weigh what is found, with the defaults again."""
    store.annotate({fusion.NOTE: "", evidence.NOTE: ""})
