"""The words of a text that carry meaning, folded so that the same word is found again.

Latin words are stemmed and stop words left out; runs of Chinese, Japanese and Korean become pairs
of characters, which needs no dictionary.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

from rag.sentences import CJK

_LETTER = rf"(?:(?![{CJK}])[^\W_])"  # Latin within Chinese text stands without spaces around it
_TOKEN = re.compile(rf"[{CJK}]+|{_LETTER}+(?:[-_.'’]{_LETTER}+)*")
_IS_CJK = re.compile(f"[{CJK}]")
_FIRST_CJK = CJK[0]  # the lowest of the class
_ASCII = re.compile(r"[a-z0-9]+(?:[-_.'][a-z0-9]+)*")  # the same, three times as fast
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?")
_STOP = frozenset(
    (
        "a about all also am an and any are as at be because been being but by can could did do "
        "does doing for from get had has have how i if in into is it its just many may me might "
        "more most much my no not of on one or our out over own shall she should so some such than "
        "that the their them then there these they this those to under up us was we were what when "
        "where which while who whom whose why will with would you your"
    ).split()
)

_one_at_a_time = threading.Lock()
_STOP_CJK = re.compile(
    "什么|多少|怎么样|怎么|怎样|如何|哪些|哪个|哪里|哪儿|哪一|是否|可以|能否|需要|应该|为什么|"
    "请问|我们|你们|他们|多长时间|多久|时候|有没有|是不是|[的了是在有和与及或吗呢吧啊么我你他她它几谁被把对从到就都也很该其之于为]"
)


def tokens(text: str) -> list[str]:
    """The terms in the order of the text: stems, identifiers, numbers, pairs of CJK characters."""
    if text.isascii():
        return [word for token in _ASCII.findall(text.lower()) for word in _word(token)]
    found: list[str] = []
    for token in _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold()):
        cjk = token[0] >= _FIRST_CJK and _IS_CJK.match(token)
        found += _pairs(token) if cjk else _word(token)
    return found


def terms(text: str) -> frozenset[str]:
    """The different terms of a text; see `tokens`."""
    return frozenset(tokens(text))


def identifiers(text: str) -> frozenset[str]:
    """The terms that name one thing exactly: letters, then digits, such as e-45 or ks35."""
    return frozenset(term for term in terms(text) if re.match(r"[a-z]+[-_.]?\d", term))


def numbers(text: str) -> frozenset[str]:
    """The numbers of a text, 1,000 and 1000 being the same one."""
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text))
    return frozenset(number.replace(",", "") for number in found)


def coverage(weights: Mapping[str, float], found: frozenset[str]) -> float:
    """The share of the wanted terms, by weight, that were found: 0 to 1; 0 if none is wanted."""
    total = sum(weights.values())
    return sum(w for term, w in weights.items() if term in found) / total if total else 0.0


def _pairs(token: str) -> list[str]:
    return [
        run[i : i + 2] for run in _STOP_CJK.split(token) if run for i in range(max(1, len(run) - 1))
    ]


def _word(token: str) -> tuple[str, ...]:
    if token.isalpha():
        return _stemmed(token)
    word = re.sub("['’]s$", "", token)
    return _stemmed(word) if word.isalpha() else (word,)


@lru_cache(maxsize=100_000)  # words are few; numbers and names, which pass it by, are without end
def _stemmed(word: str) -> tuple[str, ...]:
    if word in _STOP:
        return ()
    with _one_at_a_time:  # it keeps the word that it works on in itself
        return (_stemmer().stemWord(word),)


@cache
def _stemmer() -> Any:
    import snowballstemmer

    return snowballstemmer.stemmer("english")
