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

_FRONT = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_HEADING = re.compile(r"^#\s+(.+?)\s*#*\s*$|\A\s*(\S[^\n]*)\n=+\s*$", re.MULTILINE)
_INLINE_IMAGE = re.compile(r"!\[([^\]]*)\]\(\s*data:[^)]*\)")


def read(data: bytes) -> Parsed:
    """The text as it is written, without front matter and pictures spelt out in base64."""
    text = decode(data).replace("\r\n", "\n")
    metadata: dict[str, Scalar] = {}
    title = ""
    front = _FRONT.match(text)
    if front and (values := _front_matter(front[1])) is not None:
        text = text[front.end() :]
        title = str(values.pop("title", ""))
        metadata = values
    heading = _HEADING.search(text)
    if not title and heading:
        title = heading[1] or heading[2]
    return Parsed((Page(_INLINE_IMAGE.sub(r"\1", text)),), title, metadata)


def _front_matter(text: str) -> dict[str, Scalar] | None:
    """Its plain values; None if it is not a YAML mapping, and so part of the text."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return None
    if not isinstance(values, dict):
        return None
    kept: dict[str, Scalar] = {}
    for key, value in values.items():
        if isinstance(value, datetime.date):  # a date compares rightly as ISO text
            value = value.isoformat()
        with suppress(InputError):  # lists and the like cannot be filtered on
            check_metadata({key: value} if key != "title" else {})
            kept[key] = value
    return kept
