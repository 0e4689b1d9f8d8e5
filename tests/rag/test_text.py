"""Sentences and terms: what quoting and abstaining stand on."""

from __future__ import annotations

import string
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import snowballstemmer
from hypothesis import given
from hypothesis import strategies as st

from rag.sentences import is_cjk, sentences
from rag.terms import coverage, identifiers, terms


def split(text: str) -> list[str]:
    return [" ".join(text[s.start : s.end].split()) for s in sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("It costs 3.14 today. Fine.", ["It costs 3.14 today.", "Fine."]),
        ("See e.g. the map. Dr. Who came.", ["See e.g. the map.", "Dr. Who came."]),
        ('He said "no." Then he left.', ['He said "no."', "Then he left."]),
        ("第一句。第二句！“第三句。”第四", ["第一句。", "第二句！", "“第三句。”", "第四"]),
        ("- one item here\n- two items here", ["- one item here", "- two items here"]),
        (
            "A line that was wrapped at the right margin of the\npage goes on. Next.",
            ["A line that was wrapped at the right margin of the page goes on.", "Next."],
        ),
        ("A paragraph that ends without a mark at all here\n\nAnother one.", None),
        ("", []),
        ("   \n ", []),
    ],
)
def test_where_sentences_end(text: str, expected: list[str] | None) -> None:
    assert len(split(text)) == 2 if expected is None else split(text) == expected


def test_headings_and_table_heads_stand_over_sentences() -> None:
    text = "# Prices\nAll in pounds.\n\nBox | Price\n--- | ---\nTK-40 | 900\nTK-40S | 1200"
    found = sentences(text)
    assert [text[s.start : s.end] for s in found] == [
        "All in pounds.",
        "TK-40 | 900",
        "TK-40S | 1200",
    ]
    assert [s.heading for s in found] == ["Prices", "Prices Box | Price", "Prices Box | Price"]


@given(st.text(alphabet="aB .!?\n#|-。！「」x1汉", max_size=200))
def test_sentences_are_in_order_and_lose_only_headings(text: str) -> None:
    found = sentences(text)
    ends = [0, *(s.end for s in found)]
    assert all(s.start >= end for s, end in zip(found, ends, strict=False))
    assert all(text[s.start : s.end].strip() == text[s.start : s.end] for s in found)
    assert all(s.end <= len(text) for s in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The boxes were running", {"box", "run"}),
        (
            "error E-22 and IVF_FLAT, firmware 3.2.1",
            {"error", "e-22", "ivf_flat", "firmwar", "3.2.1"},
        ),
        ("ＴＫ－４０", {"tk-40"}),
        ("the HX-220's door", {"hx-220", "door"}),
        ("年假几天", {"年假", "天"}),
        ("NASUWT是什么组织？", {"nasuwt", "组织"}),
        ("按住TK-40的电源键", {"按住", "tk-40", "电源", "源键"}),
        ("what is it", set()),
    ],
)
def test_terms(text: str, expected: set[str]) -> None:
    assert terms(text) == expected


def test_identifiers_are_letters_and_digits() -> None:
    assert identifiers("Does E-45 or ks35 cost 3 pounds in the 2nd year?") == {"e-45", "ks35"}


def test_coverage_is_a_share_by_weight() -> None:
    assert coverage({"a": 1.0, "b": 3.0}, frozenset({"b"})) == 0.75
    assert coverage({}, frozenset({"b"})) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello", False),
        ("你好吗", True),
        ("TK-40 的电池", True),
        ("ひらがな", True),
        ("123 ?", False),
        ("A long English sentence with 汉字 in it", False),
    ],
)
def test_is_cjk(text: str, expected: bool) -> None:
    assert is_cjk(text) is expected


def test_threads_stem_words_as_one_thread_does() -> None:
    """The stemmer works on a word in itself: two threads in it gave wrong stems, or IndexError."""
    stems = string.ascii_lowercase
    words = [
        f"{a}{b}{c}{end}"
        for a, b, c in product(stems[:8], "aeiou", stems[8:20])
        for end in ("ational", "ing", "fulness", "izations")
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(terms, words))
    finally:
        sys.setswitchinterval(interval)
    alone = snowballstemmer.stemmer("english")
    assert found == [frozenset({alone.stemWord(word)}) for word in words]
