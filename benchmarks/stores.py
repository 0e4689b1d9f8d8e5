"""Each store through its adapter against the bare client, side by side in one run.

    python benchmarks/stores.py [--count 100000] [--stores faiss,chroma,milvus,milvus-lite]

Loads the same clustered vectors (384 dimensions, unit length, 1 % as many centres), texts of 100
words and metadata through the bare client and through our store, with the same index parameters,
and prints a Markdown table: seconds of the load, p50 of single queries, queries a second in
batches of 100, recall@10 against exact search, and p50 with a filter that 1 % of the rows match.
Single queries and batches alternate between the two, so that a noisy machine is fair. Where the
bare client has texts it returns them; bare FAISS has none and returns numbers only.
`milvus` is the real standalone server of the package `milvus`, `milvus-lite` runs in process.

    python benchmarks/stores.py --copy

Copies the collection from FAISS to Chroma and compares with Chroma's own load of the same rows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# The script's own folder would make `stores` this file; the tests' servers are wanted instead.
sys.path[0] = str(Path(__file__).parents[1] / "tests" / "support")

from rag.filters import parse
from rag.protocols import StoreBackend, VectorStore
from rag.types import Chunk, CollectionSpec
from stores.contract.data import clustered_vectors

DIM, K = 384, 10
RARE = parse({"rare": True})
SINGLE, BATCHES, BATCH = 300, 10, 100
FIELDS = ("document_id", "source", "title", "position", "ingested_at")


def rows(count: int) -> list[Chunk]:
    """Chunks as ingestion makes them, 20 to a document; 1 % are rare."""
    text = "harbour pump valve filter oyster salinity probe battery cabinet torque " * 10
    return [
        Chunk(
            id=f"{n // 20:016x}:0123456789abcdef:{n % 20}",
            document_id=f"{n // 20:016x}",
            version="0123456789abcdef",
            position=n % 20,
            text=f"{n} {text}",
            source=f"/docs/{n // 20}.txt",
            title=f"Document {n // 20}",
            page=n % 20 + 1,
            ingested_at=1_760_000_000,
            metadata={"year": 2015 + n % 10, "lang": "en", "rare": n % 100 == 7},
        )
        for n in range(count)
    ]


def flat(chunk: Chunk) -> dict[str, Any]:
    """What a person who uses the bare client would store beside id, text and vector."""
    return {**{name: getattr(chunk, name) for name in FIELDS}, **chunk.metadata}


@dataclass
class Figures:
    """What was measured of one of the two."""

    load: float = 0.0
    single: list[float] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)
    recall: float = 0.0
    filtered: list[float] = field(default_factory=list)


Query = Callable[[Any], list[list[int]]]


class BareFaiss:
    """faiss.IndexHNSWFlat: numbers only."""

    def __init__(self, folder: Path, _server: str) -> None:
        import faiss

        self.index = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
        self.index.hnsw.efConstruction = 200
        self.index.hnsw.efSearch = 64

    def load(self, chunks: list[Chunk], vectors: Any) -> None:
        """Add all."""
        self.index.add(vectors)

    def search(self, queries: Any) -> list[list[int]]:
        """Row numbers of the nearest."""
        found: list[list[int]] = self.index.search(queries, K)[1].tolist()
        return found

    def close(self) -> None:
        """Nothing."""


class BareChroma:
    """chromadb.PersistentClient."""

    def __init__(self, folder: Path, _server: str) -> None:
        import chromadb
        from chromadb.config import Settings

        self.client = chromadb.PersistentClient(
            str(folder / "bare"), settings=Settings(anonymized_telemetry=False)
        )
        hnsw = {"space": "cosine", "ef_construction": 200, "max_neighbors": 32, "ef_search": 64}
        self.collection = self.client.create_collection(
            "bare", configuration={"hnsw": hnsw}, embedding_function=None
        )

    def load(self, chunks: list[Chunk], vectors: Any) -> None:
        """In batches of the client's limit."""
        size = self.client.get_max_batch_size()
        for start in range(0, len(chunks), size):
            part = chunks[start : start + size]
            self.collection.add(
                ids=[chunk.id for chunk in part],
                embeddings=vectors[start : start + size],
                documents=[chunk.text for chunk in part],
                metadatas=[flat(chunk) for chunk in part],
            )

    def search(self, queries: Any) -> list[list[int]]:
        """Texts and metadata come with the hits."""
        found = self.collection.query(query_embeddings=queries, n_results=K)
        return [[int(text.split()[0]) for text in texts] for texts in found["documents"]]

    def close(self) -> None:
        """Nothing."""


