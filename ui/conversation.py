"""What was asked and answered in one tab, and how it is taken along."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ui.choices import Choices

if TYPE_CHECKING:
    from ui.texts import Texts


@dataclass(slots=True)
class Exchange:
    """A question and what came of it.

    `answer` is that of POST /query, once it is whole; until then, and if it was stopped or failed,
    `text` is what was written so far. `fresh`: no answer from the cache will do.
    `id` tells its widgets from those of others. `found` is what POST /search says of it, once
    somebody wants to see that.
    """

    question: str
    choices: Choices
    id: str = field(default_factory=lambda: uuid4().hex)
    fresh: bool = False
    text: str = ""
    answer: dict[str, Any] | None = None
    found: dict[str, Any] | None = None
    stopped: bool = False
    problem: str = ""
    rating: str = ""
    commented: bool = False

    @property
    def begun(self) -> bool:
        """Whether something came of it, be it an error."""
        return bool(self.answer or self.stopped or self.problem)


@dataclass(slots=True)
class Conversation:
    """The exchanges of a tab, oldest first."""

    exchanges: list[Exchange] = field(default_factory=list)

    def turns(self, before: Exchange) -> list[dict[str, str]]:
        """What was asked and answered before this one, as POST /query takes it."""
        earlier = self.exchanges[: self.exchanges.index(before)]
        return [
            {"question": one.question, "answer": one.answer["answer"]}
            for one in earlier
            if one.answer
        ]

    def to_json(self) -> str:
        """All of it, with the citations and figures of each answer."""
        rows = [
            {
                "question": one.question,
                "asked": one.choices.search(one.question),
                "answer": one.answer,
                "stopped": one.text if one.stopped else None,
                "problem": one.problem or None,
                "rating": one.rating or None,
            }
            for one in self.exchanges
        ]
        return json.dumps(rows, ensure_ascii=False, indent=2)

    def to_markdown(self, say: Texts) -> str:
        """All of it, to read: questions, answers, and the sentences that they rest on."""
        return "\n".join(_markdown(one, say) for one in self.exchanges)


def copied(answer: Mapping[str, Any]) -> str:
    """An answer with its sources, as text to paste elsewhere."""
    lines = [answer["answer"], ""] if answer["citations"] else [answer["answer"]]
    for one in answer["citations"]:
        page = f", p. {one['page']}" if one["page"] else ""
        lines.append(f"[{one['marker']}] {one['source']}{page}")
    return "\n".join(lines)


def quotes(citation: Mapping[str, Any]) -> list[str]:
    """The sentences of a cited passage that the answer rests on."""
    return [citation["text"][start:end] for start, end in citation["spans"]]


def _markdown(one: Exchange, say: Texts) -> str:
    lines = [f"## {' '.join(one.question.split())}", ""]
    if one.answer is None:
        lines += [one.text or one.problem, ""]
        return "\n".join(lines)
    lines += [one.answer["answer"], ""]
    if one.answer["citations"]:
        lines += [f"**{say('chat.sources')}**", ""]
    for citation in one.answer["citations"]:
        page = f", {say('chat.page', page=citation['page'])}" if citation["page"] else ""
        lines += [f"- [{citation['marker']}] `{citation['source']}`{page}"]
        lines += [f"  > {' '.join(quote.split())}" for quote in quotes(citation)]
    return "\n".join([*lines, ""])
