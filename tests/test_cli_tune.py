"""`rag tune` end to end: the sample corpus and its questions, the real embedder, FAISS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import rag

CORPUS = Path(__file__).parents[1] / "sample_corpus"
JUDGED = ("--queries", CORPUS / "eval/queries.jsonl", "--qrels", CORPUS / "eval/qrels/test.tsv")
QUESTION = "When must oysters be chilled?"
pytestmark = pytest.mark.usefixtures("models_dir")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    done = rag("ingest", CORPUS, RAG_DATA_DIR=str(folder), RAG_MODELS_DIR=str(models_dir))
    assert done.status == 0, done.err
    return folder


@pytest.fixture
def ingested(data: Path, tmp_path: Path) -> None:
    """The data of this test's commands."""
    shutil.copytree(data, tmp_path / "data", dirs_exist_ok=True)


def weight() -> float:
    """That of the dense leg for an English question."""
    hits = rag("search", QUESTION, "--explain", "--json").json
    return next(leg["weight"] for hit in hits for leg in hit["legs"] if leg["name"] == "dense")


def notes() -> dict[str, str]:
    return dict(rag("collections", "show", "default", "--json").json["notes"])


@pytest.mark.usefixtures("ingested")
def test_what_was_learnt_is_kept_with_the_collection_and_used() -> None:
    before = weight()
    spoilt = json.dumps({"dense": 1.0, "feedback": 0.0, "neighbours": 0.0, "candidates": 200})
    _annotate(spoilt)
    assert weight() > before
    tried = rag("tune", *JUDGED, "--dry-run", "--json")
    assert tried.status == 0, tried.err
    assert tried.json["changed"] is True
    assert notes()["fusion"] == spoilt
    done = rag("tune", *JUDGED)
    assert done.status == 0, done.err
    assert "on questions not learnt from" in done.out
    assert "rag tune --reset --collection default" in done.out
    assert json.loads(notes()["fusion"]) == tried.json["fusion"]
    assert weight() == pytest.approx(tried.json["fusion"]["dense"])
    assert weight() < 0.98
    assert tried.json["after"] > tried.json["before"]
    assert tried.json["kept"] is False
    assert rag("tune", "--reset").status == 0
    assert weight() == before
    assert "fusion" not in notes()


@pytest.mark.usefixtures("ingested")
def test_without_questions_the_documents_give_them() -> None:
    done = rag("tune", "--json")
    assert done.status == 0, done.err
    assert done.json["source"] == "its own sentences"
    assert done.json["questions"] > 50
    assert ("fusion" in notes()) == done.json["changed"]


@pytest.mark.usefixtures("ingested")
def test_when_to_abstain_is_learnt_kept_and_used() -> None:
    assert rag("ask", QUESTION, "--json").json["abstained"] is False
    _annotate(json.dumps({"constant": -40, "words_constant": -40}), "abstain")
    assert rag("ask", QUESTION, "--json").json["abstained"] is True
    tried = rag("tune", *JUDGED, "--dry-run", "--json")
    assert tried.status == 0, tried.err
    found = tried.json["abstention"]
    assert (found["answerable"], found["unanswerable"], found["changed"]) == (125, 21, True)
    assert found["before"] == {"false_answers": 0, "false_refusals": 1}
    assert found["after"]["false_answers"] + found["after"]["false_refusals"] < 0.8
    assert tried.json["remarks"] == []  # the unanswerable ones are no oddity
    assert rag("ask", QUESTION, "--json").json["abstained"] is True
    done = rag("tune", *JUDGED)
    assert "125 questions with an answer, 21 without" in done.out
    assert "before  100.0%, 0.0%" in done.out
    assert json.loads(notes()["abstain"]) == found["calibration"]
    answer = rag("ask", QUESTION, "--json").json
    assert answer["abstained"] is False
    assert answer["evidence"] >= 0.5
    reset = rag("tune", "--reset", "--json").json
    assert set(reset) == {"collection", "fusion", "calibration"}
    assert "abstain" not in notes()


@pytest.mark.usefixtures("ingested")
def test_too_few_questions_without_an_answer_are_told(tmp_path: Path) -> None:
    lines = (CORPUS / "eval/queries.jsonl").read_text("utf-8").splitlines()
    dropped = [line for line in lines if not json.loads(line)["metadata"]["answerable"]][:5]
    file = tmp_path / "queries.jsonl"
    file.write_text("\n".join(line for line in lines if line not in dropped), "utf-8")
    done = rag("tune", "--queries", file, *JUDGED[2:], "--dry-run")
    assert done.status == 0, done.err
    assert "unanswerable questions: 16, too few" in done.err
    assert "without; " not in done.out


@pytest.mark.usefixtures("ingested")
def test_what_was_learnt_about_abstaining_and_cannot_be_read_is_told() -> None:
    before = rag("ask", QUESTION, "--json").json
    _annotate('{"lead": NaN}', "abstain")
    done = rag("ask", QUESTION, "--json")
    assert done.status == 0
    assert "about abstaining" in done.err
    assert done.json["evidence"] == before["evidence"]


