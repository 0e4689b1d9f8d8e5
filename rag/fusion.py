"""Dense and keyword search, joined: one score for each chunk that either of them found.

Each leg's scores are put on one scale (deviations from the mean of its best, as in z-score fusion:
Wu, Crestani and Bi 2006), and added by weight. A chunk gains from its neighbours in the document:
where one passage matches the meaning and the next the words, both are about the question. Plain
reciprocal rank fusion throws the distances away: on scifact it reaches nDCG@10 .714, this .733.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from rag.types import Chunk, Hit, Leg

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

NOTE = "fusion"
"""The note of a collection that says how its legs are joined, where that was learnt."""

_FLOOR = -2.0  # deviations; a leg's worst says little about how bad it is
_WINDOW = 2  # positions before and after that count as neighbours
_FEW = 10  # hits, that a leg must have to be its own measure
_LEAST = 0.02  # of a leg that cannot tell: it orders what the other does not find

Figures: TypeAlias = "NDArray[np.float64]"


@dataclass(frozen=True, slots=True)
class Fusion:
    """How a collection's two legs are joined. The defaults were chosen on no collection's queries
    alone: see CONTRIBUTING.md; `rag tune` learns them for one.

    `dense` is the weight of the dense leg, 0 to 1, in text that the embedder reads; the keyword leg
    has the rest. `feedback` is how much of the mean vector of the first hits is added to the
    question's before the dense leg searches again (Rocchio 1971); 0 for never. `neighbours` is how
    much of a chunk's standing comes from the best within two positions of it. `candidates` is how
    many hits of each leg are looked at.
    """

    dense: float = 0.5
    feedback: float = 0.5
    neighbours: float = 0.75
    candidates: int = 100

    def __post_init__(self) -> None:
        for share in (self.dense, self.feedback, self.neighbours):
            if not isinstance(share, int | float) or not 0 <= share <= 1:
                raise ValueError(f"{share!r} is not between 0 and 1")
        if not isinstance(self.candidates, int) or not 1 <= self.candidates <= 10_000:
            raise ValueError(f"{self.candidates!r} is not between 1 and 10,000")

    def weight(self, legibility: float) -> float:
        """The weight of the dense leg for a question of which the embedder reads so much, 0 to 1.

        A third unread is unread: an English model knows some Chinese characters, but no Chinese.
        """
        read = max(0.0, 1 - 3 * (1 - legibility))
        return min(max(self.dense * read, _LEAST), 1 - _LEAST)

    def to_json(self) -> str:
        """As it is kept with a collection."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Fusion:
        """What `to_json` gave. ValueError for anything else."""
        try:
            return cls(**json.loads(text))
        except (TypeError, RecursionError) as error:
            raise ValueError("no fusion") from error


def fuse(
    dense: Sequence[Hit], keyword: Sequence[Hit], weight: float, how: Fusion, k: int | None = None
) -> list[Hit]:
    """The `k` best hits of both legs, or all; ties by chunk id. `weight` is the dense leg's."""
    joined = Joined(dense, keyword)
    totals = joined.totals(weight, how.neighbours)
    rounded = np.round(totals, 6)
    chunks = joined.chunks
    best: Sequence[int] = range(len(chunks))
    if k is not None and k < len(chunks):
        best = np.flatnonzero(rounded >= np.partition(rounded, -k)[-k]).tolist()
    order = sorted(best, key=lambda row: (-rounded[row], chunks[row].id))
    legs = ("dense", weight, dense), ("keyword", 1 - weight, keyword)
    ranks = [
        (name, share, {row: n for n, row in reversed(list(enumerate(rows)))}, hits)
        for (name, share, hits), rows in zip(legs, joined.rows, strict=True)
    ]
    return [
        Hit(
            chunks[row],
            float(totals[row]),
            tuple(
                Leg(name, at[row] + 1, hits[at[row]].score, share)
                for name, share, at, hits in ranks
                if row in at
            ),
        )
        for row in order[:k]
    ]


class Joined:
    """The chunks that two legs found for a question, and how each leg sees them.

    `chunks` has each once; `rows` where each leg's hits stand in it.
    """

    def __init__(self, dense: Sequence[Hit], keyword: Sequence[Hit]) -> None:
        chunks = {hit.chunk.id: hit.chunk for hit in (*dense, *keyword)}
        rows = {chunk_id: row for row, chunk_id in enumerate(chunks)}
        self.chunks = list(chunks.values())
        self.rows = [[rows[hit.chunk.id] for hit in hits] for hits in (dense, keyword)]
        self._own = [
            _standing(dense, self.rows[0], len(rows), absent=None),
            _standing(keyword, self.rows[1], len(rows), absent=0.0),
        ]
        self._gain = _gains(self.chunks, self._own)

    def totals(self, weight: ArrayLike, neighbours: ArrayLike) -> Figures:
        """The score of each chunk, shape (chunks,); for weights of shape (n, 1), (n, chunks)."""
        weight, share = np.asarray(weight), np.asarray(neighbours)
        dense, keyword = (
            own + share * gain for own, gain in zip(self._own, self._gain, strict=True)
        )
        return np.asarray(weight * dense + (1 - weight) * keyword)


def single(hits: Sequence[Hit], name: str) -> list[Hit]:
    """The hits of one leg alone, with where they came from."""
    return [replace(h, legs=(Leg(name, n, h.score, 1.0),)) for n, h in enumerate(hits, start=1)]


def _standing(
    hits: Sequence[Hit], rows: Sequence[int], count: int, absent: float | None
) -> Figures:
    """For each of `count` rows the leg's score in deviations from its mean.

    Rows that the leg did not find stand where its last hit does. `absent` is their score, if that
    is known: with it a few hits stand out from what is not there.
    """
    if not hits:
        return np.zeros(count)
    scores = np.array([hit.score for hit in hits])
    few = absent is not None and len(hits) < _FEW
    measured = np.append(scores, [absent or 0.0] * (_FEW - len(hits))) if few else scores
    deviation = float(measured.std()) or 1.0
    found = np.maximum((scores - measured.mean()) / deviation, _FLOOR)
    least = (measured[-1] - measured.mean()) / deviation if few else found.min()
    standing = np.full(count, float(least))
    standing[list(rows)] = found
    return standing


def _gains(chunks: Sequence[Chunk], standings: Sequence[Figures]) -> list[Figures]:
    """For each leg and chunk: by how much the best of its neighbours in the document is better."""
    documents: dict[tuple[str, str], int] = {}  # of two versions for the moment of an update
    codes = [documents.setdefault((c.document_id, c.version), len(documents)) for c in chunks]
    code, position = np.array(codes, np.int64), np.array([c.position for c in chunks], np.int64)
    order = np.lexsort((position, code))
    code, position = code[order], position[order]
    gains = []
    for standing in standings:
        own = standing[order]
        best = own.copy()
        for step in range(1, min(_WINDOW + 1, len(own))):
            near = (code[step:] == code[:-step]) & (position[step:] - position[:-step] <= _WINDOW)
            np.maximum(best[:-step], own[step:], out=best[:-step], where=near)
            np.maximum(best[step:], own[:-step], out=best[step:], where=near)
        gain = np.empty(len(own))
        gain[order] = best - own
        gains.append(gain)
    return gains
