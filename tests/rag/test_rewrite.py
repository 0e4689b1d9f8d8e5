from __future__ import annotations

import pytest
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


def test_what_was_asked_before_a_question_that_stands_alone_is_left_out() -> None:
    earlier = ["My box reports E-22.", "How many days of annual leave do I get?"]
    assert standalone("And how many may I carry over?", earlier).split("\n") == [
        "And how many may I carry over?",
        "How many days of annual leave do I get?",
    ]


def test_a_first_question_stays_as_it_is() -> None:
    assert standalone(" What  is it? ") == " What  is it? "
    assert standalone("What?", ["", "  "]) == "What?"


def test_nothing_is_said_twice() -> None:
    assert standalone("它多重?", ["它多重?", "它多重?"]) == "它多重?"


@pytest.mark.parametrize(
    "question",
    [
        "And in red?",
        "What does it cost?",
        "How heavy are they?",
        "What about Sundays?",
        "Who wrote this?",
        "How much?",
        "Why?",
        "What did he sign there?",
        "它多少钱？",
        "红色的呢？",
        "那么周日呢？",
        "多少钱？",
    ],
)
def test_what_leans_on_an_earlier_question_is_searched_with_it(question: str) -> None:
    assert standalone(question, ["What does the TK-40 cost?"]).endswith("TK-40 cost?")


@pytest.mark.parametrize(
    "question",
    [
        "How many days of annual leave do I get?",
        "Who won the football World Cup in 1998?",
        "Is there a canteen at the depot?",
        "What is E-22?",
        "Can I work remotely?",
        "Who signs the IT policy?",
        "Explain the notice period",
        "年假有几天？",
        "设备报警代码 E-22 是什么意思？",
    ],
)
def test_what_stands_alone_is_not_led_astray(question: str) -> None:
    assert standalone(question, ["My box reports E-22. What do I press?"]) == question


@given(lines, st.lists(lines.map(lambda text: text * 200), max_size=5))
def test_long_turns_never_make_a_question_that_is_refused(
    question: str, earlier: list[str]
) -> None:
    whole = standalone(question, earlier)
    assert whole.split("\n")[0] == question
    check_question(whole)
