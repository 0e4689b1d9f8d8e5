"""An answer's text against the gold answers: contains-gold and token F1.

Texts are normalised as SQuAD's evaluation does (Rajpurkar et al. 2016): lower case, without
punctuation and English articles; Chinese, Japanese and Korean count by characters, as in CMRC 2018
and MLQA (Lewis et al. 2020). NFKC is applied before, and commas and points inside numbers are no
punctuation: 1,000 is 1000, and 13.5 is neither 13 nor 135.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from rag.sentences import CJK

_MARKER = re.compile(r"\s*\[\d{1,3}\]")
_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_MARK = re.compile(r"(?!(?<=\d)\.(?=\d))(?:[^\w\s]|_)")
_CHARACTER = re.compile(f"([{CJK}])")
_ARTICLES = ("a", "an", "the")


def contains_gold(text: str, golds: Sequence[str]) -> bool:
    """Whether a text holds one of the gold answers, at the bounds of words or CJK characters.

    Markers [n] do not count. Punctuation may join words or part them: "U.S." is in "the US", and
    "Short" in "Short's". The plain test of open-domain question answering, as `has_answer` of DPR
    (Karpukhin et al. 2020).
    """
    return any(
        _within(_tokens(gold, between), _tokens(_MARKER.sub(" ", text), between))
        for gold in golds
        for between in ("", " ")
    )


def token_f1(text: str, golds: Sequence[str]) -> float:
    """SQuAD's F1, 0 to 1: of the tokens that a text shares with a gold answer; the best of these.

    Markers [n] do not count.
    """
    said = _tokens(_MARKER.sub(" ", text))
    return max((_f1(said, _tokens(gold)) for gold in golds), default=0.0)


def _tokens(text: str, between: str = "") -> list[str]:
    """The words and CJK characters of a text; `between` is what punctuation becomes."""
    folded = _COMMA.sub("", unicodedata.normalize("NFKC", text).casefold())
    parted = _CHARACTER.sub(r" \1 ", _MARK.sub(between, folded))
    return [token for token in parted.split() if token not in _ARTICLES]


def _within(wanted: Sequence[str], tokens: Sequence[str]) -> bool:
    return bool(wanted) and f" {' '.join(wanted)} " in f" {' '.join(tokens)} "


def _f1(said: Sequence[str], gold: Sequence[str]) -> float:
    shared = (Counter(said) & Counter(gold)).total()
    return 2 * shared / (len(said) + len(gold)) if shared else 0.0
