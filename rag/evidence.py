"""How likely what was found holds an answer to a question; with too little of it, to abstain.

A logistic regression on a few signals. A passage that is near a question in meaning is about the
same subject, and need not say what is asked of it; so two of the signals leave out the subject, as
far as the title of the document names it. The default weights were fitted on half of ClapNQ's dev
set: 300 natural questions, half of them unanswerable, each beside a tempting passage
(all-MiniLM-L6-v2, hybrid search). On the other half the area under the ROC curve is .91, that of
the best cosine .87. `rag tune` fits them to a collection.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, astuple, dataclass, fields
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from rag.signals import signals

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rag.retrieve import Retrieved, Retriever

NOTE = "abstain"
"""The note of a collection that says how evidence is weighed in it, where that was learnt."""

Figures: TypeAlias = "NDArray[np.float64]"


@dataclass(frozen=True, slots=True)
class Calibration:
    """What each of the `rag.signals` counts, in log odds; the defaults are those of the module.

    The constants assume that six questions in seven have an answer, until a collection is
    calibrated: it refuses too little rather than too much.
    """

    similarity: float = 6.8
    beyond_title: float = 4.9
    rest: float = 1.1
    together: float = 1.8
    lead: float = 0.8
    constant: float = -5.7
    words_rest: float = 1.1
    words_together: float = 3.1
    words_lead: float = 3.6
    words_constant: float = -1.9
    unknown: float = -2.3

    def __post_init__(self) -> None:
        for weight in astuple(self):
            if not isinstance(weight, int | float) or not math.isfinite(weight):
                raise ValueError(f"{weight!r} is not a number")

    def evidence(self, rows: Figures) -> Figures:
        """How likely there is an answer, 0 to 1, of each row of signals; 0 for one of zeros."""
        odds = np.clip(rows @ np.array(astuple(self)), -50, 50)
        return np.asarray(np.where(rows.any(axis=1), 1 / (1 + np.exp(-odds)), 0.0))

    def to_json(self) -> str:
        """As it is kept with a collection."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """What `to_json` gave. ValueError for anything else."""
        try:
            return cls(**json.loads(text))
        except (TypeError, RecursionError) as error:
            raise ValueError("no calibration") from error


DEFAULT = Calibration()
NAMES = tuple(field.name for field in fields(Calibration))


def weigh(
    question: str, found: Retrieved, retriever: Retriever, calibration: Calibration = DEFAULT
) -> float:
    """How likely the hits hold an answer to the question, 0 to 1; 0 where nothing was found.

    `retriever` is what found them. Raises StoreUnavailable, ModelError.
    """
    return float(calibration.evidence(signals([question], [found], retriever))[0])
