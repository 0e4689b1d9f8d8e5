"""`rag eval` end to end: a small dataset, the real embedder, real stores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ir_measures
import pytest
from commands import Result, rag
from ir_measures import AP, RR, R, Success, nDCG

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
