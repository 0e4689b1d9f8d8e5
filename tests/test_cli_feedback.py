"""`rag feedback` end to end: ratings become a file that `rag eval` measures with."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path

import pytest
from commands import rag

from ingest.pipeline import document_id
from rag.service.feedback import Feedback, Given, RatingName

SUPPORT = Path(__file__).parents[1] / "sample_corpus/support"
pytestmark = pytest.mark.usefixtures("models_dir")


def rate(data: Path, question: str, cited: Path, rating: RatingName, comment: str = "") -> None:
    passage = (document_id(str(cited)), "chunk")
    answer = Given(question, "", "default", question, "m", (passage,), (passage,), time.time())
    with closing(Feedback(data / "service")) as feedback:
        feedback.add(answer, "k1", rating, comment)


def test_ratings_are_exported_and_measured(tmp_path: Path) -> None:
    files = sorted(SUPPORT.glob("*.html"))
    assert rag("ingest", *files).status == 0
    for number, path in enumerate(files):
        rate(tmp_path / "data", f"What is in {path.stem}, part {number}?", path, "up")
    rate(tmp_path / "data", "Is it \x1b[31mred?", files[0], "down", "no\nit is not")
    done = rag("feedback", "export", tmp_path / "judged")
    assert done.status == 0, done.err
    assert "2 questions with 2 judgements; to look at: 1 in" in done.out
    judged = ["--queries", tmp_path / "judged/queries.jsonl"]
    judged += ["--qrels", tmp_path / "judged/qrels/test.tsv"]
    assert f"rag eval --collection default {' '.join(map(str, judged))}" in done.out
    measured = rag("eval", "--collection", "default", *judged, "--json")
    assert measured.status == 0, measured.err
    assert measured.json["queries"] == 2
    assert measured.json["metrics"]["recall@100"] == 1.0, "the files are all that is there"
    (line,) = (tmp_path / "judged/comments.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["cited"] == [str(files[0])]


def test_ratings_are_listed(tmp_path: Path) -> None:
    assert rag("feedback", "list", "--json").json == []
    assert not (tmp_path / "data").exists(), "to list makes nothing"
    rate(tmp_path / "data", "Is it \x1b[31mred?", Path("/a"), "down", "no\nit is not")
    listed = rag("feedback", "list")
    assert listed.status == 0, listed.err
    assert listed.out.count("\n") == 1
    assert "\x1b" not in listed.out
    assert "down\tdefault\tIs it \ufffd[31mred?\tno it is not" in listed.out
    (rating,) = rag("feedback", "list", "--json").json
    assert (rating["rating"], rating["answer"]["question"]) == ("down", "Is it \x1b[31mred?")
    assert rag("feedback", "list", "--collection", "other").out == ""


def test_what_cannot_be_exported_is_told(tmp_path: Path) -> None:
    missing = rag("feedback", "export", tmp_path / "x", "--collection", "nowhere")
    assert missing.status == 4
    assert "nowhere" in missing.error
    assert rag("feedback", "export", "").status == 2
