"""Finished answer -> its claims: the sentences of it, and which passages each cites."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rag.sentences import sentences
from rag.terms import terms

_MARKERS = re.compile(r"(?:\s*\[\d{1,3}\])+")
# What numbers an item of a list, and says nothing: "2. ", "**3)** ", "Step 4: ", "第5步，".
_ITEM = re.compile(
    r"[^\w（(]*(?:(?:step|item)\s+|第\s*)?\d{1,3}\s*(?:步|条|项)?[.):：、,，。]\W*(?=[^\W\d])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence of an answer without its markers, its range there, and all that it cites.

    `parts` are what stands before each run of markers in it, with what that cites, and the rest.
    """

    start: int
    end: int
    text: str
    cites: tuple[int, ...]
    parts: tuple[tuple[str, tuple[int, ...]], ...]


def claims_of(answer: str, passages: int) -> list[Claim]:
    """The sentences of an answer, each with the markers that stand in it or after it."""
    plain, kept, marked = _without_markers(answer)
    ranges = _ranges(plain, [at for at, _ in marked])
    runs: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in ranges]
    for at, numbers in marked:
        # A marker that begins a line is of the sentence after it.
        line, _, _ = plain[at:].partition("\n")
        begins = len(line) - len(line.lstrip()) if _begins_line(plain, at) else -1
        before = [n for n, (start, _) in enumerate(ranges) if start < at or start == at + begins]
        if ranges:
            valid = tuple(n for n in dict.fromkeys(numbers) if 1 <= n <= passages)
            runs[before[-1] if before else 0].append((at, valid))
    found = []
    for (start, end), here in zip(ranges, runs, strict=True):
        cites = tuple(dict.fromkeys(n for _, numbers in here for n in numbers))
        parts: list[tuple[str, tuple[int, ...]]] = []
        at = start
        for until, these in [*here, (end, ())]:
            part = _said(plain[at : min(until, end)])
            if these or terms(part):
                parts.append((part, these))
            at = max(at, until)
        found.append(
            Claim(kept[start], kept[end - 1] + 1, _said(plain[start:end]), cites, tuple(parts))
        )
    return found


def collapsed(text: str) -> str:
    """The text with its white space collapsed."""
    return " ".join(text.split())


def _said(text: str) -> str:
    """The words of a sentence, without the number of a list's item before them."""
    words = collapsed(text)
    item = _ITEM.match(words)
    return words[item.end() :] if item else words


def _begins_line(text: str, at: int) -> bool:
    return not text[:at].rpartition("\n")[2].strip()


def _without_markers(answer: str) -> tuple[str, list[int], list[tuple[int, list[int]]]]:
    """The text without markers, where each of its characters stood, and where markers did."""
    plain, at = "", 0
    kept: list[int] = []
    marked = []
    for run in [*_MARKERS.finditer(answer), None]:
        end = run.start() if run else len(answer)
        plain += answer[at:end]
        kept += range(at, end)
        if run:
            lines = run[0].count("\n")  # a marker that begins a line does not end the line before
            plain += "\n" * lines
            kept += [run.start()] * lines
            marked.append((len(kept), [int(number) for number in re.findall(r"\d+", run[0])]))
            at = run.end()
            if answer[at : at + 1].isalnum():  # as in "seven.[1]Parking"
                plain += " "
                kept.append(run.start())
    return plain, kept, marked


def _ranges(plain: str, marked: Sequence[int]) -> list[tuple[int, int]]:
    """The sentences of a text, and lines that are none, such as "Seven", if they cite something."""
    found = [(s.start, s.end) for s in sentences(plain)]
    for line in re.finditer(r"[^\n]*\S", plain):
        start, end = line.start() + len(line[0]) - len(line[0].lstrip()), line.end()
        alone = all(b <= start or a >= end for a, b in found)
        if alone and (not found or any(start <= at <= end for at in marked)):
            found.append((start, end))
    return sorted(found)
