"""How long a page of documents takes in a large collection, and what there is to filter by.

    python benchmarks/documents.py [--documents 100000] [--store faiss] [--runs 20]

The documents are made up, with a fixed seed: three chunks each with vectors of 16 dimensions, and
three fields. Prints the median milliseconds of pages of 50 at the beginning, in the middle and at
the end, also of a tenant with a hundredth of the documents and of one with the others, of a search
that finds one document, and of the facets. For FAISS, where the documents lie in SQLite, beside the
barest query for the same: 50 sources by the index, a `LIKE`, the fields counted by chunk.
Other stores are embedded ones: memory, chroma, milvus. Give these fewer documents.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

# The script's own folder would make `stores` the script beside this one.
sys.path.pop(0)

import numpy as np

from rag import plugins
from rag.filters import parse
from rag.protocols import VectorStore
from rag.types import Chunk, CollectionSpec, DocumentKey
from stores.facets import facets

DIM, CHUNKS, PAGE, BATCH = 16, 3, 50, 2_000
PLACE = "source, version, document_id"


def fill(store: VectorStore, count: int) -> None:
    """Documents in no order, as folders are not read in the order of their names."""
    numbers = list(range(count))
    random.Random(0).shuffle(numbers)
    draw = np.random.default_rng(0)
    for start in range(0, count, BATCH):
        chunks = [
            Chunk(
                id=f"{n:016x}:{n:016x}:{position}",
                document_id=f"{n:016x}",
                version=f"{n:016x}",
                position=position,
                text="The pump stops when the float switch rises.",
                source=f"/srv/documents/department {n % 37}/report {n:06}.pdf",
                title=f"Report {n} of the harbour",
                ingested_at=1_760_000_000,
                metadata={
                    "tenant": "rare" if n % 100 == 7 else "common",
                    "team": f"team {n % 30}",
                    "year": 1990 + n % 40,
                },
            )
            for n in numbers[start : start + BATCH]
            for position in range(CHUNKS)
        ]
        store.upsert(chunks, draw.normal(size=(len(chunks), DIM)).astype(np.float32))


def bare(file: Path, keys: list[DocumentKey]) -> dict[str, Callable[[], object]]:
    """The queries in SQLite that ask for the least, under the names of what they stand beside."""
    db = sqlite3.connect(file)
    db.execute(f"PRAGMA mmap_size = {2**34}")

    def asked(sql: str, values: tuple[str, ...] = ()) -> Callable[[], object]:
        return lambda: db.execute(sql, values).fetchall()

    sources = f"SELECT source FROM chunks WHERE ({PLACE}) > (?, ?, ?) ORDER BY {PLACE} LIMIT 150"
    places = ("first page", "middle page", "last page")
    return {
        **{name: asked(sources, key) for name, key in zip(places, keys, strict=True)},
        "search": asked("SELECT source FROM chunks WHERE source LIKE '%report 000042%'"),
        "facets": asked("SELECT key, kind, value, count(*) FROM fields GROUP BY key, kind, value"),
    }


def median_ms(work: Callable[[], object], runs: int) -> float:
    """The median of so many runs, after one that nobody counts."""
    work()
    took = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        took.append((time.perf_counter() - started) * 1000)
    return statistics.median(took)


def main() -> None:
    """Fill a collection, then time what the page of documents asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--store", default="faiss")
    parser.add_argument("--runs", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        options = {"index": "Flat"} if given.store == "faiss" else {}  # nothing is searched for
        backend = plugins.load("store", given.store)(data_dir=Path(scratch), **options)
        with closing(backend), closing(backend.create(CollectionSpec("many", DIM))) as store:
            fill(store, given.documents)
            records = list(store.documents())
            first = DocumentKey("", "", "")
            keys = [first, records[len(records) // 2].key, records[-PAGE - 1].key]

            def page(key: DocumentKey, containing: str = "", **where: str) -> Callable[[], object]:
                some = {"containing": containing, "after": key, "limit": PAGE}
                return lambda: list(store.documents(parse(where) if where else None, **some))

            beside = {}
            if given.store == "faiss":
                beside = bare(Path(scratch) / "faiss" / "many" / "chunks.sqlite3", keys)
            asked = {
                "first page": page(keys[0]),
                "middle page": page(keys[1]),
                "last page": page(keys[2]),
                "middle page, common tenant": page(keys[1], tenant="common"),
                "middle page, rare tenant": page(keys[1], tenant="rare"),
                "search": page(first, "REPORT 000042"),
                "facets": lambda: facets(store),
                "facets, common tenant": lambda: facets(store, parse({"tenant": "common"})),
            }
            print(f"{given.store}, {len(records)} documents of {CHUNKS} chunks, p50 in ms\n")
            print("| | ours | bare SQL |\n|---|---|---|")
            for name, work in asked.items():
                ours = f"{median_ms(work, given.runs):.1f}"
                theirs = f"{median_ms(beside[name], given.runs):.1f}" if name in beside else ""
                print(f"| {name} | {ours} | {theirs} |", flush=True)


if __name__ == "__main__":
    main()
