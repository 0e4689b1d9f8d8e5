"""Prompt -> the text of an answer: what a generator writes, with valid markers only."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from rag.breaker import Breaker
from rag.citations import Markers
from rag.errors import ModelError
from rag.laps import Laps
from rag.prompt import NO_ANSWER
from rag.protocols import Generator
from rag.support import Cited
from rag.types import Answer, Prompt, Usage

_RAMBLING = 16  # pieces that are read after NO_ANSWER in wait for the usage


@dataclass(slots=True)
class Draft:
    """What is known so far of the answer to one question.

    `refused`: there is too little evidence, so no generator is asked. `failed`: the generator did
    already, before it was asked for the answer. `laps` are its stages: `wait` is the generator's
    until its first piece, `generate` what comes after it. `timings`, in milliseconds, has what is
    known better than from these, and under `first_token` the time from the question to the first
    piece.
    """

    question: str
    search: str
    prompt: Prompt = field(default_factory=lambda: Prompt("", ()))
    evidence: float = 0.0
    refused: bool = False
    failed: ModelError | None = None
    text: str = ""
    model: str = ""
    notice: str = ""
    degraded: list[str] = field(default_factory=list)
    abstained: bool = False
    invalid: int = 0
    usage: Usage = field(default_factory=Usage)
    cited: Cited = field(default_factory=Cited)
    timings: dict[str, float] = field(default_factory=dict)
    laps: Laps = field(default_factory=Laps)

    def answer(self) -> Answer:
        """The answer as it stands now."""
        timings = {**self.laps.timings_ms, **self.timings, "total": self.laps.elapsed_ms()}
        return Answer(
            question=self.question,
            text=self.text,
            citations=self.cited.citations,
            abstained=self.abstained,
            model=self.model,
            statements=self.cited.statements,
            evidence=self.evidence,
            search=self.search,
            dropped=self.prompt.dropped,
            degraded=tuple(self.degraded),
            notice="" if self.abstained else self.notice,
            invalid_markers=self.invalid,
            timings_ms={stage: round(ms, 2) for stage, ms in timings.items()},
            usage=self.usage,
        )


async def write(
    draft: Draft, generator: Generator, fallback: Generator, breaker: Breaker
) -> AsyncGenerator[str]:
    """The answer's text as it comes; what the fallback says from where the generator failed."""
    mark = "" if generator is fallback else NO_ANSWER
    try:
        if draft.failed:
            raise draft.failed
        with breaker.calling():
            async with aclosing(_written(draft, generator, mark)) as pieces:
                async for piece in pieces:
                    if breaker.state != "closed":  # others need not wait for the end of this
                        breaker.worked()
                    yield piece
    except ModelError as error:
        draft.degraded.append("generator")
        failed = f"the model failed ({error.message}); sentences quoted from the documents"
        if draft.text:
            draft.text += "\n\n"
            yield "\n\n"
        async with aclosing(_written(draft, fallback, "")) as pieces:
            async for piece in pieces:
                yield piece
        draft.notice = failed


async def _written(draft: Draft, generator: Generator, mark: str) -> AsyncGenerator[str]:
    """`mark` is the word for no answer; empty where the text is quoted, and may hold it."""
    markers = Markers(len(draft.prompt.passages))
    held = ""  # what may still become the mark and so is not shown
    after = 0  # pieces since the mark; read on, for the usage comes last
    draft.notice = generator.notice
    try:
        async with aclosing(generator.stream(draft.prompt)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Usage):
                    draft.usage = piece
                    if piece.truncated:
                        draft.notice = "the answer was cut off at generator.max_tokens"
                    continue
                if "first_token" not in draft.timings:
                    draft.laps.lap("wait")
                    draft.timings["first_token"] = draft.laps.elapsed_ms()
                if after:
                    after += 1
                    if after > _RAMBLING:
                        break
                    continue
                said, held = held + piece, ""
                if mark:
                    said, found, _ = said.partition(mark)
                    after = int(bool(found))
                    if not found:
                        said, held = _without_beginning(said, mark)
                if shown := markers.feed(said):
                    draft.text += shown
                    yield shown
        if rest := markers.feed(held) + markers.finish():
            draft.text += rest
            yield rest
        draft.abstained = not draft.text.strip()
    finally:
        draft.model = generator.model
        draft.invalid += markers.invalid
        draft.laps.lap("generate")


def _without_beginning(text: str, mark: str) -> tuple[str, str]:
    """A text without what may be the beginning of `mark` at its end, and that."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-length:]):
            return text[:-length], text[-length:]
    return text, ""