class BareMilvus:
    """pymilvus.MilvusClient, with the fields as columns."""

    def __init__(self, folder: Path, server: str) -> None:
        from pymilvus import DataType, MilvusClient

        self.client = MilvusClient(server or str(folder / "bare.db"))
        schema = self.client.create_schema(enable_dynamic_field=True)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=512)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIM)
        schema.add_field("text", DataType.VARCHAR, max_length=65_535)
        index = self.client.prepare_index_params()
        index.add_index(
            "vector", "HNSW", metric_type="COSINE", params={"M": 32, "efConstruction": 200}
        )
        self.client.create_collection("bare", schema=schema, index_params=index)

    def load(self, chunks: list[Chunk], vectors: Any) -> None:
        """In batches of 5,000, flushed at the end."""
        for start in range(0, len(chunks), 5_000):
            part = zip(chunks[start : start + 5_000], vectors[start : start + 5_000], strict=True)
            self.client.insert(
                "bare", [{"id": c.id, "vector": v, "text": c.text, **flat(c)} for c, v in part]
            )
        self.client.flush("bare")

    def search(self, queries: Any) -> list[list[int]]:
        """Texts and metadata come with the hits."""
        found = self.client.search(
            "bare",
            list(queries),
            limit=K,
            search_params={"params": {"ef": 64}},
            output_fields=["text", *FIELDS, "year", "lang", "rare"],
            consistency_level="Bounded",
        )
        return [[int(hit["entity"]["text"].split()[0]) for hit in hits] for hits in found]

    def close(self) -> None:
        """Let the collection go."""
        self.client.drop_collection("bare")
        self.client.close()


HNSW = {"index": "HNSW", "M": 32, "ef_construction": 200}


def faiss_backend(folder: Path, _server: str) -> StoreBackend:
    """Ours over FAISS."""
    from stores.faiss import FaissBackend

    return FaissBackend(data_dir=folder, ef_search=64, **HNSW)


def chroma_backend(folder: Path, _server: str) -> StoreBackend:
    """Ours over Chroma."""
    from stores.chroma import ChromaBackend

    return ChromaBackend(data_dir=folder, ef_construction=200, max_neighbors=32, ef_search=64)


def milvus_backend(folder: Path, server: str) -> StoreBackend:
    """Ours over Milvus."""
    from stores.milvus import MilvusBackend

    return MilvusBackend(data_dir=folder, uri=server, ef=64, **HNSW)


