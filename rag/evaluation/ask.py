"""Questions of a file -> their answers, many at once, and the figures of these."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing
from itertools import groupby
from typing import TypeAlias

from rag.answer import Answerer
from rag.batch import ask_all
from rag.evaluation.answers import Scored, scored
from rag.evaluation.dataset import Dataset
from rag.evaluation.judge import Judge, Verdict
from rag.evaluation.questions import Question
from rag.filters import Filter
from rag.protocols import BatchGenerator
from rag.types import Answer, Chunk, Citation

Judged: TypeAlias = tuple[Dataset, Callable[[Chunk | Citation], str]]
Show: TypeAlias = Callable[[str, str], AbstractContextManager[Callable[[int, int], None]]]


def ask(
    answerer: Answerer,
    questions: Sequence[Question],
    k: int,
    where: Filter | None = None,
    *,
    whole: bool = False,
) -> Generator[Answer]:
    """The answers in the order of the questions; those of conversations come one at a time.

    To be closed before what they are asked of: some may be answered still.

    `whole`: an engine that takes many prompts at once gets them all.
    """
    for follows_up, some in groupby(questions, key=lambda question: bool(question.earlier)):
        if follows_up:
            for question in some:
                yield answerer.ask(question.text, k, where, question.earlier)
        else:
            texts = [question.text for question in some]
            if whole and isinstance(answerer.generator, BatchGenerator):
                yield from ask_all(answerer, answerer.generator, texts, k, where)
            else:
                yield from answerer.ask_many(texts, k, where)


def measured(
    answerer: Answerer,
    questions: Sequence[Question],
    k: int,
    where: Filter | None,
    *,
    judged: Judged | None,
    judge: Judge | None,
    show: Show,
) -> tuple[list[Scored], float]:
    """Each answer with its figures, and the seconds that answering took.

    `judged` is as `rag.evaluation.dataset.judged_in` gives it. `show` gets what is done and to
    what, such as "answered" and "questions", and gives what to tell it to.
    """
    found: list[Answer] = []
    answers = ask(answerer, questions, k, where, whole=True)
    with show("answered", "questions") as progress, closing(answers):
        started = time.perf_counter()
        for answer in answers:
            found.append(answer)
            progress(len(found), len(questions))
        seconds = time.perf_counter() - started
    pairs = list(zip(questions, found, strict=True))
    verdicts: list[Verdict | None] = [None] * len(found)
    if judge:
        with show("judged", "answers") as progress:
            verdicts = judge.verdicts(pairs, progress)
    rows = [
        scored(question, answer, *_judgements(question, judged), verdict=verdict)
        for (question, answer), verdict in zip(pairs, verdicts, strict=True)
    ]
    return rows, seconds


def _judgements(
    question: Question, judged: Judged | None
) -> tuple[set[str], Callable[[Citation], str]]:
    """The documents judged relevant for a question, and what names the document of a citation."""
    if judged is None:
        return set(), lambda citation: citation.document_id
    dataset, name = judged
    grades = dataset.qrels.get(question.id, {})
    return {document for document, grade in grades.items() if grade > 0}, name
