"""The report stands alone, and shows texts as texts."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from rag.evaluation.compare import compare
from rag.evaluation.dataset import Dataset
from rag.evaluation.evaluate import Evaluation, evaluate
from rag.evaluation.report import html
from rag.types import Chunk, Hit

HOSTILE = "<script src=http://evil.example/x.js>alert(1)</script>&amp;"


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str | None]] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def done() -> Evaluation:
    found = Chunk("c", HOSTILE, "1", 0, f"passage {HOSTILE}", f"/docs/{HOSTILE}", title=HOSTILE)
    dataset = Dataset(
        f"set {HOSTILE}",
        {"good": "found?", "bad": f"lost? {HOSTILE}"},
        {"good": {HOSTILE: 1}, "bad": {f"gone {HOSTILE}": 2}},
    )
    return evaluate(lambda asked, k: [[Hit(found, 0.5)] for _ in asked], dataset, [1, 10])


@pytest.fixture(scope="module")
def page(done: Evaluation) -> Page:
    comparison = compare(done.per_query, done.per_query)
    return Page(html({"faiss": done, "milvus": done}, [1, 10], {"faiss": comparison}))


def test_texts_are_shown_and_never_obeyed(page: Page) -> None:
    assert "script" not in page.tags
    for text in ("lost?", "passage", "gone", "set", "/docs/"):
        assert f"{text} {HOSTILE}" in page.text or f"{text}{HOSTILE}" in page.text


def test_nothing_is_fetched(page: Page) -> None:
    for name, value in page.attributes:
        assert name not in {"src", "onload"}
        assert name not in {"href", "clip-path"} or re.match(r"#|url\(#", value or ""), value
        assert "//" not in (value or ""), (name, value)
    assert not {"link", "img", "iframe", "object"} & page.tags


def test_both_plots_and_the_worst_queries_are_there(page: Page, done: Evaluation) -> None:
    assert "svg" in page.tags
    assert page.text.index("lost?") < page.text.index("found?")
    assert "grade 2, not found" in page.text
    assert "grade 1, at rank 1" in page.text
    for name in done.metrics:
        assert name in page.text
    assert "faiss against the baseline" in page.text