CONTESTANTS: dict[str, tuple[Any, Callable[[Path, str], StoreBackend]]] = {
    "faiss": (BareFaiss, faiss_backend),
    "chroma": (BareChroma, chroma_backend),
    "milvus": (BareMilvus, milvus_backend),
    "milvus-lite": (BareMilvus, milvus_backend),
}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it returned)."""
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def load(store: VectorStore, chunks: list[Chunk], vectors: Any) -> None:
    """As ingestion and copies do: a thousand at a time."""
    for start in range(0, len(chunks), 2_000):
        store.upsert(chunks[start : start + 2_000], vectors[start : start + 2_000])


def numbers(hits: list[list[Any]]) -> list[list[int]]:
    """The row number of each hit, which its text begins with."""
    return [[int(hit.chunk.text.split()[0]) for hit in row] for row in hits]


def measure(name: str, chunks: list[Chunk], vectors: Any, server: str) -> tuple[Figures, Figures]:
    """(bare, ours)."""
    bare, ours = Figures(), Figures()
    queries = clustered_vectors(BATCHES * BATCH, DIM, draw=1)
    best = [set(row) for row in np.argsort(-(queries @ vectors.T), axis=1)[:, :K].tolist()]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make, open_backend = CONTESTANTS[name]
        client = make(folder, server)
        bare.load = timed(lambda: client.load(chunks, vectors))[0]
        backend = open_backend(folder, server)
        spec = CollectionSpec("bench", DIM)
        store = backend.create(spec)
        ours.load = timed(lambda: (load(store, chunks, vectors), store.close()))[0]
        store = backend.open("bench")
        searches: list[tuple[Figures, Query]] = [
            (bare, client.search),
            (ours, lambda some: numbers(store.search(some, K))),
        ]
        for figures, search in searches:
            search(queries[:1])
            found = search(queries)
            shared = [len(set(row) & true) / K for row, true in zip(found, best, strict=True)]
            figures.recall = statistics.mean(shared)
        for n in range(SINGLE):
            for figures, search in searches:
                figures.single.append(timed(lambda s=search, n=n: s(queries[n : n + 1]))[0])  # type: ignore[misc]
        for n in range(BATCHES):
            part = queries[n * BATCH : (n + 1) * BATCH]
            for figures, search in searches:
                figures.batch.append(timed(lambda s=search, p=part: s(p))[0])  # type: ignore[misc]
        for n in range(100):
            took, found = timed(lambda n=n: store.search(queries[n : n + 1], K, RARE))  # type: ignore[misc]
            assert len(found[0]) == K, "a selective filter must still give k"
            ours.filtered.append(took)
        store.close()
        backend.drop("bench")
        backend.close()
        client.close()
    return bare, ours


def lines(name: str, bare: Figures, ours: Figures) -> Iterator[str]:
    """Three rows of the table: bare, ours, and what ours is of bare."""
    for who, f in (("bare", bare), ("ours", ours)):
        filtered = f"{statistics.median(f.filtered) * 1e3:.1f}" if f.filtered else ""
        yield (
            f"| {name} {who} | {f.load:.1f} | {statistics.median(f.single) * 1e3:.2f} | "
            f"{BATCH / statistics.median(f.batch):.0f} | {f.recall:.3f} | {filtered} |"
        )
    single, bare_single = statistics.median(ours.single), statistics.median(bare.single)
    yield (
        f"| ours / bare | {ours.load / bare.load:.2f} | {single / bare_single:.2f} "
        f"(+{(single - bare_single) * 1e3:.2f} ms) | "
        f"{statistics.median(bare.batch) / statistics.median(ours.batch):.2f} | | |"
    )


def copy_figures(chunks: list[Chunk], vectors: Any) -> None:
    """FAISS to Chroma by `stores.copy`, beside Chroma's own load; and the memory it took."""
    import resource

    from stores.copy import copy

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = faiss_backend(folder, "").create(CollectionSpec("from", DIM))
        load(source, chunks, vectors)
        source.close()
        own = timed(lambda: BareChroma(folder, "").load(chunks, vectors))[0]
        source = faiss_backend(folder, "").open("from")
        backend = chroma_backend(folder, "")
        target = backend.create(CollectionSpec("to", DIM))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report = copy(source, target)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"Chroma's own load {len(chunks) / own:.0f} chunks/s; copy FAISS to Chroma "
            f"{len(chunks) / report.copy_seconds:.0f} chunks/s "
            f"({own / report.copy_seconds:.2f} of it), verified in {report.verify_seconds:.1f} s; "
            f"peak memory grew by {(after - before) / 1024:.0f} MB"
        )
        source.close()
        target.close()
        backend.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--stores", default=",".join(CONTESTANTS))
    parser.add_argument("--copy", action="store_true")
    options = parser.parse_args()
    chunks, vectors = rows(options.count), clustered_vectors(options.count, DIM)
    if options.copy:
        copy_figures(chunks, vectors)
        return
    print("| | load, s | p50, ms | batch of 100, queries/s | recall@10 | 1 % filter p50, ms |")
    print("|---|---|---|---|---|---|")
    for name in options.stores.split(","):
        with ExitStack() as stack:
            server = ""
            if name == "milvus":
                from milvus_server import milvus_server

                server = stack.enter_context(milvus_server())
            for line in lines(name, *measure(name, chunks, vectors, server)):
                print(line, flush=True)


if __name__ == "__main__":
    main()
