"""A conversation is taken along whole."""

from __future__ import annotations

import json
from typing import Any

from ui.choices import Choices
from ui.conversation import Conversation, Exchange, copied, quotes
from ui.texts import texts

CITATION: dict[str, Any] = {
    "marker": 1,
    "source": "/docs/leave.pdf",
    "page": 2,
    "text": "Before. You get 25 days. After.",
    "spans": [[8, 24]],
}


def answered(question: str, text: str, *citations: dict[str, Any]) -> Exchange:
    return Exchange(
        question, Choices("docs"), answer={"answer": text, "citations": list(citations)}
    )


def test_turns_are_those_that_were_answered_before() -> None:
    stopped = Exchange("b", Choices("docs"), text="half", stopped=True)
    failed = Exchange("c", Choices("docs"), problem="down")
    last = Exchange("d", Choices("docs"))
    conversation = Conversation([answered("a", "A"), stopped, failed, last])
    assert conversation.turns(last) == [{"question": "a", "answer": "A"}]
    assert conversation.turns(conversation.exchanges[0]) == []


def test_json_has_all_of_it() -> None:
    exchanges = [
        answered("问", "答 [1]", CITATION),
        Exchange("b", Choices("docs"), text="half", stopped=True),
    ]
    first, second = json.loads(Conversation(exchanges).to_json())
    assert first["answer"]["citations"] == [CITATION]
    assert first["asked"]["collection"] == "docs"
    assert second["stopped"] == "half" and second["answer"] is None


def test_markdown_has_the_sentences_that_an_answer_rests_on() -> None:
    text = Conversation([answered("How many\ndays?", "25 [1]", CITATION)]).to_markdown(texts("en"))
    assert "## How many days?" in text
    assert "- [1] `/docs/leave.pdf`, p. 2" in text
    assert "> You get 25 days." in text
    chinese = Conversation([answered("几天？", "25 [1]", CITATION)]).to_markdown(texts("zh"))
    assert "第 2 页" in chinese


def test_what_is_copied_names_its_sources() -> None:
    assert (
        copied(answered("q", "25 [1]", CITATION).answer or {})
        == "25 [1]\n\n[1] /docs/leave.pdf, p. 2"
    )
    assert copied(answered("q", "No.").answer or {}) == "No."
    assert quotes(CITATION) == ["You get 25 days."]
