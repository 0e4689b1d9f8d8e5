"""TREC runs: what is written comes back, and scores tell the order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag.errors import InputError
from rag.evaluation import runs
from rag.types import Chunk, Hit

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
SCORES = st.floats(-2, 50, width=32) | st.sampled_from([0.5, 1.0])
RUNS = st.dictionaries(
    IDS, st.lists(st.tuples(IDS, SCORES), min_size=1, unique_by=lambda pair: pair[0]), min_size=1
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RUNS)
def test_a_run_comes_back_in_its_order_with_every_id(tmp_path: Path, run: runs.Run) -> None:
    file = tmp_path / "run.trec"
    runs.write(file, run, "rag")
    back = runs.read(file)
    assert {q: [d for d, _ in found] for q, found in back.items()} == {
        q: [d for d, _ in found] for q, found in run.items()
    }
    for line in file.read_text("utf-8").splitlines():
        assert len(line.split(" ")) == 6
        assert line.isascii()
    for found in back.values():
        kept = np.array([score for _, score in found], np.float32)  # as trec_eval keeps them
        assert (np.diff(kept) < 0).all()


def test_scores_stay_as_they_are_where_they_decrease(tmp_path: Path) -> None:
    runs.write(tmp_path / "run", {"q": [("a", 0.75), ("b", 0.5), ("c", 0.5)]}, "rag")
    rows = [line.split() for line in (tmp_path / "run").read_text().splitlines()]
    assert rows[0] == ["q", "Q0", "a", "1", "0.75", "rag"]
    assert rows[1][4] == "0.5"
    assert float(rows[2][4]) == pytest.approx(0.5, abs=1e-6)


def test_documents_are_ranked_by_their_best_chunk() -> None:
    hits = [
        Hit(Chunk(f"{d}{n}", d, "1", n, "text", d), score)
        for n, (d, score) in enumerate([("a", 0.9), ("b", 0.8), ("a", 0.7), ("c", 0.6)])
    ]
    found = runs.documents(hits, lambda chunk: chunk.document_id)
    assert found == [("a", 0.9), ("b", 0.8), ("c", 0.6)]


def test_a_run_of_others_is_ordered_by_score_then_rank(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("q Q0 c 3 1.0 x\nq\tQ0\tb 2 1.0 x\nq Q0 a 0 7 x\n")
    assert [document for document, _ in runs.read(file)["q"]] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no run"),
        ("q Q0 a 1 0.5 x\nq Q0 b 2\n", "line 2 is not: query Q0 document rank score tag"),
        ("q Q0 a one 0.5 x\n", "line 1 is not"),
        ("q Q0 a 1 nan x\n", "line 1 has no score"),
        ("q Q0 a 1 0.5 x\nq Q0 a 2 0.4 x\n", "line 2"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "run").write_text(text)
    with pytest.raises(InputError, match=says):
        runs.read(tmp_path / "run")


def test_a_run_of_other_queries_is_refused() -> None:
    run = {"1": [("a", 1.0)], "2": [("a", 1.0)]}
    assert runs.common(run, ["2", "3"], Path("old")) == {"2"}
    with pytest.raises(InputError, match="old is a run of other queries"):
        runs.common(run, ["3"], Path("old"))
