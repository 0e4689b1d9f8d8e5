"""Conversation -> one question that can be searched for on its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import aclosing

from rag.protocols import Generator
from rag.templates import Templates
from rag.terms import identifiers, terms
from rag.types import Prompt, Turn

_TURNS = 2  # earlier questions that still tell what "it" is
_CHARACTERS = 2_000  # more would leave the question little weight, and embedders cut it off
_ANSWER = 500  # characters of an earlier answer that a model is shown
_LONGEST = 400  # characters; what is longer is no question any more
# Words that stand for others, and how a question begins that goes on with another.
_LEANING = re.compile(
    r"^\W*(?:and|but|or|so|then|also|what about|how about)\b|"
    r"\b(?:(?-i:it|It)|its|they|them|their|theirs|this|that|these|those|he|him|his|she|her|hers|"
    r"ones|same|another|former|latter)\b|(?<!is )(?<!are )(?<!was )(?<!were )\bthere\b|"
    "它|他|她|这|那|该|其|此|呢|还有|刚才|上面|同样",
    re.IGNORECASE,
)
_ALONE = 2  # terms: with fewer, a question says little of what it is about


def standalone(question: str, earlier: Sequence[str] = ()) -> str:
    """The question together with what the user asked before it, the latest of `earlier` last.

    No model is needed: the words that a follow-up leaves out stand in the turns before it. What
    was said last comes first, because embedders cut off the end of what is too long. A question
    that does not lean on others stays as it is: their words would only lead it astray.
    """
    if not leans(question):
        return question
    turns = [" ".join(turn.split()) for turn in earlier if turn.strip()][-_TURNS:]
    joined = question
    for turn in dict.fromkeys(reversed(turns)):
        if turn != question and len(joined) + len(turn) < _CHARACTERS:
            joined += f"\n{turn}"
        if not leans(turn):  # what came before it was about something else
            break
    return joined


def leans(question: str) -> bool:
    """Whether a question seems to leave something to those before it, in English or Chinese."""
    if _LEANING.search(question):
        return True
    return len(terms(question)) < _ALONE and not identifiers(question)


async def rewritten(
    question: str, history: Sequence[Turn], model: Generator, templates: Templates
) -> str:
    """The question as a model writes it so that it stands alone; empty if that is of no use.

    Of no use is what is long, or has many words that nobody said: a weak model answers the
    question, or invents another. Raises ModelError.
    """
    shown = [Turn(turn.question, turn.answer[:_ANSWER]) for turn in history[-_TURNS:]]
    asked = templates.render("standalone", question=question, history=shown)
    prompt = Prompt(question, (), ({"role": "user", "content": asked},))
    text = ""
    async with aclosing(model.stream(prompt)) as pieces:
        async for piece in pieces:
            text += piece if isinstance(piece, str) else ""
            if len(text) > _LONGEST:
                return ""
    text = " ".join(text.split()).removeprefix("Question: ").strip('"“”')
    said = terms(" ".join([question, *(f"{turn.question} {turn.answer}" for turn in history)]))
    written = terms(text)
    return text if written and len(written - said) <= len(written) / 4 else ""
