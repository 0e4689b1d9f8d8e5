from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rag.retrieve import check_question
from rag.rewrite import standalone

lines = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1)


def test_the_question_comes_first_and_then_what_was_asked_last() -> None:
    earlier = ["Which pumps are there?", "What does the TK-40 cost?", "Is it in stock?"]
    assert standalone("And in red?", earlier).split("\n") == [
        "And in red?",
        "Is it in stock?",
        "What does the TK-40 cost?",
    ]


def test_a_first_question_stays_as_it_is() -> None:
    assert standalone(" What  is it? ") == " What  is it? "
    assert standalone("What?", ["", "  "]) == "What?"


def test_nothing_is_said_twice() -> None:
    assert standalone("电池多重?", ["电池多重?", "电池多重?"]) == "电池多重?"


@given(lines, st.lists(lines.map(lambda text: text * 200), max_size=5))
def test_long_turns_never_make_a_question_that_is_refused(
    question: str, earlier: list[str]
) -> None:
    whole = standalone(question, earlier)
    assert whole.split("\n")[0] == question
    check_question(whole)
