"""Markers in answers as they stream."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.citations import Markers

PASSAGES = 5
FRAGMENTS = [
    *("[1]", "[2]", "[5]", "[6]", "[0]", "[1, 2]", "[1,9]", "[1-3]", "[3-1]", "[1-300]", "[2][4]"),
    *("【2】", "［3］", "【1、9】", "[ 1 ]", "[1 , 2 ;3]", "[[1]]", "[[9]", "[1[9]", "１", "[１]"),
    *("[", "]", "【", "】", "[12", "[1,", ", 2", "-", "–", "1", "9", "2024", "[2024]", "[1, 2024]"),
    *("[a]", "array[0]", "[^1]", "word", "E-22", "泵的压力是", "多少。", "5 l."),
    *(" ", "  ", "\n", "\n\n", "\t", "\u3000", "\u2028"),
]
answers = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join)


def shown(pieces: list[str], passages: int = PASSAGES) -> tuple[str, list[int], int]:
    """The text, what it cites and how much of it was invalid."""
    markers = Markers(passages)
    text = "".join(markers.feed(piece) for piece in pieces) + markers.finish()
    return text, markers.cited, markers.invalid


def letters(text: str) -> str:
    """What is left without markers and white space."""
    text = re.sub(r"\s", "", text)
    marker = r"[\[【［]\d{1,3}([,，、;；–-]\d{1,3})*[\]】］]"
    while (less := re.sub(marker, "", text)) != text:
        text = less
    return text


@given(answers, st.data())
def test_a_stream_in_any_pieces_is_the_answer_as_a_whole(answer: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=12)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert shown(pieces) == shown([answer])
    assert shown(list(answer)) == shown([answer])


@given(answers)
def test_nothing_but_markers_and_white_space_is_lost(answer: str) -> None:
    text, _, _ = shown([answer])
    assert letters(text) == letters(answer)


@given(answers)
def test_each_marker_that_is_shown_leads_to_a_passage(answer: str) -> None:
    text, cited, _ = shown([answer])
    numbers = [int(number) for number in re.findall(r"\[(\d{1,3})\]", text)]
    assert list(dict.fromkeys(numbers)) == cited
    assert all(1 <= number <= PASSAGES for number in numbers)


@given(answers)
def test_an_answer_that_was_rewritten_is_not_rewritten_again(answer: str) -> None:
    text, cited, _ = shown([answer])
    assert shown([text]) == (text, cited, 0)


@pytest.mark.parametrize(
    ("answer", "text", "cited", "invalid"),
    [
        ("It holds 5 l [2].", "It holds 5 l [2].", [2], 0),
        ("Both [2, 1] and [1-3].", "Both [2][1] and [1][2][3].", [2, 1, 3], 0),
        ("容积为五升【2】。", "容积为五升[2]。", [2], 0),
        ("容积为五升［１、２］。", "容积为五升[1][2]。", [1, 2], 0),
        ("It holds 5 l [6].", "It holds 5 l.", [], 1),
        ("It holds 5 l [0].", "It holds 5 l.", [], 1),
        ("It holds [6] 5 l [1, 7].", "It holds 5 l [1].", [1], 2),
        ("Backwards [3-1].", "Backwards [1][2][3].", [1, 2, 3], 0),
        ("Many [1-300].", "Many [1][2][3][4][5].", [1, 2, 3, 4, 5], 1),
        ("None [700-999].", "None.", [], 1),
        ("Twice [1, 1].", "Twice [1].", [1], 0),
        ("Since [2024], in list [a] and [^1].", "Since [2024], in list [a] and [^1].", [], 0),
        ("Nested [[9]2].", "Nested [2].", [2], 1),
        ("Cut off [1", "Cut off [1", [], 0),
        ("The end. \n\n", "The end.", [], 0),
    ],
)
def test_markers(answer: str, text: str, cited: list[int], invalid: int) -> None:
    assert shown([answer]) == (text, cited, invalid)


def test_text_is_shown_as_soon_as_it_cannot_be_a_marker() -> None:
    markers = Markers(PASSAGES)
    shown = [markers.feed(piece) for piece in ["It", " holds", " [", "1", ", 2", "]", ".", " [a"]]
    assert shown == ["It", " holds", "", "", "", " [1][2]", ".", " [a"]


def test_a_long_answer_takes_no_long_time() -> None:
    """White space and brackets in great number are where such patterns go cubic."""
    started = time.process_time()
    for unit in ("[", " ", "\n[", "[1,", "[1-999]", "[ "):
        shown(list(unit * (1500 // len(unit))))
    assert time.process_time() - started < 5  # half a second is usual, and 20 if it is cubic
