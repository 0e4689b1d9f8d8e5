"""question -> Answer: retrieve, weigh the evidence, generate, resolve the citations."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import islice
from threading import Thread
from typing import TypeAlias

from rag.breaker import Breaker
from rag.draft import Draft, write
from rag.errors import ModelError, ModelUnavailable
from rag.evidence import Calibration, weigh
from rag.filters import Filter
from rag.laps import Lap
from rag.prompt import Window, build
from rag.protocols import Generator, LanguageModel
from rag.retrieve import DEFAULT, Retrieved, Retriever, SearchOptions
from rag.rewrite import rewritten, standalone
from rag.sentences import is_cjk
from rag.support import cite
from rag.templates import Templates
from rag.types import Answer, Citation, Prompt, Sampling, Turn

_GLANCE_S = 0.2
_WINDOW = 4096  # tokens; where neither the model nor the settings tell, most models have as many


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
    """The end: the whole answer. Its text is the tokens joined; `laps` are its stages."""

    answer: Answer
    laps: tuple[Lap, ...] = ()


Event: TypeAlias = Sources | Token | Done
Search: TypeAlias = Callable[[str, int, Filter | None, SearchOptions], Awaitable[Retrieved]]


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
        sampling: Sampling | None = None,
        search: Search | None = None,
    ) -> None:
        """`fallback` answers when `generator` cannot. With less evidence than `min_evidence`, as
        the collection's `calibration` weighs it, the answer is an abstention.

        `rewrite`: a model makes follow-up questions understandable on their own; otherwise, and
        without a model, they are joined with the questions before them.

        `search` finds the passages in place of the retriever's own, such as together with those
        of other questions.
        """
        self.retriever = retriever
        self.generator = generator
        self._fallback = fallback
        self._min_evidence = min_evidence
        self._answer_tokens = answer_tokens
        self._context_tokens = context_tokens
        self.options = options
        self._templates = templates or Templates()
        self._rewrite = rewrite
        self._concurrency = concurrency
        self._breaker = breaker or Breaker()
        self._calibration = calibration or Calibration()
        self._sampling = sampling or Sampling()
        self._search = search or self._in_thread

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
        return asyncio.run(last(self.stream(question, k, where, history)))

    async def stream(
        self,
        question: str,
        k: int,
        where: Filter | None = None,
        history: Sequence[Turn] = (),
    ) -> AsyncGenerator[Event]:
        """Sources, then Tokens as they come, then Done. Closing it stops the generation."""
        draft = await self.prepared(question, k, where, history)
        async with aclosing(self.events(draft, self.generator)) as events:
            async for event in events:
                yield event

    def ask_many(
        self, questions: Sequence[str], k: int, where: Filter | None = None
    ) -> Iterator[Answer]:
        """The answers in the order of the questions, each as soon as those before it are there.

        `concurrency` questions are answered at a time. Closing it stops them.
        """
        waiting = iter(questions)
        with asyncio.Runner() as runner:
            loop = runner.get_loop()

            def started(question: str) -> Future[Answer]:
                return asyncio.run_coroutine_threadsafe(last(self.stream(question, k, where)), loop)

            # In a thread, which no interrupt reaches: in the midst of the loop's own work it would
            # leave behind a loop that fails to close, and that error would hide the interrupt.
            thread = Thread(target=loop.run_forever, daemon=True)
            thread.start()
            try:
                answers = deque(map(started, islice(waiting, self._concurrency)))
                while answers:
                    # An interrupt that comes just before a wait begins is only seen after it.
                    while not wait([answers[0]], _GLANCE_S).done:
                        pass
                    yield answers.popleft().result()
                    answers.extend(map(started, islice(waiting, 1)))
            finally:
                loop.call_soon_threadsafe(loop.stop)
                thread.join()

    async def prepared(
        self, question: str, k: int, where: Filter | None, history: Sequence[Turn]
    ) -> Draft:
        """What there is to answer from, and the prompt."""
        draft = Draft(question, search=question)
        if history:
            await self._make_standalone(draft, history)
        found = await self._search(draft.search, k, where, self.options)
        draft.laps.add(found.laps)
        draft.timings |= found.timings_ms
        return await self.with_prompt(draft, found, history)

    async def _in_thread(
        self, question: str, k: int, where: Filter | None, options: SearchOptions
    ) -> Retrieved:
        return await asyncio.to_thread(self.retriever.search, question, k, where, options)

    async def _make_standalone(self, draft: Draft, history: Sequence[Turn]) -> None:
        draft.search = standalone(draft.question, [turn.question for turn in history])
        if self._rewrite and isinstance(self.generator, LanguageModel):
            try:
                with self._breaker.calling():
                    written = await rewritten(
                        draft.question, history, self.generator, self._templates
                    )
                draft.search = written or draft.search
            except ModelUnavailable as error:
                draft.failed = error  # and is not asked once more for the answer
            except ModelError:
                pass  # such as too long a history: the questions joined will do
            draft.laps.lap("rewrite")

    async def with_prompt(
        self, draft: Draft, found: Retrieved, history: Sequence[Turn] = ()
    ) -> Draft:
        """The draft with the evidence of what was found, and the prompt if that is enough."""
        draft.degraded += found.degraded
        draft.evidence = await asyncio.to_thread(
            weigh, draft.search, found, self.retriever, self._calibration
        )
        draft.refused = draft.evidence < self._min_evidence or not found.hits
        draft.prompt = Prompt(draft.search, tuple(found.hits), vector=found.vector)
        if not (draft.refused or draft.failed or self.generator is self._fallback):
            try:
                self._breaker.check()
                draft.prompt = await self._built(draft, history)
            except ModelError as error:
                draft.failed = error
        draft.laps.lap("prompt")
        return draft

    async def _built(self, draft: Draft, history: Sequence[Turn]) -> Prompt:
        question, hits, search = draft.question, draft.prompt.passages, draft.search
        try:
            window = await self._window()
            prompt = await build(question, hits, window, self._templates, history, search)
            return replace(prompt, sampling=self._sampling, vector=draft.prompt.vector)
        except ModelUnavailable:
            self._breaker.failed()
            raise

    async def _window(self) -> Window:
        if not isinstance(self.generator, LanguageModel):
            return Window(self._context_tokens or _WINDOW, self._answer_tokens, _uncounted)
        told = [self._context_tokens, await self.generator.window()]
        tokens = min(filter(None, told), default=_WINDOW)
        return Window(tokens, self._answer_tokens, self.generator.count_tokens)

    async def events(self, draft: Draft, generator: Generator) -> AsyncGenerator[Event]:
        """What `stream` gives, of a draft with its prompt."""
        passages = draft.prompt.passages
        yield Sources(tuple(Citation.of(n, hit) for n, hit in enumerate(passages, 1)))
        if draft.refused:
            draft.model = generator.model
            draft.abstained = True
            draft.degraded += ["generator"] if draft.failed else []
        else:
            async with aclosing(write(draft, generator, self._fallback, self._breaker)) as pieces:
                async for piece in pieces:
                    yield Token(piece)
        if draft.abstained:
            draft.text = refusal(draft.question)
            yield Token(draft.text)
        else:
            await self._cite(draft)
            draft.laps.lap("cite")
        yield Done(draft.answer(), tuple(draft.laps.laps))

    async def _cite(self, draft: Draft) -> None:
        passages, embedder = draft.prompt.passages, self.retriever.embedder
        try:
            draft.cited = await asyncio.to_thread(cite, draft.text, passages, embedder)
        except ModelError:  # the answer is there: its words alone are compared
            draft.degraded.append("citations")
            draft.cited = cite(draft.text, passages)


def refusal(question: str) -> str:
    """How an abstention is said, in the language of the question."""
    if is_cjk(question):
        return "在这些文档中找不到答案。"
    return "The documents do not hold an answer to this."


async def last(events: AsyncGenerator[Event]) -> Answer:
    """The whole answer at the end of a stream of events."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Done):
                return event.answer
    raise AssertionError("a stream ends with Done")


async def _uncounted(_messages: object) -> None:
    """A model whose tokenizer cannot be asked."""
