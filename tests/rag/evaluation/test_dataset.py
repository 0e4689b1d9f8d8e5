"""Datasets: what is read, and what is said of bad input."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from rag.errors import InputError
from rag.evaluation.corpus import Corpus
from rag.evaluation.dataset import Dataset, beir, of_collection, read

Make = Callable[..., Path]
DOCUMENTS = [{"_id": f"d{n}", "title": f"Title {n}", "text": f"Text {n}."} for n in range(4)]
QUERIES = [{"_id": f"q{n}", "text": f"question {n}"} for n in range(3)]
QRELS = "query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td1\t2\nq2\td2\t1\n"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A folder in BEIR's layout."""

    def write(
        corpus: Sequence[object] = DOCUMENTS,
        queries: Sequence[object] = QUERIES,
        qrels: str = QRELS,
    ) -> Path:
        folder = tmp_path / "set"
        (folder / "qrels").mkdir(parents=True, exist_ok=True)
        for name, rows in (("corpus", corpus), ("queries", queries)):
            text = "".join(
                (row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows
            )
            (folder / f"{name}.jsonl").write_text(text, "utf-8")
        (folder / "qrels/test.tsv").write_text(qrels, "utf-8")
        return folder

    return write


def load(folder: Path) -> Dataset:
    return beir(Corpus.open(folder))


def test_a_whole_folder_is_read(make: Make) -> None:
    dataset = load(make())
    assert dataset.name == "set"
    assert dataset.queries == {f"q{n}": f"question {n}" for n in range(3)}
    assert dataset.qrels == {"q0": {"d0": 1}, "q1": {"d1": 2}, "q2": {"d2": 1}}
    assert dataset.remarks == ()


def test_documents_are_those_of_the_corpus(make: Make) -> None:
    titled = {"_id": "t", "title": "Wings", "text": "Wings . of birds", "metadata": {"year": 1958}}
    first, *_, last = Corpus.open(make([*DOCUMENTS, titled])).documents()
    assert (first.id, first.source, first.title) == ("d0", "beir/set/d0", "Title 0")
    assert [page.text for page in first.pages] == ["Title 0\nText 0."]
    assert [page.text for page in last.pages] == ["Wings . of birds"]  # the title not twice
    assert dict(last.metadata) == {"year": 1958}


def test_a_compressed_corpus_is_the_same(make: Make) -> None:
    folder = make()
    plain = list(Corpus.open(folder).documents())
    data = (folder / "corpus.jsonl").read_bytes()
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(data))
    assert list(Corpus.open(folder).documents()) == plain
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(data)[:-9])
    with pytest.raises(InputError, match=r"corpus\.jsonl\.gz cannot be read"):
        Corpus.open(folder)


def test_qrels_need_no_header(make: Make) -> None:
    assert load(make(qrels=QRELS.partition("\n")[2])).qrels == load(make()).qrels
    assert load(make(qrels="\ufeff" + QRELS.replace("\n", "\r\n"))).qrels == load(make()).qrels


def test_the_collection_is_named_by_content_and_settings(make: Make) -> None:
    corpus = Corpus.open(make())
    name = corpus.collection("embedder", 220)
    assert name == Corpus.open(make()).collection("embedder", 220)
    assert name.startswith("eval-set-")
    assert name != corpus.collection("embedder", 128)
    assert name != Corpus.open(make(DOCUMENTS[:3])).collection("embedder", 220)
    assert name == Corpus.open(make(queries=QUERIES[:1])).collection("embedder", 220)


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        ({"qrels": QRELS + "q0\tnowhere\t1\n"}, "name an unknown document (count as not found): 1"),
        ({"qrels": QRELS + "q9\td0\t1\n"}, "without a text in queries.jsonl (count as 0): 1"),
        ({"qrels": QRELS + "q0\td0\t1\n"}, "judgements given twice (the higher grade counts): 1"),
        ({"qrels": QRELS.replace("d2\t1", "d2\t0")}, "without a relevant document (left out): 1"),
        ({"queries": [*QUERIES, {"_id": "q8", "text": "x"}]}, "without judgements (left out): 1"),
        ({"queries": [*QUERIES, {"_id": "q0", "text": "x"}]}, "queries that repeat an id"),
        ({"queries": [*QUERIES[:2], {"_id": "q2", "text": " "}]}, "without a text"),
        ({"corpus": [*DOCUMENTS, DOCUMENTS[0]]}, "documents that repeat an id"),
        ({"corpus": [*DOCUMENTS, {"_id": "e", "text": ""}]}, "documents without text"),
    ],
)
def test_what_moves_the_figures_is_counted(
    make: Make, change: dict[str, object], remark: str
) -> None:
    (said,) = load(make(**change)).remarks
    assert remark in said


