"""No text of a document or a model becomes a part of the page."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ui import markup

HOSTILE = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "![a](https://evil.example/x.png)",
    "[a](https://evil.example)",
    "[a](javascript:alert(1))",
    "<https://evil.example>",
    "https://evil.example",
    "[a]: https://evil.example\n\n[a]",
    "&lt;b&gt; &#60;b&#62;",
    '"><svg/onload=alert(1)>',
    "`<b>`",
    "```html\n<b>\n```",
    "| a | b |\n|---|---|\n| <i>x</i> | ![y](z) |",
]
# What an answer may be made of.
TAGS = set(
    "div p br strong em code pre ul ol li blockquote hr sup h1 h2 h3 h4 h5 h6 "
    "table thead tbody tr th td".split()
)


class Read(HTMLParser):
    """The tags and attributes of HTML as a browser reads it, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= set(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def texts() -> st.SearchStrategy[str]:
    pieces = st.sampled_from(HOSTILE) | st.text(
        st.sampled_from("ab <>&\"'[](){}!*_`|:#-=\n1"), max_size=30
    )
    return st.lists(pieces, max_size=4).map("".join)


@given(texts())
def test_an_answer_has_no_tags_but_those_of_its_form(text: str) -> None:
    read = Read(markup.answer(text))
    assert read.tags <= TAGS
    allowed = {"class", "dir", "start", "style"}
    assert {name for name, _ in read.attributes} <= allowed
    assert {value for name, value in read.attributes if name == "style"} <= {
        "text-align:left",
        "text-align:right",
        "text-align:center",
    }


@given(texts())
def test_a_text_is_shown_as_it_is(text: str) -> None:
    read = Read(markup.verbatim(text))
    assert read.tags == {"div"}
    assert read.text == text


@given(texts(), st.lists(st.tuples(st.integers(-5, 90), st.integers(-5, 90)), max_size=5))
def test_a_passage_is_whole_and_its_spans_are_marked(
    text: str, spans: list[tuple[int, int]]
) -> None:
    html = markup.passage(text, spans)
    read = Read(html)
    assert read.tags <= {"div", "mark"}
    assert read.text == text
    marked = {n for a, b in spans for n in range(max(a, 0), min(b, len(text)))}
    shown = "".join(part.split("</mark>")[0] for part in html.split("<mark>")[1:])
    assert Read(shown).text == "".join(text[n] for n in sorted(marked))


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("**so** and *so* [1].", "<strong>so</strong> and <em>so</em>"),
        ("- one\n- two", "<li>one</li>"),
        ("a [2] b", '<sup class="rag-cited">2</sup>'),
        ("a[1][12].", '<sup class="rag-cited">1</sup><sup class="rag-cited">12</sup>'),
        ("`[1]`", "<code>[1]</code>"),
        ("|a|\n|-|\n|b [1]|", '<td>b <sup class="rag-cited">1</sup></td>'),
        ("答案[1]。", '答案<sup class="rag-cited">1</sup>。'),
    ],
)
def test_the_form_of_an_answer_is_kept(text: str, html: str) -> None:
    assert html in markup.answer(text)


def test_a_table_is_read_by_its_heads() -> None:
    html = markup.table(["<a>", "b"], [["<1>", "2"]], "what it & is")
    read = Read(html)
    assert read.text == "what it & is<a>b<1>2"
    assert ("scope", "col") in read.attributes
    assert ("scope", "row") in read.attributes
