"""How long a question takes in the command line: `rag ask` over 10,000 chunks, whole process.

    python benchmarks/latency.py [--chunks 10000] [--runs 5]

The chunks are made up of a fixed vocabulary with a fixed seed, embedded by the default embedder
once and stored in FAISS. Prints the seconds of `rag --help`, and of `rag ask` as a whole process
and by its own account from the loaded model on, minimum and median of the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rag.app import App
from rag.settings import load
from rag.types import Chunk, CollectionSpec

WORDS = (
    "harbour pump valve filter oyster salinity probe battery cabinet torque warranty invoice "
    "service depot engineer calibration firmware release sensor record customer policy travel"
).split()


def fill(data_dir: Path, models_dir: Path, count: int) -> None:
    """A collection of `count` chunks of about 40 words, 5 to a document."""
    app = App(load({"data_dir": data_dir, "models_dir": models_dir}).settings)
    embedder = app.embedder()
    store = app.backend.create(
        CollectionSpec("default", embedder.fingerprint.dim, embedder=embedder.fingerprint)
    )
    draw = random.Random(0)
    sentences = [" ".join(draw.choices(WORDS, k=10)).capitalize() + "." for _ in range(400)]
    for start in range(0, count, 1000):
        numbers = range(start, min(start + 1000, count))
        texts = [" ".join(draw.choices(sentences, k=4)) for _ in numbers]
        chunks = [
            Chunk(f"c{n}", f"d{n // 5}", "v", n % 5, text, f"/docs/{n // 5}.txt", f"Document {n}")
            for n, text in zip(numbers, texts, strict=True)
        ]
        store.upsert(chunks, embedder.embed_documents(texts))
    store.close()


def timed(command: list[str], runs: int, environment: dict[str, str]) -> tuple[list[float], str]:
    """Seconds of each run of a command, and what the last one printed."""
    took, out = [], ""
    for _ in range(runs):
        started = time.perf_counter()
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        took.append(time.perf_counter() - started)
        out = done.stdout
    return took, out


def main() -> None:
    """Fill a collection, then time the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    models_dir = load({}).settings.models_dir
    with tempfile.TemporaryDirectory() as scratch:
        fill(Path(scratch), models_dir, arguments.chunks)
        environment = {**os.environ, "RAG_DATA_DIR": scratch, "RAG_MODELS_DIR": str(models_dir)}
        command = [sys.executable, "-m", "rag.cli"]
        question = "Which torque does the pump valve need?"
        print("| command | seconds, minimum | median |\n|---|---|---|")
        for name, rest in (("rag --help", ["--help"]), ("rag ask", ["ask", question, "--json"])):
            took, out = timed([*command, *rest], arguments.runs, environment)
            print(f"| {name} | {min(took):.2f} | {statistics.median(took):.2f} |")
        print(f"\nby its own account: {json.loads(out)['timings_ms']} ms")


if __name__ == "__main__":
    main()
