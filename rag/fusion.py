"""Dense and keyword search, joined: one score for each chunk that either of them found.

Each leg's scores are put on one scale (deviations from the mean of its best, as in z-score fusion:
Wu, Crestani and Bi 2006), and added by weight. A chunk gains from its neighbours in the document:
where one passage matches the meaning and the next the words, both are about the question. Plain
reciprocal rank fusion throws the distances away: on scifact it reaches nDCG@10 .696, this .725.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, pstdev
from typing import TypeAlias

from rag.types import Chunk, Hit, Leg

_FLOOR = -2.0  # deviations; a leg's worst says little about how bad it is
_WINDOW = 2  # positions before and after that count as neighbours
_FEW = 10  # hits, that a leg must have to be its own measure
_LEAST = 0.02  # of a leg that cannot tell: it orders what the other does not find

Place: TypeAlias = tuple[str, str, int]


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
    candidates: int = 200

    def weight(self, legibility: float) -> float:
        """The weight of the dense leg for a question of which the embedder reads so much, 0 to 1.

        Half unread is unread: of a Chinese question an English model still knows punctuation.
        """
        read = max(0.0, 2 * legibility - 1)
        return min(max(self.dense * read, _LEAST), 1 - _LEAST)

    def to_json(self) -> str:
        """As it is kept with a collection."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Fusion:
        """What `to_json` gave; the defaults for what is not that."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return cls()


def fuse(dense: Sequence[Hit], keyword: Sequence[Hit], weight: float, how: Fusion) -> list[Hit]:
    """The hits of both legs, best first; ties by chunk id. `weight` is that of the dense leg."""
    chunks: dict[Place, Chunk] = {}
    places: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for hit in (*dense, *keyword):
        place = _place(hit.chunk)
        if place not in chunks:
            chunks[place] = hit.chunk
            places[place[:2]].append(place[2])
    totals = dict.fromkeys(chunks, 0.0)
    legs: defaultdict[Place, list[Leg]] = defaultdict(list)
    for name, hits, share in (("dense", dense, weight), ("keyword", keyword, 1 - weight)):
        standing, least = _standing(hits, absent=0.0 if name == "keyword" else None)
        for place in chunks:
            own = standing.get(place, least)
            document = place[:2]
            near = (
                standing.get((*document, position), least)
                for position in places[document]
                if abs(position - place[2]) <= _WINDOW
            )
            totals[place] += share * (own + how.neighbours * (max(near) - own))
        for rank, hit in enumerate(hits, start=1):
            legs[_place(hit.chunk)].append(Leg(name, rank, hit.score, share))
    order = sorted(chunks, key=lambda place: (-round(totals[place], 6), chunks[place].id))
    return [Hit(chunks[place], totals[place], tuple(legs[place])) for place in order]


def single(hits: Sequence[Hit], name: str) -> list[Hit]:
    """The hits of one leg alone, with where they came from."""
    return [replace(h, legs=(Leg(name, n, h.score, 1.0),)) for n, h in enumerate(hits, start=1)]


def _standing(hits: Sequence[Hit], absent: float | None) -> tuple[dict[Place, float], float]:
    """Each chunk's score in deviations from the mean of the leg, and what those not found get.

    `absent` is the score of what was not found, if that is known: then a single hit stands out.
    """
    if not hits:
        return {}, 0.0
    scores = [hit.score for hit in hits]
    few = absent is not None and len(hits) < _FEW
    if few:
        scores += [absent or 0.0] * (_FEW - len(scores))
    mean, deviation = fmean(scores), pstdev(scores) or 1.0
    standing = {_place(hit.chunk): max((hit.score - mean) / deviation, _FLOOR) for hit in hits}
    return standing, (scores[-1] - mean) / deviation if few else min(standing.values())


def _place(chunk: Chunk) -> Place:
    # A document may have two versions for the moment in which one replaces the other.
    return chunk.document_id, chunk.version, chunk.position
