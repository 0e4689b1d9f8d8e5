"""question -> Answer: retrieve, weigh the evidence, generate, resolve the citations."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

from rag.breaker import Breaker
from rag.draft import Draft, write
from rag.errors import ModelError
from rag.evidence import Calibration, weigh
from rag.filters import Filter
from rag.prompt import Window, build
from rag.protocols import BatchGenerator, Generator, LanguageModel
from rag.retrieve import DEFAULT, Retrieved, Retriever, SearchOptions
from rag.rewrite import rewritten, standalone
from rag.sentences import is_cjk
from rag.support import cite
from rag.templates import Templates
from rag.types import Answer, Citation, Prompt, Turn, Usage

_WINDOW = 4096  # tokens; where neither the model nor the settings tell, most models have as many
_BATCH = 1_000  # prompts that an engine is given at once


@dataclass(frozen=True, slots=True)
class Sources:
    """The passages that the answer may rest on, numbered by their markers."""

    citations: tuple[Citation, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """The next piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end: the whole answer. Its text is the tokens joined."""

    answer: Answer


Event: TypeAlias = Sources | Token | Done


class Answerer:
    """Answers questions about one collection."""

    def __init__(
        self,
        retriever: Retriever,
        generator: Generator,
        fallback: Generator,
        *,
        min_evidence: float,
        answer_tokens: int,
        context_tokens: int = 0,
        options: SearchOptions = DEFAULT,
        templates: Templates | None = None,
        rewrite: bool = True,
        concurrency: int = 16,
        breaker: Breaker | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        """`fallback` answers when `generator` cannot. With less evidence than `min_evidence`, as
        the collection's `calibration` weighs it, the answer is an abstention.

        `rewrite`: a model makes follow-up questions understandable on their own; otherwise, and
        without a model, they are joined with the questions before them.
        """
        self._retriever = retriever
        self._generator = generator
        self._fallback = fallback
        self._min_evidence = min_evidence
        self._answer_tokens = answer_tokens
        self._context_tokens = context_tokens
        self._options = options
        self._templates = templates or Templates()
        self._rewrite = rewrite
        self._concurrency = concurrency
        self._breaker = breaker or Breaker()
        self._calibration = calibration or Calibration()

    def ask(
        self,
        question: str,
        k: int,
        where: Filter | None = None,
        history: Sequence[Turn] = (),
    ) -> Answer:
        """The whole answer. `history` has the earlier turns, the latest last.

        Raises InputError, StoreError, ModelError (of the embedder).
        """
        return asyncio.run(_last(self.stream(question, k, where, history)))

    async def stream(
        self,
        question: str,
        k: int,
        where: Filter | None = None,
        history: Sequence[Turn] = (),
    ) -> AsyncGenerator[Event]:
        """Sources, then Tokens as they come, then Done. Closing it stops the generation."""
        draft = await self._prepared(question, k, where, history)
        async with aclosing(self._events(draft, self._generator)) as events:
            async for event in events:
                yield event

    def ask_many(
        self, questions: Sequence[str], k: int, where: Filter | None = None, *, whole: bool = False
    ) -> Iterator[Answer]:
        """The answers in the order of the questions, each as soon as those before it are there.

        `concurrency` questions are answered at a time. `whole`: an engine that takes many prompts
        at once gets them all, which is faster, and gives no answer before the last is written.
        """
        if whole and isinstance(self._generator, BatchGenerator):
            yield from self._in_batches(self._generator, questions, k, where)
            return
        waiting = iter(questions)
        with asyncio.Runner() as runner:
            loop = runner.get_loop()

            def started(question: str) -> asyncio.Task[Answer]:
                return loop.create_task(_last(self.stream(question, k, where)))

            tasks = deque(map(started, islice(waiting, self._concurrency)))
            while tasks:
                yield runner.run(_result(tasks.popleft()))
                tasks.extend(map(started, islice(waiting, 1)))

    def _in_batches(
        self, engine: BatchGenerator, questions: Sequence[str], k: int, where: Filter | None
    ) -> Iterator[Answer]:
        with asyncio.Runner() as runner:
            for start in range(0, len(questions), _BATCH):
                some = questions[start : start + _BATCH]
                found = self._retriever.search_many(some, k, where, self._options)
                drafts = [
                    runner.run(self._with_prompt(Draft(question, search=question), hits))
                    for question, hits in zip(some, found, strict=True)
                ]
                asked = [draft for draft in drafts if not (draft.refused or draft.failed)]
                started = time.perf_counter()
                try:
                    said = iter(engine.generate([draft.prompt for draft in asked]))
                except ModelError as error:
                    for draft in asked:
                        draft.failed = error
                each = (time.perf_counter() - started) * 1000 / max(1, len(asked))
                for draft in drafts:
                    generator = self._generator
                    if not (draft.refused or draft.failed):
                        generator = _Said(generator.model, *next(said))
                        draft.timings["generate"] = round(each, 2)
                    yield runner.run(_last(self._events(draft, generator)))

    async def _prepared(
        self, question: str, k: int, where: Filter | None, history: Sequence[Turn]
    ) -> Draft:
        """What there is to answer from, and the prompt."""
        draft = Draft(question, search=question)
        if history:
            await self._make_standalone(draft, history)
        found = await asyncio.to_thread(
            self._retriever.search, draft.search, k, where, self._options
        )
        draft.lap("search")
        draft.timings |= found.timings_ms
        return await self._with_prompt(draft, found, history)

    async def _make_standalone(self, draft: Draft, history: Sequence[Turn]) -> None:
        draft.search = standalone(draft.question, [turn.question for turn in history])
        if self._rewrite and isinstance(self._generator, LanguageModel):
            try:
                with self._breaker.calling():
                    written = await rewritten(
                        draft.question, history, self._generator, self._templates
                    )
                draft.search = written or draft.search
            except ModelError as error:
                draft.failed = error  # and is not asked once more for the answer
            draft.lap("rewrite")

    async def _with_prompt(
        self, draft: Draft, found: Retrieved, history: Sequence[Turn] = ()
    ) -> Draft:
        draft.degraded += found.degraded
        draft.evidence = await asyncio.to_thread(
            weigh, draft.search, found, self._retriever, self._calibration
        )
        draft.refused = draft.evidence < self._min_evidence or not found.hits
        draft.prompt = Prompt(draft.search, tuple(found.hits))
        if not (draft.refused or draft.failed or self._generator is self._fallback):
            try:
                draft.prompt = await build(
                    draft.question,
                    found.hits,
                    await self._window(),
                    self._templates,
                    history,
                    draft.search,
                )
            except ModelError as error:
                draft.failed = error
        draft.lap("prompt")
        return draft

    async def _window(self) -> Window:
        if not isinstance(self._generator, LanguageModel):
            return Window(self._context_tokens or _WINDOW, self._answer_tokens, _uncounted)
        told = [self._context_tokens, await self._generator.window()]
        tokens = min(filter(None, told), default=_WINDOW)
        return Window(tokens, self._answer_tokens, self._generator.count_tokens)

    async def _events(self, draft: Draft, generator: Generator) -> AsyncGenerator[Event]:
        passages = draft.prompt.passages
        yield Sources(tuple(Citation.of(n, hit) for n, hit in enumerate(passages, 1)))
        if draft.refused:
            draft.model = generator.model
            draft.abstained = True
        else:
            async with aclosing(write(draft, generator, self._fallback, self._breaker)) as pieces:
                async for piece in pieces:
                    yield Token(piece)
        if draft.abstained:
            draft.text = refusal(draft.question)
            yield Token(draft.text)
        else:
            embedder = self._retriever.embedder
            draft.cited = await asyncio.to_thread(cite, draft.text, passages, embedder)
            draft.lap("cite")
        yield Done(draft.answer())


class _Said:
    """A generator that repeats what an engine has written in a batch."""

    notice = ""

    def __init__(self, model: str, text: str, usage: Usage) -> None:
        self.model = model
        self._text = text
        self._usage = usage

    async def stream(self, _prompt: Prompt) -> AsyncGenerator[str | Usage]:
        yield self._text
        yield self._usage


def refusal(question: str) -> str:
    """How an abstention is said, in the language of the question."""
    if is_cjk(question):
        return "在这些文档中找不到答案。"
    return "The documents do not hold an answer to this."


async def _last(events: AsyncGenerator[Event]) -> Answer:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Done):
                return event.answer
    raise AssertionError("a stream ends with Done")


async def _result(task: asyncio.Task[Answer]) -> Answer:
    return await task


async def _uncounted(_messages: object) -> None:
    """A model whose tokenizer cannot be asked."""
