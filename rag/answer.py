"""question -> Answer: retrieve, weigh the evidence, generate, resolve the citations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from rag.citations import Markers, cite
from rag.errors import ModelError
from rag.evidence import evidence
from rag.filters import Filter
from rag.prompt import NO_ANSWER, build
from rag.protocols import Generator
from rag.retrieve import DEFAULT, Retriever, SearchOptions
from rag.sentences import is_cjk
from rag.types import Answer, Citation, Hit, Prompt, Usage


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
        context_tokens: int,
        answer_tokens: int,
        options: SearchOptions = DEFAULT,
    ) -> None:
        """`fallback` answers when `generator` cannot. `min_evidence` is as in `rag.evidence`."""
        self._retriever = retriever
        self._generator = generator
        self._fallback = fallback
        self._min_evidence = min_evidence
        self._context_tokens = context_tokens
        self._answer_tokens = answer_tokens
        self._options = options

    def ask(self, question: str, k: int, where: Filter | None = None) -> Answer:
        """The whole answer. Raises InputError, StoreError, ModelError (of the embedder)."""

        async def last() -> Answer:
            async with aclosing(self.stream(question, k, where)) as events:
                async for event in events:
                    if isinstance(event, Done):
                        return event.answer
            raise AssertionError("a stream ends with Done")

        return asyncio.run(last())

    async def stream(
        self, question: str, k: int, where: Filter | None = None
    ) -> AsyncGenerator[Event]:
        """Sources, then Tokens as they come, then Done. Closing it stops the generation."""
        run = _Run(time.perf_counter())
        found = await asyncio.to_thread(self._retriever.search, question, k, where, self._options)
        run.lap("search")
        run.timings |= found.timings_ms
        run.degraded += found.degraded
        strength = evidence(question, found.hits, found.similarity)
        prompt = build(
            question,
            found.hits,
            context_tokens=self._context_tokens,
            answer_tokens=self._answer_tokens,
        )
        yield Sources(tuple(Citation.of(n, hit) for n, hit in enumerate(prompt.passages, 1)))
        if strength < self._min_evidence or not prompt.passages:
            run.model = self._generator.model
            run.abstained = True
        else:
            async for token in self._write(prompt, run):
                yield token
        if run.abstained:
            run.text = refusal(question)
            yield Token(run.text)
        yield Done(run.answer(question, prompt.passages))

    async def _write(self, prompt: Prompt, run: _Run) -> AsyncIterator[Token]:
        """Tokens of the generator, or of the fallback from where the generator failed."""
        try:
            async for token in self._generated(self._generator, prompt, run):
                yield token
        except ModelError as error:
            run.degraded.append("generator")
            failed = f"the model failed ({error.message}); sentences quoted from the documents"
            if run.text:
                yield run.append("\n\n")
            async for token in self._generated(self._fallback, prompt, run):
                yield token
            run.notice = failed

    async def _generated(
        self, generator: Generator, prompt: Prompt, run: _Run
    ) -> AsyncIterator[Token]:
        markers = Markers(len(prompt.passages))
        refused = ""  # what may still become NO_ANSWER and so is not shown
        run.notice = generator.notice
        try:
            async with aclosing(_closable(generator.stream(prompt))) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Usage):
                        run.usage = piece
                        if piece.truncated:
                            run.notice = "the answer was cut off at generator.max_tokens"
                        continue
                    if "first_token" not in run.timings:
                        run.lap("first_token")
                    refused += piece
                    if NO_ANSWER.startswith(refused.strip()):
                        continue
                    if refused.strip().startswith(NO_ANSWER):
                        break
                    shown, refused = markers.feed(refused), ""
                    if shown:
                        yield run.append(shown)
            if refused.strip().startswith(NO_ANSWER) or not (refused or run.text).strip():
                run.abstained = True
            elif rest := markers.feed(refused) + markers.finish():
                yield run.append(rest)
        finally:
            run.model = generator.model
            run.invalid += markers.invalid
            run.lap("generate")


class _Run:
    """What is known so far of the answer to one question."""

    def __init__(self, started: float) -> None:
        self._started = self._lap = started
        self.timings: dict[str, float] = {}
        self.text = self.model = self.notice = ""
        self.degraded: list[str] = []
        self.abstained = False
        self.invalid = 0
        self.usage = Usage()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.timings[stage] = round(self.timings.get(stage, 0.0) + (now - self._lap) * 1000, 2)
        self._lap = now

    def append(self, text: str) -> Token:
        self.text += text
        return Token(text)

    def answer(self, question: str, passages: tuple[Hit, ...]) -> Answer:
        total = round((time.perf_counter() - self._started) * 1000, 2)
        return Answer(
            question=question,
            text=self.text,
            citations=() if self.abstained else cite(self.text, passages),
            abstained=self.abstained,
            model=self.model,
            degraded=tuple(self.degraded),
            notice="" if self.abstained else self.notice,
            invalid_markers=self.invalid,
            timings_ms={**self.timings, "total": total},
            usage=self.usage,
        )


def refusal(question: str) -> str:
    """How an abstention is said, in the language of the question."""
    if is_cjk(question):
        return "在这些文档中找不到答案。"
    return "The documents do not hold an answer to this."


async def _closable(pieces: AsyncIterator[str | Usage]) -> AsyncGenerator[str | Usage]:
    """The iterator as a generator, so that leaving it early closes it."""
    try:
        async for piece in pieces:
            yield piece
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()
