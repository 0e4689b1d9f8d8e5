"""`rag eval` end to end: a small dataset, the real embedder, real stores."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import ir_measures
import pytest
from commands import Result, rag
from ir_measures import AP, RR, R, Success, nDCG
from servers import MODEL, RawServer, Reply, answer, llama_server, stream

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "sample_corpus"
DOCUMENTS = {
    "d 1": ("Tides", "The tide rises twice a day because the moon pulls the sea."),
    "d-2": ("Oysters", "Oysters are shipped cold, below eight degrees, in insulated boxes."),
    "d-3": ("Bees", "A colony of bees makes honey from the nectar of flowers."),
    "dé4": ("Trains", "The night train to Vienna leaves at ten and arrives at eight."),
    "d-5": ("", "Bread rises because yeast makes gas out of sugar."),
    "d-6": ("Glass", "Glass is made by melting sand with soda ash and limestone."),
}
QUERIES = {
    "q1": "Why does the sea rise and fall?",
    "q2": "How cold must oysters be kept?",
    "q3": "Where does honey come from?",
    "q4": "When does the train leave for Vienna?",
    "q5": "unjudged",
}
QRELS = [("q1", "d 1", 1), ("q2", "d-2", 2), ("q2", "d-5", 1), ("q3", "d-3", 1), ("q4", "dé4", 1)]
pytestmark = pytest.mark.usefixtures("models_dir")


def write(folder: Path, qrels: list[tuple[str, str, int]] = QRELS) -> Path:
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": i, "title": t, "text": x} for i, (t, x) in DOCUMENTS.items()]
    queries = [{"_id": i, "text": x} for i, x in QUERIES.items()]
    for name, rows in (("corpus", documents), ("queries", queries)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    lines = [f"{query}\t{document}\t{grade}\n" for query, document, grade in qrels]
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), "utf-8")
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> tuple[Path, Result]:
    """A folder with the dataset, the data and the run of a first evaluation, and what it said."""
    folder = tmp_path_factory.mktemp("eval")
    done = rag(
        "eval",
        write(folder / "set"),
        *("--json", "--run", folder / "first.trec", "--html", folder / "report.html"),
        RAG_DATA_DIR=str(folder / "data"),
        RAG_MODELS_DIR=str(models_dir),
    )
    assert done.status == 0, done.err
    return folder, done


@pytest.fixture
def folder(measured: tuple[Path, Result], tmp_path: Path) -> Path:
    """The same in the folder of this test."""
    shutil.copytree(measured[0], tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_figures_are_those_of_ir_measures_on_the_run_that_was_written(
    measured: tuple[Path, Result],
) -> None:
    folder, done = measured
    run: dict[str, dict[str, float]] = {}
    for line in (folder / "first.trec").read_text("utf-8").splitlines():
        query, _, document, _, score, _ = line.split()
        run.setdefault(query, {})[document] = float(score)
    encoded = {"d 1": "d%201", "dé4": "d%C3%A94"}
    qrels: dict[str, dict[str, int]] = {}
    for query, document, grade in QRELS:
        qrels.setdefault(query, {})[encoded.get(document, document)] = grade
    measures = {
        **{f"recall@{k}": R @ k for k in (1, 5, 10, 100)},
        **{f"hit_rate@{k}": Success @ k for k in (1, 5, 10, 100)},
        "ndcg@10": nDCG @ 10,
        "mrr@10": RR @ 10,
        "map@100": AP @ 100,
    }
    expected = ir_measures.calc_aggregate(list(measures.values()), qrels, run)
    figures = done.json["metrics"]
    assert figures.pop("ann_recall@10") == 1.0
    assert figures == {name: pytest.approx(expected[m], abs=1e-6) for name, m in measures.items()}
    assert figures["recall@5"] > 0.8


def test_the_json_tells_what_was_measured(measured: tuple[Path, Result]) -> None:
    _, done = measured
    assert done.json["queries"] == 4
    assert 0 < done.json["latency_ms"]["p50"] <= done.json["latency_ms"]["p95"]
    settings = done.json["settings"]
    assert (settings["dataset"], settings["store"], settings["chunks"]) == ("set", "faiss", 6)
    assert settings["search"]["mode"] == "hybrid"
    assert done.json["remarks"] == ["queries without judgements (left out): 1"]
    assert "rag: queries without judgements (left out): 1" in done.err


def test_the_report_is_one_file(measured: tuple[Path, Result]) -> None:
    text = (measured[0] / "report.html").read_text("utf-8")
    assert text.count("<svg") == 2
    assert "//" not in text.replace("</", "")


def test_a_collection_is_reused_until_a_setting_changes(folder: Path) -> None:
    again = rag("eval", folder / "set", "--mode", "dense")
    assert again.status == 0, again.err
    assert "using collection eval-set-" in again.err
    assert "indexed" not in again.err
    rows = dict(line.split("\t", 1) for line in again.out.splitlines())
    assert rows["set"] == "faiss (Flat)"
    assert (rows["search"], rows["queries"]) == ("dense", "4")
    assert {"recall@10", "hit_rate@1", "ndcg@10", "mrr@10", "map@100", "p50 ms"} <= rows.keys()
    other = rag("--set", "ingest.chunk_tokens=32", "eval", folder / "set", "--mode", "keyword")
    assert "indexing collection eval-set-" in other.err
    assert "ann_recall" not in other.out
    assert len(rag("collections", "list", "--json").json) == 2


def test_a_baseline_is_compared_query_by_query(folder: Path) -> None:
    lines = (folder / "first.trec").read_text("utf-8").splitlines()
    worse = [line for line in lines if not line.startswith(("q1 Q0 d%201", "q4"))]
    (folder / "old.trec").write_text("\n".join(worse), "utf-8")
    done = rag("eval", folder / "set", "--baseline", folder / "old.trec", "--json")
    assert done.status == 0, done.err
    found = done.json["baseline"]["recall@100"]
    assert (found["wins"], found["losses"], found["ties"]) == (1, 0, 2)
    assert found["value"] == 1.0
    left_out = "judged queries that old.trec does not hold (left out of the comparison): 1"
    assert left_out in done.json["remarks"]
    assert f"rag: {left_out}" in done.err


def test_a_figure_under_its_floor_sets_the_exit_status(folder: Path) -> None:
    floors = ["--fail-under", "recall@10=0.5", "--fail-under", "ndcg@10=1.01"]
    done = rag("eval", folder / "set", *floors, "--json")
    assert done.status == 1
    assert "ndcg@10 is " in done.err
    assert "under 1.01" in done.err
    assert "recall@10 is" not in done.err
    assert done.json["queries"] == 4


def test_several_stores_in_one_go(folder: Path) -> None:
    stores = ["--store", "faiss", "--store", "milvus", "--store", "faiss:HNSW"]
    done = rag("eval", folder / "set", *stores, "--run", folder / "out.trec", "--json")
    assert done.status == 0, done.err
    assert [row["settings"]["store"] for row in done.json] == ["faiss", "milvus", "faiss"]
    assert len({row["settings"]["collection"] for row in done.json}) == 2
    assert len({row["metrics"]["recall@100"] for row in done.json}) == 1
    names = {file.name for file in folder.glob("out*.trec")}
    assert names == {"out-faiss.trec", "out-milvus.trec", "out-faiss-HNSW.trec"}
    # The vectors went from store to store: nothing was embedded again.
    assert "documents indexed" not in done.err


def test_a_collection_is_judged_by_source_path(tmp_path: Path) -> None:
    assert rag("ingest", CORPUS / "policies", CORPUS / "support").status == 0
    files = ["--queries", CORPUS / "eval/queries.jsonl", "--qrels", CORPUS / "eval/qrels/test.tsv"]
    run = tmp_path / "run.trec"
    done = rag("eval", "--collection", "default", *files, "--mode", "dense", "--run", run, "--json")
    assert done.status == 0, done.err
    # Most of the corpus was not taken in: what is judged in it counts as not found.
    assert any("unknown document (count as not found)" in line for line in done.json["remarks"])
    assert 0.1 < done.json["metrics"]["hit_rate@10"] < 0.9
    documents = {line.split()[2] for line in run.read_text("utf-8").splitlines()}
    assert "policies/leave-policy-2024.docx" in documents
    where = ["--where", '{"source": {"$eq": "nowhere"}}']
    none = rag("eval", "--collection", "default", *files, *where, "--limit", "5", "--json").json
    assert (none["queries"], none["metrics"]["recall@100"]) == (5, 0.0)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 2, "eval takes a DATASET, or a --collection"),
        (["set", "--collection", "default"], 2, "eval takes a DATASET, or a --collection"),
        (["--collection", "default"], 2, "--queries and --qrels"),
        (["nowhere"], 2, "there is no folder nowhere"),
        (["set", "--queries", "nowhere.jsonl"], 2, "nowhere.jsonl cannot be read"),
        (["set", "--k", "0,5"], 2, "'0,5'"),
        (["set", "--fail-under", "recall@7=0.5"], 2, "there is no figure 'recall@7'"),
        (["set", "--fail-under", "recall@10=high"], 2, "'high' is not a number"),
        (["set", "--baseline", "other.trec"], 2, "other.trec is a run of other queries"),
        (["set", "--html", "nowhere/report.html"], 2, "nowhere/report.html cannot be written"),
        (["set", "--where", "{"], 2, "not JSON"),
        (["set", "--store", "faiss", "--store", "fais"], 2, "did you mean 'faiss'?"),
        (["set", "--store", "faiss:HNSW32"], 2, "use one of: auto, Flat"),
        (
            [
                "--collection",
                "none",
                "--queries",
                "set/queries.jsonl",
                "--qrels",
                "set/qrels/test.tsv",
            ],
            4,
            "no collection 'none'",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_measured_is_told_in_one_line_before_anything_is_done(
    arguments: list[str], status: int, says: str, tmp_path: Path
) -> None:
    write(tmp_path / "set")
    (tmp_path / "other.trec").write_text("x1 Q0 d-1 1 0.5 rag\n")
    done = rag("eval", *arguments, cwd=tmp_path)
    assert says in done.error
    assert done.status == status
    assert not list((tmp_path / "data").rglob("eval-*"))


def test_a_missing_package_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "ir_measures.py").write_text("raise ImportError('not installed')")
    done = rag("eval", write(tmp_path / "set"), PYTHONPATH=str(tmp_path))
    assert "pip install 'ragline[eval]'" in done.error
    assert done.status == 2


# --- answers


def write_answerable(folder: Path) -> Path:
    """The dataset with gold answers, and questions that it does not answer."""
    write(folder)
    rows = [
        {"_id": "q1", "text": QUERIES["q1"], "answers": ["the moon"]},
        {"_id": "q2", "text": QUERIES["q2"], "answers": ["eight degrees", "8 degrees"]},
        {"_id": "q3", "text": QUERIES["q3"], "answers": ["clover"], "answerable": True},
        {"_id": "q4", "text": QUERIES["q4"], "answers": ["ten"]},
        {"_id": "q5", "text": "Zylqwo braxit?", "metadata": {"answerable": False}},
        {"_id": "q6", "text": "Who won the chess title in 1972?", "answerable": False},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "queries.jsonl").write_text(text, "utf-8")
    return folder


def test_answers_are_measured_with_what_the_questions_say(folder: Path) -> None:
    write_answerable(folder / "gold")
    out = folder / "answers.jsonl"
    arguments = ("eval", folder / "gold", "--answers", "--out", out, "--top-k", "1")
    done = rag(*arguments, "--json", "--fail-under", "contains_gold=0.75")
    assert done.status == 0, done.err
    found = done.json["metrics"]
    assert (found["contains_gold"], found["false_refusals"]) == (0.75, 0.0)
    assert found["citation_precision"] == found["citation_recall"] == 1.0
    assert found["quoted_sentences"] == found["supported_sentences"] == 1.0
    assert found["citation_document_hit_rate"] == found["citation_document_precision"] == 1.0
    assert found["evidence_auc"] == 1.0
    counts = done.json["counts"]
    assert (counts["questions"], counts["answerable"], counts["unanswerable"]) == (6, 4, 2)
    assert counts["false_answers"] == found["false_answers"] * 2
    assert 0 < done.json["ttft_ms"]["p50"] <= done.json["ttft_ms"]["p95"]
    settings = done.json["settings"]
    assert (settings["models"], settings["answer"]["top_k"]) == (["extractive"], 1)
    assert (settings["judge"], settings["chunks"]) == (None, 6)
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [row["_id"] for row in rows] == ["q1", "q2", "q3", "q4", "q5", "q6"]
    assert rows[1]["gold_answers"] == ["eight degrees", "8 degrees"]
    assert "below eight degrees" in rows[1]["answer"]
    assert [row["figures"]["contains_gold"] for row in rows[:4]] == [1.0, 1.0, 0.0, 1.0]


def test_a_figure_of_answers_can_fail(folder: Path) -> None:
    write_answerable(folder / "gold")
    floors = ("--fail-under", "contains_gold=0.8", "--fail-under", "judged_correct=0.5")
    done = rag("eval", folder / "gold", "--answers", *floors)
    assert done.status == 1
    assert "gold: contains_gold is 0.7500, under 0.8" in done.err
    assert "gold: judged_correct cannot be measured" in done.err
    rows = dict(line.split("\t", 1) for line in done.out.splitlines())
    assert rows["gold"] == "extractive"
    assert (rows["contains_gold"], rows["answerable"]) == ("0.7500", "4")


def test_answers_need_neither_gold_nor_judgements(folder: Path) -> None:
    (folder / "set/qrels/test.tsv").unlink()
    done = rag("eval", folder / "set", "--answers", "--limit", "2", "--json")
    assert done.status == 0, done.err
    assert done.json["counts"]["questions"] == 2
    assert not {"contains_gold", "citation_document_hit_rate"} & done.json["metrics"].keys()
    assert done.json["metrics"]["citation_precision"] == 1.0
    left_out = "questions not said to be answerable or not (left out of the figures for abstaining)"
    assert f"{left_out}: 2" in done.json["remarks"]


def test_answers_about_a_collection_are_judged_by_path(folder: Path) -> None:
    for name, (_, text) in DOCUMENTS.items():
        (folder / "docs" / name).mkdir(parents=True)
        (folder / "docs" / name / "page.txt").write_text(text, "utf-8")
    assert rag("ingest", folder / "docs").status == 0
    (folder / "judged.tsv").write_text(
        "q2\td-2/page.txt\t1\nq3\td-1/page.txt\t0\nq3\td-5/page.txt\t1\n"
    )
    files = ("--queries", folder / "set/queries.jsonl", "--qrels", folder / "judged.tsv")
    where = ("--where", '{"page": {"$exists": false}}')
    done = rag("eval", "--answers", "--collection", "default", *files, *where, "--json")
    assert done.status == 0, done.err
    assert done.json["metrics"]["citation_document_hit_rate"] == 0.5
    assert done.json["settings"]["where"] == {"page": {"$exists": False}}


def test_a_real_model_answers_and_judges(folder: Path) -> None:
    write_answerable(folder / "gold")
    with llama_server("chat") as url:
        given = {
            "RAG_GENERATOR_URL": f"{url}/v1",
            "RAG_GENERATOR_MAX_TOKENS": "24",
            "RAG_GENERATOR_CONCURRENCY": "2",
            "RAG_JUDGE_OPTIONS": '{"max_tokens": 40}',
        }
        arguments = ("--answers", "--judge-url", f"{url}/v1", "--limit", "3", "--json")
        done = rag("eval", folder / "gold", *arguments, **given)
    assert done.status == 0, done.err
    assert done.json["settings"]["models"] == [MODEL]
    judge = done.json["settings"]["judge"]
    assert (judge["model"], judge["url"]) == (MODEL, f"{url}/v1")
    assert hashlib.sha256(judge["prompt"].encode()).hexdigest() == judge["prompt_sha256"]
    assert done.json["ttft_ms"]["p50"] > 0
    assert 0 < done.json["tokens_per_s"]["median"] < 10_000
    assert 0 < done.json["tokens_per_s"]["overall"] < 10_000
    counts = done.json["counts"]
    assert counts["degraded"] == 0
    verdicts = counts["answered"] - counts["no_verdict"]
    assert ("judged_grounded" in done.json["metrics"]) is (verdicts > 0)


def test_verdicts_are_kept_with_the_answers(folder: Path) -> None:
    write_answerable(folder / "gold")
    said = '{"reason": "so it is", "correct": true, "grounded": false}'
    event = {"choices": [{"delta": {"content": said}, "finish_reason": "stop"}]}
    listed = Reply(answer(200, {"data": [{"id": "a-judge"}]}))
    paths = {"/health": Reply(answer(200, {})), "/v1/models": listed}
    out = folder / "answers.jsonl"
    with RawServer(Reply(stream(event, "[DONE]")), paths=paths) as server:
        judge = ("--judge", "a-judge", "--judge-url", server.url, "--out", out)
        done = rag("eval", folder / "gold", "--answers", *judge, "--limit", "2", "--json")
    assert done.status == 0, done.err
    assert (done.json["metrics"]["judged_correct"], done.json["counts"]["no_verdict"]) == (1.0, 0)
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    verdict = {"correct": True, "grounded": False, "reason": "so it is"}
    assert [row["verdict"] for row in rows] == [verdict] * 2
    assert rows[0]["figures"]["judged_grounded"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["set", "--answers", "--run", "a.trec"], 2, "--run does not go with --answers"),
        (["set", "--answers", "--k", "5"], 2, "--k does not go with --answers"),
        (["set", "--out", "a.jsonl"], 2, "--out does not go with a measure of retrieval"),
        (["set", "--judge-url", "x"], 2, "--judge-url does not go with a measure of retrieval"),
        (["--answers"], 2, "eval --answers takes a DATASET, or a --collection"),
        (["set", "--answers", "--fail-under", "recall@10=1"], 2, "there is no figure 'recall@10'"),
        (["set", "--answers", "--fail-under", "false_answers=1"], 2, "no figure 'false_answers'"),
        (["set", "--answers", "--out", "nowhere/a.jsonl"], 2, "nowhere/a.jsonl cannot be written"),
        (["set", "--answers", "--store", "faiss", "--store", "chroma"], 2, "one --store"),
        (["set", "--answers", "--judge", "m"], 2, "the judge has no server; add --judge-url"),
        (["set", "--answers", "--judge-url", "x"], 2, "judge.url is 'x', not a URL"),
        (["set", "--answers", "--judge-url", "http://127.0.0.1:1/v1"], 5, "no server answers at"),
        (["set", "--answers", "--where", "{"], 2, "not JSON"),
        (["bad", "--answers"], 2, 'line 1 has "answers" that are not a list'),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_answers_that_cannot_be_measured_are_told_before_anything_is_asked(
    arguments: list[str], status: int, says: str, tmp_path: Path
) -> None:
    write(tmp_path / "set")
    write(tmp_path / "bad")
    (tmp_path / "bad/queries.jsonl").write_text('{"_id": "q1", "text": "?", "answers": 1}', "utf-8")
    done = rag("eval", *arguments, cwd=tmp_path)
    assert says in done.error
    assert done.status == status
    assert not list((tmp_path / "data").rglob("eval-*"))