def test_what_counts_as_zero_stays_judged_and_what_is_left_out_does_not(make: Make) -> None:
    dataset = load(make(qrels=QRELS.replace("d2\t1", "d2\t0") + "q9\td0\t1\n"))
    assert set(dataset.qrels) == {"q0", "q1", "q9"}
    assert set(dataset.queries) == {"q0", "q1"}


def test_the_first_of_a_repeated_id_counts(make: Make) -> None:
    twice = make(
        [*DOCUMENTS, {"_id": "d0", "text": "other"}], [*QUERIES, {"_id": "q0", "text": "other"}]
    )
    assert load(twice).queries["q0"] == "question 0"
    texts = {d.id: d.pages[0].text for d in Corpus.open(twice).documents()}
    assert len(texts) == 4
    assert texts["d0"] == "Title 0\nText 0."


def test_a_question_that_nobody_judged_may_be_a_book(make: Make) -> None:
    assert load(make(queries=[*QUERIES, {"_id": "q8", "text": "x" * 9_000}])).queries


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"corpus": []}, "holds no documents"),
        ({"corpus": [*DOCUMENTS, "{"]}, r"corpus.jsonl, line 5 is not a JSON object"),
        ({"corpus": ["[1]"]}, "line 1 is not a JSON object"),
        ({"corpus": [{"title": "x", "text": "y"}]}, 'line 1 has no "_id"'),
        ({"corpus": [{"_id": "x"}]}, 'line 1 has no "text"'),
        ({"corpus": ['{"_id": "x", "text": "\\ud800"}']}, "line 1 is not a JSON object"),
        ({"queries": [*QUERIES, "no"]}, "queries.jsonl, line 4"),
        ({"queries": [{"_id": "other", "text": "x"}]}, "judges none of the queries"),
        ({"qrels": ""}, "holds no judgements"),
        ({"qrels": QRELS + "q0 d0 1\n"}, "test.tsv, line 5 is not query, document and grade"),
        ({"qrels": QRELS + "q0\td0\tgood\n"}, "line 5 has the grade 'good'"),
        ({"qrels": QRELS + "q0\td0\t1001\n"}, "line 5 has a grade that is not between"),
        ({"qrels": QRELS + f"q0\td0\t{10**400}\n"}, "line 5 has a grade that is not between"),
        ({"qrels": "q0\td0\t0\nq1\td1\t-1\n"}, "judges no document relevant"),
        ({"qrels": "q0\tnowhere\t1\n"}, "none of the judged documents"),
        (
            {"queries": [{"_id": "q0", "text": "x" * 9_000}]},
            "queries.jsonl, line 1 cannot be asked",
        ),
    ],
)
def test_malformed_input_is_refused_in_one_line(
    make: Make, change: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        load(make(**change))
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_what_is_not_there_is_named(make: Make, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        Corpus.open(tmp_path / "nowhere")
    folder = make()
    (folder / "corpus.jsonl").write_bytes(b'{"_id": "a", "text": "x"}\n{"_id": "\xff"}\n')
    with pytest.raises(InputError, match="line 2 is not UTF-8"):
        Corpus.open(folder)
    (folder / "qrels/test.tsv").unlink()
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(InputError, match=r"holds no corpus\.jsonl or corpus\.jsonl\.gz"):
        Corpus.open(folder)


def judged(make: Make, qrels: str) -> Dataset:
    folder = make(qrels=qrels)
    return read("mine", folder / "queries.jsonl", folder / "qrels/test.tsv")


def test_paths_are_matched_at_the_boundary_of_a_name(make: Make) -> None:
    dataset = judged(make, "q0\ta.md\t1\nq0\tb/a.md\t2\nq1\tc.md\t1\nq2\t/docs/d.md\t1\n")
    sources = ["/docs/b/a.md", "/docs/xc.md", "/docs/d.md", "/docs/ba.md"]
    found, names = of_collection(dataset, sources)
    assert names == {"/docs/b/a.md": "b/a.md", "/docs/d.md": "/docs/d.md"}
    # Two names of one document are one judgement; what is not there stays, and is not found.
    assert found.qrels == {"q0": {"b/a.md": 2}, "q1": {"c.md": 1}, "q2": {"/docs/d.md": 1}}
    assert found.remarks == ("judgements that name an unknown document (count as not found): 1",)


def test_a_path_of_several_documents_is_refused(make: Make) -> None:
    dataset = judged(make, "q0\ta.md\t1\n")
    with pytest.raises(InputError, match=r"'a\.md' ends several sources"):
        of_collection(dataset, ["/one/a.md", "/two/a.md"])
    with pytest.raises(InputError, match="none of the judged documents"):
        of_collection(dataset, ["/one/b.md"])


def test_a_limit_spreads_over_the_queries(make: Make) -> None:
    dataset = load(make())
    assert list(dataset.limited(2).queries) == ["q0", "q1"]
    assert set(dataset.limited(2).qrels) == {"q0", "q1"}
    assert dataset.limited(9).queries == dataset.queries
