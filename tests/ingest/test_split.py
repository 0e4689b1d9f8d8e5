from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from embedders import WordEmbedder
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.split import Splitter
from rag.embedders.sentence_transformers import SentenceTransformersEmbedder
from rag.errors import ConfigError
from rag.types import Document, Page

words = st.sampled_from(
    [
        "alpha",
        "beta.",
        "gamma,",
        "第一句话。",
        "問い？",
        "한국어",
        "IVF_FLAT",
        "\n",
        "\n\n",
        "\n## Title\n",
        "x" * 90,
        "3.14",
        "e.g.",
        "！",
        "「はい」",
        " ",
        "\t",
        "😀",
    ]
)
texts = st.lists(words, max_size=120).map(" ".join)


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text)


@settings(max_examples=200, deadline=None)
@given(text=texts, tokens=st.integers(2, 40))
def test_no_piece_is_over_the_limit_and_nothing_is_lost(text: str, tokens: int) -> None:
    embedder = WordEmbedder(max_tokens=tokens + 1)
    pieces = Splitter(embedder, tokens, 0).pieces(text)
    assert all(count <= embedder.max_tokens for count in embedder.count_tokens(pieces))
    assert squeezed("".join(pieces)) == squeezed(text)
    assert all(piece.strip() for piece in pieces)


@pytest.fixture(scope="module")
def minilm(models_dir: Path) -> SentenceTransformersEmbedder:
    return SentenceTransformersEmbedder(model="all-MiniLM-L6-v2", models_dir=models_dir)


@settings(max_examples=30, deadline=None)
@given(text=texts)
def test_the_limit_is_in_the_embedders_own_tokens(
    minilm: SentenceTransformersEmbedder, text: str
) -> None:
    pieces = Splitter(minilm, 1000, 0).pieces(text * 5)
    assert all(count <= 256 for count in minilm.count_tokens(pieces))
    assert squeezed("".join(pieces)) == squeezed(text * 5)


@pytest.mark.parametrize(
    ("sentence", "mark"),
    [
        ("潮汐箱的电池可以用十四个小时", "。"),
        ("この箱は十四時間動きます", "。"),
        ("The box runs long", "."),
        ("你知道吗", "？"),
        ("他说：「好的", "。」"),
        ("It is so", '."'),
    ],
)
def test_a_sentence_mark_ends_a_chunk_and_never_begins_one(sentence: str, mark: str) -> None:
    text = (sentence + mark + (" " if sentence.isascii() else "")) * 40
    pieces = Splitter(WordEmbedder(), 30, 0).pieces(text)
    assert len(pieces) > 3
    assert all(piece.endswith(mark) for piece in pieces)
    assert not any(piece[0] in '。！？.」"' for piece in pieces)


def test_a_heading_begins_a_chunk() -> None:
    text = "\n".join(f"\n## Part {n}\n" + "word " * 15 for n in range(6))
    pieces = Splitter(WordEmbedder(), 20, 0).pieces(text)
    assert [piece.startswith("## Part") for piece in pieces] == [True] * 6


def test_overlap_repeats_the_end_of_the_piece_before() -> None:
    text = " ".join(f"Word{n}." for n in range(60))
    pieces = Splitter(WordEmbedder(), 20, 5).pieces(text)
    for before, after in itertools.pairwise(pieces):
        assert before.split()[-1] in after.split()[:6]


def test_a_run_without_spaces_is_cut_to_a_readable_length() -> None:
    pieces = Splitter(WordEmbedder(), 20, 0).pieces("x" * 10_000)
    assert max(map(len, pieces)) <= 20 * 8
    assert "".join(pieces) == "x" * 10_000


def test_chunks_know_their_page_and_position() -> None:
    pages = (Page("one " * 30, 1), Page("three " * 5, 3))
    document = Document("d", "/a.pdf", "v", "A", pages, {"year": 2024})
    chunks = Splitter(WordEmbedder(), 10, 0).split(document, ingested_at=5)
    assert [chunk.position for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.id for chunk in chunks] == [f"d:v:{n}" for n in range(len(chunks))]
    assert {chunk.page for chunk in chunks} == {1, 3}
    assert all("three" not in c.text for c in chunks if c.page == 1)
    assert chunks[-1].metadata == {"year": 2024}
    assert chunks[-1].ingested_at == 5


def test_an_overlap_of_more_than_half_a_chunk_is_refused() -> None:
    with pytest.raises(ConfigError, match="overlap"):
        Splitter(WordEmbedder(), 10, 6)
