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
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The script's own folder would make `stores` the script beside this one.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from made_up import fill

from rag.app import App
from rag.settings import load


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
        app = App(load({"data_dir": scratch, "models_dir": models_dir}).settings)
        fill(app, arguments.chunks)
        app.close()
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
