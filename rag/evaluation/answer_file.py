"""A file of answers, JSON lines, that grows as they come and is gone on with after a crash."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rag.errors import InputError
from rag.evaluation.questions import Question
from rag.types import Answer

_BEGINNING = b'{"_id": "'


class _Row(NamedTuple):
    id: str
    question: str
    failed: bool


class AnswerFile:
    """Answers by `_id`, in the order in which they were given, at `path`."""

    def __init__(self, path: Path) -> None:
        """Raises InputError for a path where no file can be."""
        self._path = path.resolve()  # a link stays a link
        usable = path.is_file() if path.exists() else self._path.parent.is_dir()
        if not usable:
            raise InputError(f"{path} cannot be written", "name a file in a folder that is there")

    def begin(self, questions: Sequence[Question]) -> list[Question]:
        """The questions that have no answer here yet.

        An answer to another text under the same `_id`, one whose generator had failed and a line
        that was broken off are removed from the file, and so asked again. Answers to questions that
        are not among these stay. Raises InputError for a file that holds anything but answers; it
        is left as it is.
        """
        wanted = {question.id: question.text for question in questions}
        answered: set[str] = set()
        gone: set[int] = set()
        for number, row in self._rows():
            current = row and wanted.get(row.id, row.question) == row.question
            if row and current and not row.failed and row.id not in answered:
                answered.add(row.id)
            else:
                gone.add(number)
        if gone:
            self._remove(gone)
        return [question for question in questions if question.id not in answered]

    @contextmanager
    def appending(self) -> Iterator[Callable[[str, Answer], None]]:
        """What adds the answer to the question of an `_id`; it is in the file when this returns."""
        with self._failing():
            # Half a character, which a model may write, becomes an escape of JSON.
            file = self._path.open("a", encoding="utf-8", errors="backslashreplace")

        def append(name: str, answer: Answer) -> None:
            row = {"_id": name, **answer.to_json()}
            with self._failing():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()

        with file:
            yield append

    def _rows(self) -> Iterator[tuple[int, _Row | None]]:
        """(number, row) of each line; None for a last one that was broken off."""
        if not self._path.exists():
            return
        with self._failing(), self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                row = _row(line)
                if row is None and not _is_broken_off(line):
                    raise InputError(
                        f"{self._path}, line {number} is no answer of rag answer",
                        "name another --out",
                    )
                yield number, row if line.endswith(b"\n") else None

    def _remove(self, gone: set[int]) -> None:
        part = self._path.with_name(f".{self._path.name}.part")
        try:
            with self._failing():
                with self._path.open("rb") as old, part.open("wb") as new:
                    new.writelines(
                        line for number, line in enumerate(old, start=1) if number not in gone
                    )
                part.replace(self._path)
        finally:
            part.unlink(missing_ok=True)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self._path} cannot be written ({error.strerror})", "name another --out"
            ) from error


def _row(line: bytes) -> _Row | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match value:
        case {"_id": str(name), "question": str(text), "answer": str(), "degraded": list(failed)}:
            return _Row(name, text, "generator" in failed)
    return None


def _is_broken_off(line: bytes) -> bool:
    """Whether a line is the beginning of an answer."""
    if line.endswith(b"\n"):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return line.startswith(_BEGINNING) or _BEGINNING.startswith(line)
    return False
