"""Ingestion side by side: rag, a bare model.encode of the same chunks, and peers.

    python benchmarks/ingestion.py --dataset FOLDER [--docs 2000] [--queries 300]
        [--peers-python PYTHON --peers-script SCRIPT]

FOLDER has a dataset in BEIR layout (corpus.jsonl[.gz], queries.jsonl, qrels/test.tsv), scifact for
the figures in the README. Its documents become text files, which rag reads, splits, embeds and
stores in FAISS with its defaults; then the queries are searched, top 10. Every contestant runs in
a process of its own, one after the other; models are loaded before the clock starts.
Peers need an interpreter with their packages, and a script that takes `NAME DATASET MODEL` and
prints the same JSON line; without them only rag and the bare encoder run.
`--unchanged 5000` times a second ingestion of that many files instead, as the command line does it.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PEERS = ("langchain", "llamaindex", "haystack", "txtai")


def lines(path: Path) -> Iterator[str]:
    """The lines of a file, or of the same file compressed."""
    if path.exists():
        yield from path.open(encoding="utf-8")
    else:
        with gzip.open(f"{path}.gz", "rt", encoding="utf-8") as file:
            yield from file


def load(root: Path, docs: int, queries: int) -> tuple[dict[str, str], list[tuple[str, set[str]]]]:
    """(text by document id, [(question, relevant ids)]) of the first documents."""
    corpus = [
        json.loads(line) for _, line in zip(range(docs), lines(root / "corpus.jsonl"), strict=False)
    ]
    texts = {d["_id"]: f"{d.get('title', '')}\n{d['text']}".strip() for d in corpus}
    relevant: dict[str, set[str]] = {}
    for row in csv.DictReader(lines(root / "qrels/test.tsv"), delimiter="\t"):
        if int(row["score"]) > 0:
            relevant.setdefault(row["query-id"], set()).add(row["corpus-id"])
    asked = [json.loads(line) for line in lines(root / "queries.jsonl")]
    judged = [
        (q["text"], relevant[q["_id"]])
        for q in asked
        if q["_id"] in relevant and relevant[q["_id"]] <= texts.keys()
    ]
    return texts, judged[:queries]


def write_files(texts: dict[str, str], folder: Path) -> None:
    """Each document as a text file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, "utf-8")


def application(data_dir: Path) -> Any:
    """rag with its defaults; its data in `data_dir`, its models where they are kept."""
    from rag.app import App
    from rag.settings import load as load_settings

    models = load_settings({}).settings.models_dir
    values = {"data_dir": data_dir, "models_dir": models}
    return App(load_settings(values).settings, lambda line: print(line, file=sys.stderr))


def rag(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ingest and search as the application does."""
    from rag.retrieve import Retriever

    texts, queries = load(arguments.dataset, arguments.docs, arguments.queries)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "docs"
        write_files(texts, folder)
        app = application(Path(scratch))
        warm = app.embedder()
        warm.embed_queries(["warm"])
        app.embedder = lambda info=None: warm
        started = time.perf_counter()
        report = app.ingest([folder], metadata={})
        seconds = time.perf_counter() - started
        took, recalls = [], []
        with app.store() as store:
            retriever = Retriever(store, warm)
            retriever.search("warm", 10)
            for question, gold in queries:
                began = time.perf_counter()
                hits = retriever.search(question, 10).hits
                took.append((time.perf_counter() - began) * 1e3)
                found = {Path(hit.chunk.source).stem for hit in hits}
                recalls.append(len(found & gold) / len(gold))
            chunks = [chunk.text for part, _ in store.scan() for chunk in part]
        Path(arguments.chunks).write_text(json.dumps(chunks), "utf-8")
    return {
        "peer": "rag",
        "docs_per_s": round(len(texts) / seconds, 1),
        "recall@10": round(statistics.mean(recalls), 4),
        "query_p50_ms": round(statistics.median(took), 2),
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "chunks": report.embedded,
        "stages_s": {name: round(value, 2) for name, value in report.seconds.items()},
    }


def bare(arguments: argparse.Namespace) -> dict[str, Any]:
    """sentence-transformers alone, with the same chunks and precision, its own batching."""
    import torch
    from sentence_transformers import SentenceTransformer

    from rag import models

    app = application(Path("/nowhere"))
    precision = app.embedder().fingerprint.precision
    folder = models.resolve("all-MiniLM-L6-v2", app.settings.models_dir, print)
    model = SentenceTransformer(
        str(folder), device="cpu", model_kwargs={"dtype": getattr(torch, precision)}
    )
    chunks = json.loads(Path(arguments.chunks).read_text("utf-8"))
    model.encode(["warm"])
    started = time.perf_counter()
    model.encode(chunks)
    seconds = time.perf_counter() - started
    return {
        "peer": f"bare encode, {precision}",
        "docs_per_s": round(arguments.docs / seconds, 1),
        "chunks": len(chunks),
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def peer(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """A peer, by the script that knows it."""
    from rag import models

    folder = models.resolve(
        "all-MiniLM-L6-v2", application(Path("/nowhere")).settings.models_dir, print
    )
    command = [arguments.peers_python, arguments.peers_script, name]
    command += [str(arguments.dataset), str(folder)]
    command += ["--docs", str(arguments.docs), "--queries", str(arguments.queries)]
    return last_line(command)


def last_line(command: list[str]) -> dict[str, Any]:
    """The JSON object on the last line that a command prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def unchanged(arguments: argparse.Namespace) -> None:
    """Seconds of `rag ingest` over files that it has already, whole process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "docs"
        write_files(
            {f"{n:05}": f"Note {n}.\nIt says {n * 7}." for n in range(arguments.unchanged)}, folder
        )
        environment = {**os.environ, "RAG_DATA_DIR": scratch}
        environment["RAG_MODELS_DIR"] = str(application(Path(scratch)).settings.models_dir)
        command = [sys.executable, "-m", "rag.cli", "ingest", str(folder), "--json"]
        for name in ("first", "second"):
            started = time.perf_counter()
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            )
            seconds = time.perf_counter() - started
            report = json.loads(done.stdout)
            print(f"{name}: {seconds:.2f} s, {report['chunks']['embedded']} chunks embedded")


def main() -> None:
    """Run the contestants and print their figures as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default=Path("../shared/data/beir/scifact"))
    parser.add_argument("--docs", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--peers-python")
    parser.add_argument("--peers-script")
    parser.add_argument("--unchanged", type=int, default=0, metavar="FILES")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--chunks", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.unchanged:
        unchanged(arguments)
        return
    if arguments.only:
        print(json.dumps({"rag": rag, "bare": bare}[arguments.only](arguments)))
        return
    with tempfile.NamedTemporaryFile(suffix=".json") as chunks:
        again = [sys.executable, __file__, *sys.argv[1:], "--chunks", chunks.name]
        rows = [last_line([*again, "--only", name]) for name in ("rag", "bare")]
    if arguments.peers_python:
        rows += [peer(name, arguments) for name in PEERS]
    columns = ("peer", "docs_per_s", "recall@10", "query_p50_ms", "rss_mb")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row.get(column, "")) for column in columns) + " |")
    print("\n" + json.dumps(rows[0]))


if __name__ == "__main__":
    main()
