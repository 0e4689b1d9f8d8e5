"""`rag answer`: a process of its own, killed and started again; the real embedder and store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Result, rag
from servers import RawServer, Reply, answer, stream, wait_until

FACTS = {
    "tides": "The tide rises twice a day because the moon pulls the sea.",
    "oysters": "Oysters are shipped cold, below eight degrees, in insulated boxes.",
    "train": "The night train to Vienna leaves at ten and arrives at eight.",
    "仓库": "仓库早上七点开门。停车费每天四镑。",
}
QUESTIONS = {
    "q1": "Why does the sea rise?",
    "q2": "How cold are oysters shipped?",
    "q3": "仓库几点开门？",
    "q4": "When does the train leave for Vienna?",
}
pytestmark = pytest.mark.usefixtures("models_dir")


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("answer")
    (folder / "docs").mkdir()
    for name, text in FACTS.items():
        (folder / f"docs/{name}.txt").write_text(text, "utf-8")
    given = {"RAG_DATA_DIR": str(folder / "data"), "RAG_MODELS_DIR": str(models_dir)}
    done = rag("ingest", folder / "docs", **given)
    assert done.status == 0, done.err
    return folder / "data"


@pytest.fixture
def folder(ingested: Path, tmp_path: Path) -> Path:
    shutil.copytree(ingested, tmp_path / "data")
    ask(tmp_path, QUESTIONS)
    return tmp_path


def ask(folder: Path, questions: dict[str, str]) -> None:
    lines = (json.dumps({"_id": i, "text": t}, ensure_ascii=False) for i, t in questions.items())
    (folder / "queries.jsonl").write_text("\n".join(lines), "utf-8")


def run(folder: Path, *more: str, out: str = "answers.jsonl", **environment: str) -> Result:
    arguments = ("answer", "--queries", "queries.jsonl", "--out", out, *more)
    return rag(*arguments, cwd=folder, **environment)


def rows(folder: Path, out: str = "answers.jsonl") -> list[dict[str, Any]]:
    text = (folder / out).read_text("utf-8")
    assert text.endswith("\n")
    found = [json.loads(line) for line in text.splitlines()]
    for row in found:
        del row["timings_ms"]
    return found


def test_every_question_is_answered_in_its_order(folder: Path) -> None:
    done = run(folder, "--json")
    assert done.status == 0, done.err
    assert done.json == {
        "questions": 4,
        "answered": 4,
        "abstained": 0,
        "degraded": 0,
        "kept": 0,
        "out": "answers.jsonl",
    }
    found = rows(folder)
    assert {row["_id"]: row["question"] for row in found} == QUESTIONS
    assert [row["_id"] for row in found] == list(QUESTIONS)
    assert "七点开门" in found[2]["answer"]
    assert found[2]["citations"][0]["source"].endswith("仓库.txt")
    asked = rag("ask", QUESTIONS["q4"], "--json", cwd=folder).json
    assert {**asked, "timings_ms": 0, "_id": "q4"} == {**found[3], "timings_ms": 0}


def test_search_options_and_filters_reach_the_search(folder: Path, ingested: Path) -> None:
    where = json.dumps({"source": str(ingested.parent / "docs/oysters.txt")})
    assert run(folder, "--top-k", "1", "--where", where, "--mode", "keyword").status == 0
    sources = {c["source"].rsplit("/")[-1] for row in rows(folder) for c in row["citations"]}
    assert sources == {"oysters.txt"}


def test_a_killed_run_is_gone_on_with(folder: Path) -> None:
    many = {f"q{n}": f"{QUESTIONS[f'q{n % 4 + 1}']} ({n})" for n in range(120)}
    ask(folder, many)
    undisturbed = run(folder, out="whole.jsonl")
    assert "rag: 120 questions answered, " in undisturbed.err
    out = folder / "answers.jsonl"
    command = ["answer", "--queries", "queries.jsonl", "--out", "answers.jsonl"]
    with subprocess.Popen(
        [sys.executable, "-m", "rag.cli", *command], cwd=folder, stderr=subprocess.DEVNULL
    ) as process:
        wait_until(lambda: out.exists() and out.read_bytes().count(b"\n") > 3, 60)
        os.kill(process.pid, signal.SIGKILL)
    kept = out.read_bytes().count(b"\n")
    assert kept < 120
    again = run(folder)
    assert again.status == 0, again.err
    assert f"rag: {kept} of 120 questions are answered already in answers.jsonl" in again.err
    assert rows(folder) == rows(folder, "whole.jsonl")
    *_, line = lines = (folder / "whole.jsonl").read_bytes().splitlines(keepends=True)
    for torn in (line[:1], line[: len(line) // 2], line[:-1]):
        out.write_bytes(b"".join(lines[:-1]) + torn)
        assert "rag: 119 of 120 questions are answered already" in run(folder).err
        assert rows(folder) == rows(folder, "whole.jsonl")
    assert {path.name for path in folder.iterdir()} == {
        *("data", "queries.jsonl", "answers.jsonl", "whole.jsonl")
    }


def test_an_interrupted_run_says_how_to_go_on(folder: Path) -> None:
    ask(folder, {f"q{n}": f"{QUESTIONS['q1']} ({n})" for n in range(200)})
    out = folder / "answers.jsonl"
    command = ["answer", "--queries", "queries.jsonl", "--out", "answers.jsonl"]
    with subprocess.Popen(
        [sys.executable, "-m", "rag.cli", *command],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_until(lambda: out.exists() and out.read_bytes().count(b"\n") > 3, 60)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("rag: error: interrupted; what was done is kept")
    assert rows(folder)[3]["_id"] == "q3"


def test_only_new_and_changed_questions_are_asked_again(folder: Path) -> None:
    assert run(folder).status == 0
    before = rows(folder)
    assert "rag: 0 questions answered" in run(folder).err
    assert rows(folder) == before
    changed = {"q2": "In what are oysters shipped?", "q1": QUESTIONS["q1"], "q9": QUESTIONS["q4"]}
    ask(folder, changed)
    done = run(folder, "--json")
    assert (done.json["kept"], done.json["answered"]) == (1, 2)
    after = {row["_id"]: row for row in rows(folder)}
    # Answers to questions that are not in this file are nobody's to delete.
    assert list(after) == ["q1", "q3", "q4", "q2", "q9"]
    assert after["q2"]["question"] == changed["q2"]
    assert [after[i] for i in ("q1", "q3", "q4")] == [before[0], *before[2:]]


def test_answers_of_a_failed_model_are_asked_again(folder: Path) -> None:
    said = stream({"choices": [{"delta": {"content": "At ten. [1]"}, "finish_reason": "stop"}]})
    fails = Reply(answer(400, {"error": {"message": "out of memory"}}))
    one = {"RAG_GENERATOR_CONCURRENCY": "1", "RAG_GENERATOR_MODEL": "m"}
    with RawServer(fails) as server:
        done = run(folder, "--json", RAG_GENERATOR_URL=server.url, **one)
    assert done.status == 5
    assert done.json["degraded"] == 4
    assert "the model failed for 4 questions" in done.err
    assert [row["degraded"] for row in rows(folder)] == [["generator"]] * 4
    with RawServer(Reply(said + b"data: [DONE]\n\n")) as server:
        done = run(folder, "--json", RAG_GENERATOR_URL=server.url, **one)
    assert done.status == 0, done.err
    assert (done.json["kept"], done.json["answered"]) == (0, 4)
    assert [row["answer"] for row in rows(folder)] == ["At ten. [1]"] * 4


def test_follow_up_questions_are_answered_as_such(folder: Path) -> None:
    lines = [
        {"_id": "a", "text": QUESTIONS["q2"]},
        {"_id": "b", "text": "And when does it leave?", "earlier": ["Is there a train to Vienna?"]},
    ]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    assert run(folder).status == 0
    _, second = rows(folder)
    assert second["question"] == "And when does it leave?"
    assert "Vienna" in second["search"]
    assert "leaves at ten" in second["answer"]


@pytest.mark.parametrize(
    "content",
    [
        "notes\n",
        "notes",
        '{"_id": "q1", "text": "a query"}',
        '{"_id": "q1"}\n',
        "\x00\n",
        "[]",
        "\n",
    ],
)
def test_a_file_that_holds_anything_else_is_left_alone(folder: Path, content: str) -> None:
    out = folder / "answers.jsonl"
    out.write_text(content, "utf-8")
    done = run(folder)
    assert done.status == 2
    assert "line 1 is no answer of rag answer; name another --out" in done.error
    assert out.read_text("utf-8") == content


@pytest.mark.parametrize(
    ("queries", "out", "says"),
    [
        ('{"_id": "a", "text": "b"}', "queries.jsonl", "--out would overwrite the questions"),
        ('{"_id": "a", "text": "b"}', "nowhere/a.jsonl", "a.jsonl cannot be written"),
        ('{"_id": "a", "text": "b"}', "data", "data cannot be written"),
        ('{"_id": "a", "text": "b"}', "/dev/stdout", "/dev/stdout cannot be written"),
        ('{"_id": "a", "text": "b"}\n{"text": 7}', "a.jsonl", "line 2 has a question that is not"),
        ("", "a.jsonl", "queries.jsonl holds no questions"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_asked(
    folder: Path, queries: str, out: str, says: str
) -> None:
    (folder / "queries.jsonl").write_text(queries, "utf-8")
    done = run(folder, out=out)
    assert done.status == 2
    assert says in done.error
    assert not (folder / "a.jsonl").exists()


def test_no_file_is_made_for_a_collection_that_is_not_there(folder: Path) -> None:
    done = run(folder, "--collection", "none")
    assert done.status == 4
    assert "no collection 'none'" in done.error
    assert not (folder / "answers.jsonl").exists()


def test_a_link_stays_a_link(folder: Path) -> None:
    (folder / "real.jsonl").write_text('{"_id": "q1", "quest', "utf-8")
    (folder / "answers.jsonl").symlink_to("real.jsonl")
    assert run(folder).status == 0
    assert (folder / "answers.jsonl").is_symlink()
    assert len(rows(folder, "real.jsonl")) == 4
