"""Texts of documents and models, made safe to show.

Streamlit's Markdown knows links, pictures, formulas and directives, which a document could use to
have something fetched, or to look like a part of the page. So what is not ours is shown as HTML in
which everything is escaped, and in labels, which are always Markdown, with its marks taken out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from string import punctuation
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_MARKS = re.compile(f"[{re.escape(punctuation)}]")
# Streamlit replaces these even where they are escaped: addresses, :emoji:, <- and --.
_REPLACED = re.compile(r"(?<=:)(?=\S)|(?<=@)|(?<=[<>~=-])(?=[<>=-])|(?<=www)(?=\.)", re.IGNORECASE)
_JOINER = "\u2060"  # no width, and no line break
_CITED = re.compile(r"\[(\d{1,3})\]")


def plain(text: str) -> str:
    """Markdown, for a label or a message of Streamlit's, that shows the text as it is."""
    kept = _REPLACED.sub(_JOINER, " ".join(text.split()))
    return _MARKS.sub(lambda mark: f"\\{mark[0]}", kept)


def verbatim(text: str) -> str:
    """HTML of a text as it is, line ends too."""
    return f'<div class="rag-text" dir="auto">{escape(text)}</div>'


def answer(text: str) -> str:
    """HTML of an answer: its emphasis, lists, tables and code; [n] as a mark; no links.

    No pictures either, nor HTML of its own: these are shown as they are written.
    """
    return f'<div class="rag-answer" dir="auto">{_markdown().render(text)}</div>'


def passage(text: str, spans: Iterable[Sequence[int]]) -> str:
    """HTML of a passage as it is; what stands in the [start, end) `spans` is marked."""
    html, done = [], 0
    for start, end in sorted((max(0, a), min(b, len(text))) for a, b in spans):
        if end > max(start, done):
            start = max(start, done)
            html += [escape(text[done:start]), f"<mark>{escape(text[start:end])}</mark>"]
            done = end
    html.append(escape(text[done:]))
    return f'<div class="rag-text" dir="auto">{"".join(html)}</div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """HTML of a table of texts. The first column names the row."""
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="rag-table"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


@cache
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("table")
    # A line of "---" below a text would make it a heading.
    parser.disable(["link", "image", "autolink", "reference", "lheading"])
    parser.add_render_rule("text", _text)
    return parser


def _text(_renderer: Any, tokens: Sequence[Any], n: int, _options: Any, _env: Any) -> str:
    cited = r'<sup class="rag-cited">\1</sup>'
    return _CITED.sub(cited, escape(tokens[n].content))
