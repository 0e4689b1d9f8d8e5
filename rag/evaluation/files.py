"""The files of an evaluation, line by line; what is malformed is told with its line number."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from rag.errors import InputError
from rag.retrieve import check_question


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that is not blank, of a file that may be compressed (.gz).

    Raises InputError for what cannot be read, or is not UTF-8.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
                if text.strip():
                    yield number, text
    except UnicodeDecodeError as error:
        malformed(path, number or 1, "is not UTF-8", error)
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason})", "check the path") from error


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line of a file of JSON objects."""
    for number, line in lines(path):
        try:
            record = json.loads(line)
            line.encode()
            json.dumps(record, ensure_ascii=False).encode()  # refuses halves of characters
        except (ValueError, RecursionError) as error:
            malformed(path, number, "is not a JSON object", error)
        if not isinstance(record, dict):
            malformed(path, number, "is not a JSON object")
        yield number, record


def records(path: Path) -> Iterator[tuple[int, dict[str, Any], str, str]]:
    """(line number, object, its `_id`, its `text`) of each line of a file of JSON objects."""
    for number, record in objects(path):
        name, text = id_of(path, number, record.get("_id")), record.get("text")
        if not isinstance(text, str):
            malformed(path, number, 'has no "text"')
        yield number, record, name, text


def id_of(path: Path, number: int, name: object) -> str:
    """The `_id` of a line as text. Raises InputError that names the line, for none."""
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    if not isinstance(name, str) or not name:
        malformed(path, number, 'has no "_id"')
    return name


def check_line(path: Path, number: int, question: object) -> str:
    """The question of a line. Raises InputError that names the line, for what cannot be asked."""
    if not isinstance(question, str):
        malformed(path, number, "has a question that is not text")
    try:
        check_question(question)
    except InputError as error:
        malformed(path, number, f"cannot be asked: {error.message}", error)
    return question


def malformed(path: Path, number: int, wrong: str, error: Exception | None = None) -> NoReturn:
    """Raise InputError for a line."""
    raise InputError(f"{path}, line {number} {wrong}", "mend the line") from error


def one_of(folder: Path, *names: str) -> Path:
    """The first of these files that the folder holds. InputError for none."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder} holds no {' or '.join(names)}", "BEIR's layout is needed")


def counted(counts: Mapping[str, int]) -> tuple[str, ...]:
    """A line for each thing that was counted at least once."""
    return tuple(f"{what}: {count}" for what, count in counts.items() if count)
