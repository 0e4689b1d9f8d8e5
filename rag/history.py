"""A conversation in a file: a line of JSON for each answer, as `rag ask --json` gives it."""

from __future__ import annotations

import json
from pathlib import Path

from rag.errors import InputError
from rag.evaluation.files import malformed, objects
from rag.types import Answer, Turn


def read(path: Path) -> list[Turn]:
    """The turns so far, the latest last; none if there is no such file yet.

    Raises InputError that names the line which is no turn.
    """
    turns = []
    for number, record in objects(path) if path.exists() else ():
        question, answer = record.get("question"), record.get("answer")
        if not (isinstance(question, str) and isinstance(answer, str)):
            malformed(path, number, 'has no "question" and "answer"')
        turns.append(Turn(question, answer))
    return turns


def append(path: Path, answer: Answer) -> None:
    """Add the turn. Raises InputError if the file cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(answer.to_json(), ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error})", "name another --history") from error