@pytest.mark.usefixtures("ingested")
@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--queries", CORPUS / "eval/queries.jsonl"], 2, "belong together"),
        (["--collection", "nothing"], 4, "nothing"),
        ([CORPUS / "nowhere"], 2, "nowhere"),
        ([CORPUS / "eval", "--collection", "default"], 2, "collection of its own"),
        ([CORPUS / "eval", "--reset"], 2, "--reset"),
        (["--reset", "--dry-run"], 2, "--reset"),
        ([CORPUS / "eval", "--qrels", CORPUS / "eval/queries.jsonl"], 2, "line 1 is not"),
    ],
)
def test_what_cannot_be_learnt_from_is_told(arguments: list[str], status: int, says: str) -> None:
    done = rag("tune", *arguments)
    assert done.status == status, done.err
    assert says in done.err
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("ingested")
def test_a_follow_up_is_searched_with_what_was_asked_before(tmp_path: Path) -> None:
    first, then = "What does E-22 on the TK-40 mean?", "And how long does that take?"
    alone = rag("search", then, "--json").json
    after = rag("search", then, "--after", first, "--json").json
    assert not any("E-22 " in hit["text"] for hit in alone)
    assert any("E-22 " in hit["text"] for hit in after)
    file, out = tmp_path / "questions.jsonl", tmp_path / "hits.jsonl"
    file.write_text(json.dumps({"_id": "1", "text": then, "earlier": [first]}), "utf-8")
    assert rag("search", "--queries", file, "--out", out).status == 0
    row = json.loads(out.read_text("utf-8"))
    assert (row["text"], row["hits"]) == (then, after)


@pytest.mark.usefixtures("ingested")
@pytest.mark.parametrize("earlier", ["电池怎么充电", [" "], [3], 7, [["a"]], ["x" * 9_000]])
def test_earlier_questions_that_are_none_are_told(tmp_path: Path, earlier: object) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"_id": "1", "text": "And then?", "earlier": earlier}), "utf-8")
    done = rag("search", "--queries", file, "--out", tmp_path / "hits.jsonl")
    assert done.status == 2
    assert "questions.jsonl, line 1" in done.error
    assert not (tmp_path / "hits.jsonl").exists()


@pytest.mark.usefixtures("ingested")
@pytest.mark.parametrize("note", ['{"dense": "nan"}', '{"dense": NaN}', '{"candidates": -1}', "["])
def test_what_was_learnt_and_cannot_be_read_is_told(note: str) -> None:
    before = weight()
    _annotate(note)
    done = rag("search", QUESTION, "--json")
    assert done.status == 0
    assert "cannot be read" in done.err
    assert "rag tune --reset" in done.err
    assert weight() == before


@pytest.mark.usefixtures("ingested")
def test_an_empty_follow_up_and_an_out_that_is_the_queries_are_refused(tmp_path: Path) -> None:
    assert "is empty" in rag("search", " ", "--after", QUESTION).error
    file = tmp_path / "same.jsonl"
    file.write_text(json.dumps({"_id": "1", "text": QUESTION}), "utf-8")
    assert "overwrite" in rag("search", "--queries", file, "--out", file).error
    assert QUESTION in file.read_text("utf-8")


@pytest.mark.usefixtures("ingested")
def test_an_out_that_is_a_link_is_written_through_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    file, target, link = (folder / name for name in ("q.jsonl", "hits.jsonl", "link.jsonl"))
    file.write_text(json.dumps({"_id": "1", "text": QUESTION}), "utf-8")
    link.symlink_to(target)
    assert rag("search", "--queries", file, "--out", link).status == 0
    assert link.is_symlink()
    assert json.loads(target.read_text("utf-8"))["_id"] == "1"
    with (tmp_path / "out").open("wb") as out:  # as `--out /dev/stdout > out` does
        command = [sys.executable, "-m", "rag.cli", "search", "--queries", str(file)]
        subprocess.run([*command, "--out", "/dev/stdout"], stdout=out, check=True, timeout=100)
    assert Path("/dev/stdout").is_symlink()
    assert json.loads((tmp_path / "out").read_text("utf-8"))["_id"] == "1"
    failed = rag("search", "--queries", file, "--out", folder / "new.jsonl", "--where", '{"$x": 1}')
    assert failed.status == 2
    refused = rag("search", "--queries", file, "--out", folder / "no" / "new.jsonl")
    assert refused.status == 2
    assert {path.name for path in folder.iterdir()} == {"q.jsonl", "hits.jsonl", "link.jsonl"}


@pytest.mark.usefixtures("ingested")
def test_a_reader_that_goes_away_is_no_error() -> None:
    """As in `rag search … | head -1`, when head has what it wants."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "rag.cli", "search", QUESTION, "--explain"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=100)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def _annotate(note: str, name: str = "fusion") -> None:
    from rag.app import App
    from rag.settings import load

    app = App(load({}).settings)
    with app.store() as store:
        store.annotate({name: note})
    app.close()
