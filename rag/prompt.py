"""Hit -> Prompt: the rules, the earlier turns, the numbered passages and the question.

What a prompt says stands in `rag/templates/`; here is how it is made to fit the model's window.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rag.errors import ContextTooLong
from rag.sentences import CJK, language
from rag.templates import Templates
from rag.types import Hit, Prompt, Turn

NO_ANSWER = "NO_ANSWER"
"""What the model is told to say, and nothing else, when the passages hold no answer."""

Messages: TypeAlias = tuple[dict[str, str], ...]
Count: TypeAlias = Callable[[Sequence[Mapping[str, str]]], Awaitable[int | None]]
"""The tokens of messages as the model gets them; None where its tokenizer cannot be asked."""

# The marks between which chat templates put messages: <|im_end|> and its like (ChatML, Llama 3,
# Phi, Qwen, GLM, DeepSeek with full-width bars), <s>, [INST] and <<SYS>> (Llama 2, Mistral),
# <end_of_turn> (Gemma).
_CONTROL = re.compile(
    r"<(?=[|｜]|\s*/?\s*(?:think|tool_\w+|(?:start|end)_of_\w+|<SYS>|<?/SYS"
    r"|(?:s|bos|eos|pad|unk|sop|eop|reserved_\d+|unused\d+)\s*>))"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK|sMASK)\])",
    re.IGNORECASE,
)
_PASSAGE = re.compile(r"<(?=\s*/?\s*passage)", re.IGNORECASE)
_MARKER = re.compile(r"\s*\[\d{1,3}\]")
_WIDE = re.compile(f"[{CJK}]")
_LETTERS = re.compile(r"[A-Za-z]| (?=[A-Za-z])")  # a space goes with the word after it


@dataclass(frozen=True, slots=True)
class Window:
    """The tokens that prompt and answer may take together, and how many the answer may take.

    `count` counts those of a prompt; where it cannot, an upper estimate decides.
    """

    tokens: int
    answer: int
    count: Count

    async def holds(self, messages: Messages) -> bool:
        """Whether messages leave room for the answer."""
        room = self.tokens - self.answer
        if most(messages) <= room:  # certain, and costs no request
            return True
        counted = await self.count(messages)
        return (estimate(messages) if counted is None else counted) <= room


async def build(
    question: str,
    hits: Sequence[Hit],
    window: Window,
    templates: Templates,
    history: Sequence[Turn] = (),
    search: str = "",
) -> Prompt:
    """A prompt that fits the window together with the answer.

    Passages that do not fit are dropped, the lowest-ranked first, and counted in `dropped`; then
    the earlier turns, the oldest first. `search` is the question as it can be understood without
    them. Raises ContextTooLong if not even the first passage fits.
    """

    def messages(passages: int, turns: int) -> Messages:
        return _messages(question, hits[:passages], history[len(history) - turns :], templates)

    passages, turns = len(hits), len(history)
    if not await window.holds(messages(passages, turns)):
        # Earlier turns may take a quarter of the window, and none if a passage must go for them.
        while turns and estimate(_turns(history[len(history) - turns :])) > window.tokens // 4:
            turns -= 1
        passages = await _most_passages(lambda n: window.holds(messages(n, turns)), passages)
        while passages == 0 and turns:
            turns -= 1
            passages = int(bool(hits) and await window.holds(messages(1, turns)))
    if hits and not passages:
        raise ContextTooLong(
            f"a window of {window.tokens} tokens, {window.answer} of them for the answer, "
            "has no room for the question and a passage",
            "ask a shorter question, set generator.max_tokens lower, or serve a longer window",
        )
    return Prompt(
        question=search or question,
        passages=tuple(hits[:passages]),
        messages=messages(passages, turns),
        dropped=len(hits) - passages,
    )


def most(messages: Sequence[Mapping[str, str]]) -> int:
    """More tokens than any tokenizer can make of messages: none makes more than one of a byte.

    A chat template puts a few more around each message, and may write a system message of its own.
    """
    return sum(len(message["content"].encode()) + 16 for message in messages) + 64


def estimate(messages: Sequence[Mapping[str, str]]) -> int:
    """About the most tokens that a chat model makes of messages."""
    return sum(tokens(message["content"]) + 8 for message in messages) + 16


def tokens(text: str) -> int:
    """About the most tokens that a model makes of a text.

    Byte-pair vocabularies spend about a token on four Latin letters, so one on three is plenty; at
    most two on a CJK character, and up to a token a character on digits, marks and other scripts.
    """
    wide = len(_WIDE.findall(text))
    letters = len(_LETTERS.findall(text))
    others = len(text) - letters - wide
    return -(-letters // 3) + 2 * wide + others


async def _most_passages(fits: Callable[[int], Awaitable[bool]], most: int) -> int:
    """How many of `most` passages fit."""
    few, many = 0, most + 1
    while many - few > 1:
        middle = (few + many) // 2
        if await fits(middle):
            few = middle
        else:
            many = middle
    return few


def _messages(
    question: str, hits: Sequence[Hit], history: Sequence[Turn], templates: Templates
) -> Messages:
    spoken = language(question)
    system = templates.render("system", language=spoken, no_answer=NO_ANSWER)
    asked = templates.render(
        "question",
        question=_harmless(question),
        language=spoken,
        passages=[_passage(hit) for hit in hits],
    )
    return (
        {"role": "system", "content": system},
        *_turns(history),
        {"role": "user", "content": asked},
    )


def _turns(history: Sequence[Turn]) -> Messages:
    """Earlier turns, without their markers: these led to passages that are not here any more.

    One of which only the question is known is left out: many chat templates want roles in turn.
    """
    return tuple(
        message
        for turn in history
        if turn.answer.strip()
        for message in (
            {"role": "user", "content": _harmless(turn.question)},
            {"role": "assistant", "content": _harmless(_MARKER.sub("", turn.answer))},
        )
    )


def _passage(hit: Hit) -> dict[str, str | int | None]:
    """What a template can show of a passage."""
    chunk = hit.chunk
    title = re.sub(r'["<>]', "'", " ".join(chunk.title.split()))
    return {
        "title": _harmless(title),
        "text": _harmless(chunk.text),
        "page": chunk.page,
        "source": _harmless(chunk.source),
    }


def _harmless(text: str) -> str:
    """A text that can neither end its passage nor its message, nor begin another.

    Servers parse the marks of chat templates in what they are given, so a document that holds
    them could go on as the system or the user. A space makes them text.
    """
    return _CONTROL.sub(r"\g<0> ", _PASSAGE.sub("(", text))
