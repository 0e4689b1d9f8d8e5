"""A language model as the judge of answers: do they agree with the gold, are they in the passages?

What it is asked is the template `judge.j2`. Its text, sha256 and the model are recorded with the
result, for figures of different judges or prompts cannot be compared (Zheng et al. 2023, "Judging
LLM-as-a-Judge with MT-Bench and Chatbot Arena").
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from rag import plugins
from rag.errors import ModelError, RagError
from rag.evaluation.questions import Question
from rag.templates import Templates
from rag.types import Answer, Prompt

_TOKENS = 512  # of a verdict


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge says of an answer. `correct` is None where there was no gold to compare."""

    correct: bool | None
    grounded: bool
    reason: str

    def figures(self) -> dict[str, float]:
        """The verdict as figures of `rag.evaluation.answers`."""
        correct = {} if self.correct is None else {"judged_correct": float(self.correct)}
        return {**correct, "judged_grounded": float(self.grounded)}


class Judge:
    """A model on a server with OpenAI's API."""

    def __init__(
        self,
        *,
        url: str,
        model: str = "",
        api_key: SecretStr | None = None,
        concurrency: int = 8,
        options: Mapping[str, Any] | None = None,
        templates: Templates | None = None,
    ) -> None:
        """`options` go into each request; with no `model` it is the first that the server lists."""
        self._url = url
        self._concurrency = concurrency
        self._templates = templates or Templates()
        self._options = {"temperature": 0.0, "max_tokens": _TOKENS, **(options or {})}
        make = plugins.load("generator", "openai")
        with _as_judge():
            self._generator = make(url=url, model=model, api_key=api_key, options=self._options)
        self.model = model

    def check(self) -> None:
        """Raise ModelUnavailable if the server is not ready, ConfigError for a wrong template."""
        self._templates.render("judge", question="", golds=[], passages=[], answer="")
        with _as_judge():
            served: str = asyncio.run(self._generator.check())
        self.model = self.model or served

    def verdicts(
        self,
        asked: Sequence[tuple[Question, Answer]],
        progress: Callable[[int, int], None] = lambda _done, _of: None,
    ) -> list[Verdict | None]:
        """A verdict for each answer; None where the model gave none that can be read, or failed.

        Abstentions say nothing that could be judged: they get none. Raises ModelError if the model
        failed for every answer.
        """
        return asyncio.run(self._verdicts(asked, progress))

    def to_json(self) -> dict[str, Any]:
        """What made the verdicts, as it is kept with them."""
        prompt = self._templates.source("judge")
        return {
            "model": self.model,
            "url": self._url,
            "options": self._options,
            "prompt": prompt,
            "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
        }

    async def _verdicts(
        self,
        asked: Sequence[tuple[Question, Answer]],
        progress: Callable[[int, int], None],
    ) -> list[Verdict | None]:
        wanted = [n for n, (_, answer) in enumerate(asked) if not answer.abstained]
        found: list[Verdict | None] = [None] * len(asked)
        failed: list[ModelError] = []
        free = asyncio.Semaphore(self._concurrency)
        done = 0

        async def judge(n: int) -> None:
            nonlocal done
            async with free:
                try:
                    found[n] = read(await self._reply(*asked[n]), gold=bool(asked[n][0].answers))
                except ModelError as error:
                    failed.append(error)
            done += 1
            progress(done, len(wanted))

        await asyncio.gather(*map(judge, wanted))
        await self._generator.aclose()
        if failed and len(failed) == len(wanted):
            with _as_judge():
                raise failed[0]
        return found

    async def _reply(self, question: Question, answer: Answer) -> str:
        # As JSON strings none of them can end before its end and go on as if it were the prompt.
        text = self._templates.render(
            "judge",
            question=_quoted(question.text),
            golds=[_quoted(gold) for gold in question.answers],
            passages=[{"marker": c.marker, "text": _quoted(c.text)} for c in answer.citations],
            answer=_quoted(answer.text),
        )
        prompt = Prompt(question.text, (), ({"role": "user", "content": text},))
        async with aclosing(self._generator.stream(prompt)) as pieces:
            return "".join([piece async for piece in pieces if isinstance(piece, str)])


def read(reply: str, *, gold: bool) -> Verdict | None:
    """The verdict in a model's reply; None where there is none, or two that differ.

    Models write code fences and sentences around it. `gold`: it must say `correct` too.
    """
    found: dict[tuple[bool | None, bool], Verdict] = {}
    for value in _objects(reply):
        correct, grounded = value.get("correct"), value.get("grounded")
        if isinstance(grounded, bool) and (isinstance(correct, bool) or not gold):
            reason = " ".join(str(value.get("reason") or "").split())
            verdict = Verdict(correct if gold else None, grounded, reason)
            found.setdefault((verdict.correct, grounded), verdict)
    return next(iter(found.values())) if len(found) == 1 else None


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Every JSON object in a text that is not inside another."""
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield value
        at = text.find("{", end)


@contextmanager
def _as_judge() -> Iterator[None]:
    """Errors of the generator, said of the judge and its settings."""
    try:
        yield
    except RagError as error:
        message, hint = (
            text.replace("generator.", "judge.") for text in (error.message, error.hint)
        )
        raise type(error)(f"the judge: {message}", hint) from error


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
