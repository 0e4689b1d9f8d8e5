"""Every question of a queries file, answerable or not, with what is known of its answer.

A line is a JSON object: `text` (or `question`); `_id`, otherwise the number of the line; `answers`,
a gold answer or a list of them, and `answerable`, true or false, there or in `metadata`; `earlier`,
the turns before it, each a question or {"question": …, "answer": …}, the latest last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rag.errors import InputError
from rag.evaluation.files import check_line, id_of, malformed, objects
from rag.types import Turn


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its gold answers, and whether the documents answer it; None if nobody said."""

    id: str
    text: str
    answers: tuple[str, ...] = ()
    answerable: bool | None = None
    earlier: tuple[Turn, ...] = ()


def read(path: Path) -> list[Question]:
    """The questions of a file, in its order. Raises InputError that names the line at fault."""
    found: dict[str, Question] = {}
    for number, record in objects(path):
        line = _Line(path, number, record)
        question = line.question()
        if question.id in found:
            line.wrong(f"has the _id {question.id[:50]!r} of a line before it")
        found[question.id] = question
    if not found:
        raise InputError(f"{path} holds no questions", 'write {"_id": "1", "text": "…"} a line')
    return list(found.values())


@dataclass(frozen=True, slots=True)
class _Line:
    path: Path
    number: int
    record: Mapping[str, Any]

    def question(self) -> Question:
        text = self.record.get("text", self.record.get("question"))
        if text is None:
            self.wrong('has no "text"')
        answers = tuple(answer for answer in self._answers() if answer.strip())
        answerable = self._answerable()
        return Question(
            id_of(self.path, self.number, self.record.get("_id", self.number)),
            check_line(self.path, self.number, text),
            answers,
            True if answers and answerable is None else answerable,
            self._earlier(),
        )

    def wrong(self, what: str) -> NoReturn:
        malformed(self.path, self.number, what)

    def _answers(self) -> Sequence[str]:
        given = self._told("answers")
        if given is None:
            return []
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            self.wrong('has "answers" that are not a list of texts')
        return texts

    def _answerable(self) -> bool | None:
        value = self._told("answerable")
        if value is not None and not isinstance(value, bool):
            self.wrong('has an "answerable" that is neither true nor false')
        return value

    def _told(self, name: str) -> Any:
        """A field of the line, or of its metadata."""
        metadata = self.record.get("metadata")
        held = metadata if isinstance(metadata, dict) else {}
        return self.record.get(name, held.get(name))

    def _earlier(self) -> tuple[Turn, ...]:
        given = self.record.get("earlier") or []
        if not isinstance(given, list):
            self.wrong('has an "earlier" that is not a list')
        return tuple(self._turn(turn) for turn in given if turn != "")

    def _turn(self, turn: object) -> Turn:
        held = turn if isinstance(turn, dict) else {"question": turn}
        answer = held.get("answer", "")
        if not isinstance(answer, str):
            self.wrong('has in "earlier" an answer that is not text')
        return Turn(check_line(self.path, self.number, held.get("question")), answer)
