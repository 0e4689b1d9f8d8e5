"""What is chosen beside the chat asks the same on every way."""

from __future__ import annotations

import json
import shlex

from hypothesis import given
from hypothesis import strategies as st

from rag.cli import cli
from rag.service.schemas import QueryIn, SearchIn
from ui.choices import MAX_TURNS, Choices

wheres = st.sampled_from(
    [{}, {"lang": {"$in": ["en", "it's"]}}, {"$and": [{"n": {"$gte": 1, "$lte": 2}}, {"b": True}]}]
)
questions = st.text(min_size=1, max_size=40).filter(
    lambda text: text.strip() and text.isprintable()
)
chosen = st.builds(
    Choices,
    collection=st.sampled_from(["default", "hand-book_2"]),
    mode=st.sampled_from(["hybrid", "dense", "keyword"]),
    top_k=st.integers(1, 20),
    where=wheres,
    rerank=st.sampled_from([None, False, True]),
    temperature=st.sampled_from([None, 0.0, 1.3]),
    max_tokens=st.sampled_from([None, 16, 512]),
)


@given(chosen, questions)
def test_the_bodies_are_what_the_service_takes(choices: Choices, question: str) -> None:
    turns = [{"question": "q", "answer": "a"}] * (MAX_TURNS + 5)
    query = QueryIn.model_validate(choices.query(question, turns))
    assert len(query.history) == MAX_TURNS
    assert query.condition() == SearchIn.model_validate(choices.search(question)).condition()
    assert (query.max_tokens, query.temperature) == (choices.max_tokens, choices.temperature)
    assert "stream" not in choices.query(question)


@given(chosen, questions)
def test_the_command_asks_the_same(choices: Choices, question: str) -> None:
    name, *words = shlex.split(choices.command(question))
    assert name == "rag"
    start = words.index("ask")
    top = cli.make_context("rag", [*words[:start], "ask"])
    asked = cli.commands["ask"].make_context("ask", words[start + 1 :], parent=top).params
    assert asked["question"] == question
    assert asked["collection"] == choices.collection
    assert (asked["top_k"], asked["mode"]) == (choices.top_k, choices.mode)
    assert json.loads(asked["where"] or "{}") == choices.where
    assert asked["rerank"] == choices.rerank
    assigned = dict(one.split("=") for one in top.params["assignments"])
    for field in ("temperature", "max_tokens"):
        value = getattr(choices, field)
        assert assigned.get(f"generator.{field}") == (None if value is None else str(value))


@given(chosen, questions)
def test_the_request_posts_the_same(choices: Choices, question: str) -> None:
    words = shlex.split(choices.request(question, "http://127.0.0.1:8080", key=False))
    assert words[:2] == ["curl", "http://127.0.0.1:8080/query"]
    assert json.loads(words[words.index("-d") + 1]) == choices.query(question)
    assert "$RAG_KEY" in choices.request(question, "http://127.0.0.1:8080", key=True)
