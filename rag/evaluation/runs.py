"""TREC run files: `query Q0 document rank score tag`, a line for each document found."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from rag.errors import InputError
from rag.evaluation.files import lines, malformed
from rag.types import Chunk, Hit

Run = dict[str, list[tuple[str, float]]]
"""Query id -> (document id, score), best first."""

_PLAIN = string.punctuation.replace("%", "")  # the rest is percent-encoded: columns end at a space


def documents(hits: Iterable[Hit], name: Callable[[Chunk], str]) -> list[tuple[str, float]]:
    """The documents of these hits, each by its best chunk, in the order of the hits."""
    best: dict[str, float] = {}
    for hit in hits:
        best.setdefault(name(hit.chunk), hit.score)
    return list(best.items())


def write(path: Path, run: Mapping[str, Sequence[tuple[str, float]]], tag: str) -> None:
    """Write a run. Scores decrease strictly, so that every program reads the same order."""
    try:
        with path.open("w", encoding="utf-8") as file:
            for query, found in run.items():
                above = np.float32(np.inf)
                for rank, (document, score) in enumerate(found, start=1):
                    above = _below(above, score)
                    ids = quote(query, safe=_PLAIN), quote(document, safe=_PLAIN)
                    file.write(f"{ids[0]} Q0 {ids[1]} {rank} {above:.9g} {tag}\n")
    except OSError as error:
        raise InputError(
            f"the run cannot be written to {path} ({error.strerror})", "name another file"
        ) from error


def read(path: Path) -> Run:
    """A run, ordered by score, then by rank. InputError for what is none."""
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for number, line in lines(path):
        columns = line.split()
        try:
            query, _, document, rank, score, _ = columns
            place = -float(score), int(rank)
        except ValueError as error:
            malformed(path, number, "is not: query Q0 document rank score tag", error)
        seen = found.setdefault(unquote(query), {})
        if math.isnan(place[0]) or seen.setdefault(unquote(document), place) is not place:
            malformed(path, number, "has no score, or a document that the query has already")
    if not found:
        raise InputError(f"{path} holds no run", "write one with: rag eval ... --run FILE")
    return {
        query: [
            (document, -places[document][0]) for document in sorted(places, key=places.__getitem__)
        ]
        for query, places in found.items()
    }


def common(baseline: Run, queries: Iterable[str], path: Path) -> set[str]:
    """The queries that a baseline shares with this evaluation. InputError if there are none."""
    shared = baseline.keys() & set(queries)
    if not shared:
        raise InputError(
            f"{path} is a run of other queries: none of them is judged here",
            "give a run of the same dataset",
        )
    return shared


def _below(above: np.float32, score: float) -> np.float32:
    """The score, or the next smaller number of float32, which is what trec_eval keeps."""
    return min(np.float32(score), np.nextafter(above, np.float32(-np.inf)))
