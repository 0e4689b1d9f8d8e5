"""What the defaults find on judged questions, beside each leg alone and reciprocal rank fusion.

    python benchmarks/retrieval.py DATA [--sets scifact,cranfield,…] [--folder KEPT]

DATA holds datasets in BEIR's layout. Each is indexed by `rag`'s defaults (FAISS, all-MiniLM-L6-v2)
and searched for dense, keyword and hybrid; RRF (k = 60) is of the same two legs' rankings. Where a
dataset has `queries_train.jsonl` and `qrels/train.tsv`, `rag tune` learns from these, and the last
column is what the test questions find then. Prints a Markdown table of the figures of ir-measures.

    python benchmarks/retrieval.py --speed [--count 100000]

Times single questions over that many chunks: the embedder alone, dense, hybrid, keyword, turn by
turn; then what the index of words adds to ingestion, as share of embedding and writing.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.pop(0)  # the script's own folder would make `stores` the script beside this one

from rag.app import App
from rag.evaluation import metrics
from rag.evaluation.corpus import Corpus
from rag.evaluation.dataset import Dataset, beir
from rag.evaluation.measure import measure
from rag.evaluation.runs import Run
from rag.fusion import Fusion
from rag.retrieve import Mode, Retriever, SearchOptions
from rag.settings import load
from rag.types import Chunk, CollectionSpec

SHOWN = ("ndcg@10", "recall@1", "recall@5", "recall@10")
MODES: tuple[Mode, ...] = ("keyword", "dense", "hybrid")


def rrf(runs: Sequence[Run], k: int = 60) -> Run:
    """Reciprocal rank fusion (Cormack, Clarke and Büttcher 2009) of rankings of documents."""
    fused: Run = {}
    for query in runs[0]:
        totals: defaultdict[str, float] = defaultdict(float)
        for run in runs:
            for rank, (document, _) in enumerate(run[query], start=1):
                totals[document] += 1 / (k + rank)
        fused[query] = sorted(totals.items(), key=lambda pair: -pair[1])
    return fused


def figures(retriever: Retriever, dataset: Dataset, mode: Mode) -> tuple[dict[str, float], Run]:
    """The figures and the run of one way to search."""
    done = measure(retriever, dataset, [1, 5, 10], options=SearchOptions(mode=mode))
    return done.metrics, done.run


def compared(folder: Path, data_dir: Path) -> None:
    """Print the rows of one dataset."""
    corpus = Corpus.open(folder)
    dataset = beir(corpus)
    app = App(load({"data_dir": data_dir}).settings)
    found: dict[str, dict[str, float]] = {}
    runs: dict[str, Run] = {}
    with app.of_corpus(corpus).retriever() as retriever:
        untuned = retriever.joined_by(Fusion())  # a folder that is kept may be tuned
        for mode in MODES:
            found[mode], runs[mode] = figures(untuned, dataset, mode)
        both = rrf([runs["keyword"], runs["dense"]])
        found["RRF"] = metrics.means(metrics.per_query(dataset.qrels, both, [1, 5, 10]))
        train = folder / "queries_train.jsonl", folder / "qrels/train.tsv"
        if all(file.exists() for file in train):
            from rag.evaluation.tune import tune

            learnt = tune(untuned, beir(corpus, *train))
            tuned = untuned.joined_by(learnt.fusion)
            found["tuned"] = figures(tuned, dataset, "hybrid")[0]
            print(f"<!-- {folder.name}: {learnt} -->")
    for name in SHOWN:
        row = [
            f"{found[way][name]:.3f}" if way in found else "" for way in (*MODES, "RRF", "tuned")
        ]
        print(f"| {folder.name} | {name} | {' | '.join(row)} |", flush=True)
    app.close()


def texts(count: int, unique: int = 20_000) -> list[str]:
    """`count` texts of 40 to 120 words, drawn by Zipf's law, less stop words.

    The frequent ones are those of the sample corpus, the others have a number at the end.
    """
    draw = np.random.default_rng(0)
    corpus = Path(__file__).parents[1] / "sample_corpus"
    read = " ".join(path.read_text("utf-8") for path in sorted(corpus.rglob("*.md")))
    known = list(dict.fromkeys(re.findall("[a-z]{3,}", read.lower())))
    words = [f"{known[n % len(known)]}{n // len(known) or ''}" for n in range(unique)]
    share = 1 / np.arange(20, unique + 20)
    drawn = draw.choice(unique, size=(count, 120), p=share / share.sum())
    lengths = draw.integers(40, 120, count)
    return [" ".join(words[w] for w in drawn[n, : lengths[n]].tolist()) for n in range(count)]


def speed(count: int) -> None:
    """Print the latencies, and what keywords add to ingestion."""
    from ingest.embed import embed
    from stores.contract.data import clustered_vectors
    from stores.faiss import FaissBackend
    from stores.keywords import words_of
    from stores.postings import Postings

    app = App(load({}).settings)
    embedder = app.embedder()
    every = texts(count)
    chunks = [
        Chunk(f"{n // 20:016x}:v:{n % 20}", f"{n // 20:016x}", "v", n % 20, text, f"/d/{n // 20}")
        for n, text in enumerate(every)
    ]
    vectors = clustered_vectors(count, 384)
    with tempfile.TemporaryDirectory() as folder:
        backend = FaissBackend(data_dir=Path(folder))
        store = backend.create(CollectionSpec("bench", 384))
        started = time.perf_counter()
        for start in range(0, count, 2000):
            store.upsert(chunks[start : start + 2000], vectors[start : start + 2000])
        store.close()
        written = time.perf_counter() - started
        store = backend.open("bench")
        retriever = Retriever(store, embedder)
        questions = [" ".join(text.split()[5:13]) for text in every[:: count // 200]]
        took: defaultdict[str, list[float]] = defaultdict(list)
        for question in questions:
            started = time.perf_counter()
            embedder.embed_queries([question])
            took["embed"].append((time.perf_counter() - started) * 1e3)
            for mode in MODES:
                started = time.perf_counter()
                retriever.search(question, 10, options=SearchOptions(mode=mode))
                took[mode].append((time.perf_counter() - started) * 1e3)
        p50 = {way: statistics.median(times) for way, times in took.items()}
        print(f"{count} chunks, index {store.describe().index}; ms, p50 of single questions:")
        print(", ".join(f"{way} {value:.1f}" for way, value in p50.items()))
        print(f"hybrid is dense + {p50['hybrid'] - p50['dense']:.1f} ms")
        store.close()
        backend.close()
    sample = chunks[:2000]
    started = time.perf_counter()
    embed(sample, embedder)
    embedding = (time.perf_counter() - started) / len(sample)
    started = time.perf_counter()
    Postings.of((n, words_of(chunk)) for n, chunk in enumerate(sample))
    indexing = (time.perf_counter() - started) / len(sample)
    rest = embedding + written / count - indexing
    print(
        f"per chunk: embedding {embedding * 1e3:.2f} ms, writing with the index of words "
        f"{written / count * 1e3:.2f} ms, of which words {indexing * 1e3:.2f} ms: "
        f"they add {indexing / rest:.1%} to ingestion"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--sets", default="")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--count", type=int, default=100_000)
    options = parser.parse_args()
    if options.speed:
        speed(options.count)
        return
    if options.data is None:
        parser.error("give DATA or --speed")
    found = sorted(path.parent for path in options.data.glob("*/qrels"))
    wanted = options.sets.split(",") if options.sets else [path.name for path in found]
    print("| set | figure | keyword | dense | hybrid | RRF | tuned |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name in wanted:
            compared(options.data / name, options.folder or Path(temporary))


if __name__ == "__main__":
    main()
