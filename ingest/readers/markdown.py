"""Markdown, with YAML front matter as title and metadata."""

from __future__ import annotations

import datetime
import re
from contextlib import suppress

import yaml

from ingest.read import Parsed
from ingest.readers.text import decode
from rag.errors import InputError
from rag.filters import check_metadata
from rag.types import Page, Scalar

_FRONT = re.compile(r"\A---[ \t]*\n(.*?\n)??(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_TITLE = re.compile(r" {0,3}#[ \t]+(\S.*)")
# Bounded and without overlap, so that no text makes the search slow.
_INLINE_IMAGE = re.compile(r"!\[([^\[\]]{0,500})\]\(\s{0,9}data:[\w/+.;,=%:-]*\)")


def read(data: bytes) -> Parsed:
    """The text as it is written, without front matter and pictures spelt out in base64."""
    text = decode(data).replace("\r\n", "\n")
    front = _FRONT.match(text)
    values = _front_matter(front[1] or "") if front else None
    if front and values is not None:
        text = text[front.end() :]
    title = str((values or {}).pop("title", "")) or _heading(text)
    return Parsed((Page(_INLINE_IMAGE.sub(r"\1", text)),), title, values or {})


def _heading(text: str) -> str:
    """The first heading of level 1 that is not in a block of code; empty if there is none."""
    fence = ""
    above = ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not line.strip(" `~"):
                fence = ""
        elif mark:
            fence = mark[1]
        elif heading := _TITLE.fullmatch(line):
            return _without_closing(heading[1].rstrip())
        elif above and re.fullmatch(r" {0,3}=+[ \t]*", line):
            return above
        above = "" if fence else line.strip()
    return ""


def _without_closing(heading: str) -> str:
    """`heading` without the # that may end it, which follow a space: "C#" has none."""
    shorter = heading.rstrip("#")
    return shorter.rstrip() if shorter[-1:].isspace() else heading


def _front_matter(text: str) -> dict[str, Scalar] | None:
    """Its plain values; None if it is not a YAML mapping, and so part of the text."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(values, dict | None):
        return None
    kept: dict[str, Scalar] = {}
    for key, value in (values or {}).items():
        if isinstance(value, datetime.date):  # a date compares rightly as ISO text
            value = value.isoformat()
        with suppress(InputError):  # lists and the like cannot be filtered on
            check_metadata({"name" if key == "title" else key: value})
            kept[key] = value
    return kept
