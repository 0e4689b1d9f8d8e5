"""Many questions -> answers, by an engine that gets all prompts at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence

from rag.answer import Answerer, last
from rag.draft import Draft
from rag.errors import ModelError
from rag.filters import Filter
from rag.protocols import BatchGenerator, Generator
from rag.types import Answer, Prompt, Usage

_BATCH = 1_000  # prompts that the engine is given at once


def ask_all(
    answerer: Answerer,
    engine: BatchGenerator,
    questions: Sequence[str],
    k: int,
    where: Filter | None = None,
) -> Iterator[Answer]:
    """The answers in the order of the questions; none before the last of a batch is written.

    Faster than many streams. `engine` is the generator of `answerer`.
    """
    with asyncio.Runner() as runner:
        for start in range(0, len(questions), _BATCH):
            some = questions[start : start + _BATCH]
            found = answerer.retriever.search_many(some, k, where, answerer.options)
            drafts = [
                runner.run(answerer.with_prompt(Draft(question, search=question), hits))
                for question, hits in zip(some, found, strict=True)
            ]
            for draft, generator in zip(
                drafts, _written(answerer.generator, engine, drafts), strict=True
            ):
                yield runner.run(last(answerer.events(draft, generator)))


def _written(
    generator: Generator, engine: BatchGenerator, drafts: Sequence[Draft]
) -> list[Generator]:
    """For each draft what repeats the answer that the engine has written to it, if it has."""
    asked = [draft for draft in drafts if not (draft.refused or draft.failed)]
    started = time.perf_counter()
    try:
        said = iter(engine.generate([draft.prompt for draft in asked]))
    except ModelError as error:
        for draft in asked:
            draft.failed = error
        return [generator] * len(drafts)
    each = (time.perf_counter() - started) * 1000 / max(1, len(asked))
    for draft in asked:
        draft.timings["generate"] = each
    return [
        generator if draft.refused or draft.failed else _repeating(draft, generator, next(said))
        for draft in drafts
    ]


def _repeating(
    draft: Draft, generator: Generator, said: tuple[str, Usage] | ModelError
) -> Generator:
    if isinstance(said, ModelError):
        draft.failed = said
        return generator
    return _Said(generator.model, *said)


class _Said:
    """A generator that repeats what an engine has written."""

    notice = ""

    def __init__(self, model: str, text: str, usage: Usage) -> None:
        self.model = model
        self._text = text
        self._usage = usage

    async def stream(self, _prompt: Prompt) -> AsyncGenerator[str | Usage]:
        yield self._text
        yield self._usage
