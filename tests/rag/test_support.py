"""Citations of finished answers, and which of their sentences are supported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from embedders import WordEmbedder
from hypothesis import given
from hypothesis import strategies as st

from rag.embedders.sentence_transformers import SentenceTransformersEmbedder
from rag.support import Cited, cite
from rag.types import Chunk, Hit, Statement

FRAGMENTS = [
    *("[1]", "[2]", "[5]", "[0]", "[1][2]", "[", "]", "[12", "1", "2024", "[a]", "# Title"),
    *(
        "word",
        "E-22",
        "泵的压力是",
        "多少。",
        "5 l.",
        "Yes.",
        "- item",
        " ",
        "\n",
        "\n\n",
        "\u2028",
    ),
]
WORDS: Any = WordEmbedder()


@pytest.fixture(scope="session")
def embedder(models_dir: Path) -> SentenceTransformersEmbedder:
    return SentenceTransformersEmbedder(model="all-MiniLM-L6-v2", models_dir=models_dir)


PUMP = (
    "The pump must be checked every spring. Its tank holds 5 litres of oil. "
    "Error E-22 means that the cells are out of balance. Press the blue button for ten seconds."
)
CHINESE = "每年春天检查水泵。油箱的容积是五升。错误E-22表示电池不平衡。"


def hit(text: str, number: int) -> Hit:
    chunk = Chunk(
        id=f"chunk-{number}",
        document_id="doc",
        version="v",
        position=number,
        text=text,
        source="pump.md",
        title="Pump",
        page=number,
    )
    return Hit(chunk, 0.5)


HITS = [hit(PUMP, 1), hit(CHINESE, 2), hit("Nothing of this is about machines at all.", 3)]


@pytest.mark.parametrize(
    ("answer", "quotes"),
    [
        ("The tank holds 5 litres of oil [1].", {1: ["Its tank holds 5 litres of oil."]}),
        ("The tank holds 5 litres of oil. [1]", {1: ["Its tank holds 5 litres of oil."]}),
        ("According to [1], the tank holds 5 litres.", {1: ["Its tank holds 5 litres of oil."]}),
        ("[1] says that the tank holds 5 litres.", {1: ["Its tank holds 5 litres of oil."]}),
        (
            "E-22 means cells out of balance [1]: press the blue button for ten seconds [1].",
            {
                1: [
                    "Error E-22 means that the cells are out of balance.",
                    "Press the blue button for ten seconds.",
                ]
            },
        ),
        (
            "Check the pump each spring.\n\n5 litres of oil in its tank [1]",
            {1: ["The pump must be checked every spring.", "Its tank holds 5 litres of oil."]},
        ),
        ("油箱的容积是五升[2]。", {2: ["油箱的容积是五升。"]}),
        (
            "油箱的容积是五升。[2][1] The pump is checked every spring [1].",
            {2: ["油箱的容积是五升。"], 1: ["The pump must be checked every spring."]},
        ),
        ("Bananas are yellow [3].", {3: []}),
        ("Its tank holds 5 litres.", {1: ["Its tank holds 5 litres of oil."]}),
        ("It has four wheels.", {}),
        ("A passage that is not there [4], nor [0], nor [99999].", {}),
        pytest.param(f"Not a number for int() [{'9' * 5000}].", {}, id="5000 digits"),
    ],
)
def test_citations_quote_the_sentence_that_supports(
    answer: str, quotes: dict[int, list[str]], embedder: Any
) -> None:
    citations = cite(answer, HITS, embedder).citations
    assert [citation.marker for citation in citations] == list(quotes), "in order of first use"
    assert {citation.marker: citation.quotes() for citation in citations} == quotes


def test_a_citation_says_where_its_passage_is() -> None:
    (citation,) = cite("油箱的容积是五升[2]。", HITS, WORDS).citations
    assert (citation.chunk_id, citation.page, citation.source) == ("chunk-2", 2, "pump.md")


texts = st.lists(st.sampled_from([*FRAGMENTS, PUMP, CHINESE]), max_size=12).map("".join)


@given(texts, texts)
def test_spans_lie_inside_the_passage_and_statements_inside_the_answer(
    answer: str, passage: str
) -> None:
    cited = cite(answer, [hit(passage, 1), hit(PUMP, 2)], WORDS)
    markers = [citation.marker for citation in cited.citations]
    assert len(set(markers)) == len(markers)
    by_marker = {citation.marker: citation for citation in cited.citations}
    for citation in cited.citations:
        for start, end in citation.spans:
            assert 0 <= start < end <= len(citation.text)
            assert citation.text[start:end].strip() == citation.text[start:end]
    end = 0
    for statement in cited.statements:
        assert end <= statement.start < statement.end <= len(answer)
        end = statement.end
        assert 0 <= statement.score <= 1
        if statement.supported:
            assert statement.marker is not None
            assert statement.span in by_marker[statement.marker].spans


def statements(answer: str, embedder: Any) -> list[tuple[str, int | None]]:
    found = cite(answer, HITS, embedder).statements
    return [(answer[s.start : s.end], s.marker) for s in found]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # in other words, and with what stands in the title
        ("Inspect the pump each spring [1].", [("Inspect the pump each spring [1].", 1)]),
        # another passage than the one that is cited, and none that is
        ("The tank holds 5 litres of oil [3].", [("The tank holds 5 litres of oil [3].", 1)]),
        ("The tank holds 5 litres of oil.", [("The tank holds 5 litres of oil.", 1)]),
        # a number that nobody wrote
        ("The tank holds 7 litres of oil [1].", [("The tank holds 7 litres of oil [1].", None)]),
        # nothing of the kind
        ("Bananas are yellow [1].", [("Bananas are yellow [1].", None)]),
        (
            "The tank holds 5 litres. [1] It was built in France. [1]",
            [("The tank holds 5 litres.", 1), ("It was built in France.", None)],
        ),
        ("油箱容积五升[2]。每年检查水泵。", [("油箱容积五升[2]。", 2), ("每年检查水泵。", 2)]),
        ("油箱容积九升[2]。", [("油箱容积九升[2]。", None)]),
        ("5 litres of oil [1]", [("5 litres of oil", 1)]),
        # the items of a list: their numbers are nobody's claim
        (
            "1. Its tank holds 5 litres. [1]\n2. Check the pump every spring. [1]",
            [("1. Its tank holds 5 litres.", 1), ("2. Check the pump every spring.", 1)],
        ),
        ("**2)** Its tank holds 5 litres [1].", [("**2)** Its tank holds 5 litres [1].", 1)]),
        ("Step 3: Its tank holds 5 litres. [1]", [("Step 3: Its tank holds 5 litres.", 1)]),
        ("3、油箱的容积是五升[2]", [("3、油箱的容积是五升", 2)]),
        # markers before, and without a space after
        ("[1] Its tank holds 5 litres.", [("Its tank holds 5 litres.", 1)]),
        (
            "[1] Its tank holds 5 litres.\n[2] 每年检查水泵。",
            [("Its tank holds 5 litres.", 1), ("每年检查水泵。", 2)],
        ),
        (
            "Its tank holds 5 litres.[1]Check the pump every spring.[1]",
            [("Its tank holds 5 litres.", 1), ("Check the pump every spring.", 1)],
        ),
        # the same number in other characters
        ("Its tank holds ５ litres [1].", [("Its tank holds ５ litres [1].", 1)]),
    ],
)
def test_each_sentence_has_its_support_or_is_unsupported(
    answer: str, expected: list[tuple[str, int | None]], embedder: Any
) -> None:
    assert statements(answer, embedder) == expected


def test_a_sentence_quoted_word_for_word_is_supported(embedder: Any) -> None:
    for quote in ("Its tank holds 5 litres of oil.", "油箱的容积是五升。"):
        (statement,) = cite(quote, HITS, embedder).statements
        assert statement.supported
        assert statement.score > 0.9


def test_an_unsupported_sentence_has_no_span(embedder: Any) -> None:
    assert cite("Bananas are yellow [3].", HITS, embedder).statements == (
        Statement(0, 23, None, None, pytest.approx(0, abs=0.4)),
    )


def test_without_an_embedder_words_decide() -> None:
    cited = cite("The tank holds 5 litres of oil [1]. Bananas are yellow [1].", HITS)
    assert [statement.marker for statement in cited.statements] == [1, None]


def test_nothing_is_cited_in_nothing() -> None:
    assert cite("", HITS, WORDS) == Cited()
    assert cite("Words.", [], WORDS).citations == ()
