"""Evidence follows what the passages say, of all that they are about."""

from __future__ import annotations

from dataclasses import astuple, replace
from typing import Any

import pytest
from embedders import WordEmbedder

from rag.evidence import DEFAULT, Calibration, weigh
from rag.retrieve import Retrieved, Retriever, SearchOptions
from rag.signals import signals
from rag.types import Chunk, CollectionSpec
from stores.memory import MemoryStore

PUMP = "The pump of Shed 4 runs at 38 litres. Error E-22 means that its float switch is stuck."
TEXTS = {
    "Kelda pump handbook": PUMP,
    "Visitors": "The depot opens at seven in the morning. On Sundays it stays closed.",
    "Leave": "Every colleague gets thirteen days of leave. Ask Gwenllian for a form.",
    "假期": "青岛公司的员工每年有十三天年假。请假须提前一周。",
}
ANSWERED = "What does error E-22 of the Kelda pump mean?"
NOT_ANSWERED = "Who invented the Kelda pump, and what was it named after?"


class Unreadable(WordEmbedder):
    """One that finds every text alike, and knows that it cannot read them."""

    def legibility(self, text: str) -> float:
        return 0.0

    def embed_queries(self, texts: Any) -> Any:
        return super().embed_queries(["same"] * len(texts))


def retriever(
    texts: dict[str, str] = TEXTS, *, titled: bool = True, embedder: WordEmbedder | None = None
) -> Retriever:
    embedder = embedder or WordEmbedder()
    store = MemoryStore(CollectionSpec("docs", 32, "cosine", embedder.fingerprint))
    chunks = [
        Chunk(f"{n}:v:0", str(n), "v", 0, text, f"/{n}", title if titled else "")
        for n, (title, text) in enumerate(texts.items())
    ]
    vectors = embedder.embed_documents([f"{title} {text}" for title, text in texts.items()])
    store.upsert(chunks, vectors)
    return Retriever(store, embedder)


def evidence(question: str, within: Retriever | None = None, **options: Any) -> float:
    within = within or retriever()
    return weigh(question, within.search(question, 5, None, SearchOptions(**options)), within)


@pytest.mark.parametrize("mode", ["hybrid", "dense", "keyword"])
def test_a_passage_that_answers_weighs_more_than_one_on_the_same_subject(mode: Any) -> None:
    assert 0 < evidence(NOT_ANSWERED, mode=mode) < evidence(ANSWERED, mode=mode) < 1


def test_what_only_the_title_shares_with_the_question_counts_less() -> None:
    subject = "Kelda pump handbook"
    assert evidence(subject) < evidence(subject, retriever(titled=False))
    for titled in (True, False):
        within = retriever(titled=titled)
        row = signals([subject], [within.search(subject, 5)], within)[0]
        similarity, beyond_title, rest, *_ = row
        assert beyond_title < (0.2 if titled else similarity) < similarity + 1e-9
        assert rest == 1 if titled else 0 < rest < 1 / 3  # what it lacks is rarer than what it has


def test_a_name_that_no_passage_has_marks_another_thing() -> None:
    likely, other = evidence(ANSWERED), evidence(ANSWERED.replace("E-22", "E-45"))
    assert other / (1 - other) < 0.1 * likely / (1 - likely)


def test_words_far_apart_weigh_less_than_in_a_row() -> None:
    asked = "Which form does Gwenllian keep for the thirteen days?"
    one, other, between = (
        "Gwenllian keeps a form.",
        "Thirteen days are free.",
        "It rains. It rains.",
    )
    near, far = f"{one} {other} {between}", f"{one} {between} {other}"
    texts = [{**TEXTS, "Leave": text} for text in (far, near)]
    less, more = (evidence(asked, retriever(some)) for some in texts)
    assert less < more


def test_a_question_that_the_embedder_cannot_read_is_weighed_by_its_words_alone() -> None:
    blind = retriever(embedder=Unreadable())
    answered, other = "青岛公司的年假有几天？", "谁赢了世界杯？"
    found = blind.search(answered, 5)
    assert found.similarity == pytest.approx(1)
    alone = weigh(answered, replace(found, similarity=None), blind)
    assert weigh(answered, found, blind) == alone > 0.5
    assert evidence(other, blind) < 0.5


def test_where_nothing_was_found_there_is_none() -> None:
    assert weigh("Anything?", Retrieved([], 0.0), retriever()) == 0.0
    assert weigh("?", Retrieved([]), retriever()) == 0.0


def test_neighbours_and_hits_beyond_the_fifth_change_nothing() -> None:
    notes = {f"Note {n}": f"The pump was painted in {1990 + n}." for n in range(4)}
    texts = {**TEXTS, **notes, **{f"Tide {n}": f"High water at {n} o'clock." for n in range(5)}}
    within = retriever(texts)
    found = within.search(ANSWERED, 9)
    first = replace(found, hits=found.hits[:5])
    legs = replace(found.hits[0].legs[0], name="neighbour")
    besides = replace(found.hits[8], legs=(legs,))
    amid = replace(found, hits=[found.hits[0], besides, *found.hits[1:5]])
    rows = signals([ANSWERED] * 3, [found, first, amid], within)
    assert (rows == rows[0]).all()


def test_many_are_one_call_of_the_embedder_and_equal_single_ones() -> None:
    class Counted(WordEmbedder):
        calls = 0

        def embed_queries(self, texts: Any) -> Any:
            self.calls += 1
            return super().embed_queries(texts)

    embedder = Counted()
    within = retriever(embedder=embedder)
    asked = [ANSWERED, NOT_ANSWERED, "When does the depot open?"]
    found = within.search_many(asked, 5)
    embedder.calls = 0
    rows = signals(asked, found, within)
    assert embedder.calls == 1
    for row, question, one in zip(rows, asked, found, strict=True):
        assert row == pytest.approx(signals([question], [one], within)[0], abs=1e-6)


def test_a_passage_deleted_since_it_was_found_is_no_error() -> None:
    within = retriever()
    found = within.search(ANSWERED, 5)
    within.store.delete(ids=[hit.chunk.id for hit in found.hits])
    assert 0 < weigh(ANSWERED, found, within) < 1


def test_a_calibration_is_kept_as_text() -> None:
    learnt = Calibration(similarity=3.25, constant=-9)
    assert Calibration.from_json(learnt.to_json()) == learnt
    assert Calibration.from_json("{}") == DEFAULT
    assert len(astuple(DEFAULT)) == signals([ANSWERED], [Retrieved([])], retriever()).shape[1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[]",
        "3",
        '{"lead": NaN}',
        '{"lead": "1"}',
        '{"lead": null}',
        '{"lead": [1]}',
        '{"other": 1}',
        "[" * 100_000,
    ],
)
def test_what_is_no_calibration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Calibration.from_json(text)
