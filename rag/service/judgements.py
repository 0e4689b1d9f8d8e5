"""Ratings of answers as judgements that `rag eval` measures a collection with."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rag.errors import InputError
from rag.service.feedback import Passage, Rating


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: `questions` with `judgements`, and lines in comments.jsonl.

    `left_out` are answers that were rated up and cite no document that the collection holds now.
    """

    queries: Path
    qrels: Path
    comments: Path
    questions: int
    judgements: int
    commented: int
    left_out: int


def export(ratings: Sequence[Rating], sources: Mapping[str, str], folder: Path) -> Exported:
    """Write queries.jsonl, qrels/test.tsv and comments.jsonl into the folder.

    `sources` has those of the collection's documents by id. The documents that an answer cites are
    relevant to its question if it was rated up; one that was rated down says nothing of them, and
    is listed in comments.jsonl with all that were commented, for people to look at. A question
    that was asked several times is one. Raises InputError where the folder cannot be written.
    """
    texts: dict[str, str] = {}
    relevant: dict[str, set[str]] = {}
    left_out = 0
    for rating in ratings:
        if rating.rating == "up":
            cited = {source for source in _sources(rating.answer.cited, sources) if _fits(source)}
            if cited:
                query = _query_id(rating)
                texts.setdefault(query, rating.answer.question)
                relevant.setdefault(query, set()).update(cited)
            left_out += not cited
    commented = [rating for rating in ratings if rating.rating == "down" or rating.comment]
    commented.sort(key=lambda rating: rating.rating)  # "down" first
    queries = [json.dumps({"_id": q, "text": t}, ensure_ascii=False) for q, t in texts.items()]
    qrels = [f"{q}\t{source}\t1" for q, found in relevant.items() for source in sorted(found)]
    comments = [json.dumps(_told(rating, sources), ensure_ascii=False) for rating in commented]
    done = Exported(
        folder / "queries.jsonl",
        folder / "qrels/test.tsv",
        folder / "comments.jsonl",
        len(queries),
        len(qrels),
        len(comments),
        left_out,
    )
    try:
        _write(done.queries, queries)
        _write(done.qrels, ["query-id\tcorpus-id\tscore", *qrels])
        _write(done.comments, comments)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror or error})", "name another folder"
        ) from error
    return done


def _query_id(rating: Rating) -> str:
    """The same for a question however it was typed, and in every export."""
    plain = unicodedata.normalize("NFKC", " ".join(rating.answer.question.split())).casefold()
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def _sources(passages: Iterable[Passage], sources: Mapping[str, str]) -> list[str]:
    """Where the passages come from, each once; documents that are gone are left out."""
    return list(dict.fromkeys(sources[doc] for doc, _ in passages if doc in sources))


def _fits(source: str) -> bool:
    return not set(source) & set("\t\n")  # which end a column, and a line


def _told(rating: Rating, sources: Mapping[str, str]) -> dict[str, object]:
    return {
        "query": _query_id(rating),
        "question": rating.answer.question,
        "rating": rating.rating,
        "comment": rating.comment,
        "cited": _sources(rating.answer.cited, sources),
        "found": _sources(rating.answer.found, sources),
        "model": rating.answer.model,
        "answer": rating.answer.request_id,
        "rated_at": round(rating.rated_at),
    }


def _write(path: Path, lines: Sequence[str]) -> None:
    """The file whole, or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
