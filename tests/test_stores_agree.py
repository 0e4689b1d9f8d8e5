"""Every store, through the commands: the same documents, the same questions, the same sources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import rag
from pinecone_emulator import PineconeEmulator

CORPUS = Path(__file__).parents[1] / "sample_corpus"
STORES = ["faiss", "chroma", "milvus", "pinecone"]
QUESTIONS = [
    "My box reports E-22. What do I press to start balancing the cells?",
    "How many days of leave does a new employee get?",
    "Who pays for the return of a unit under warranty?",
    "What changed in firmware 3.2.1?",
    "如何开机？",
]
pytestmark = pytest.mark.usefixtures("models_dir")


@pytest.fixture(scope="module")
def pinecone() -> Iterator[list[str]]:
    with PineconeEmulator() as emulator:
        yield [
            f"--set=stores.pinecone.api_key={emulator.api_key}",
            f"--set=stores.pinecone.controller_host={emulator.url}",
        ]
        assert not emulator.violations


@pytest.fixture(scope="module")
def environment_of_module(
    tmp_path_factory: pytest.TempPathFactory, models_dir: Path
) -> dict[str, str]:
    data = tmp_path_factory.mktemp("stores")
    return {"RAG_DATA_DIR": str(data), "RAG_MODELS_DIR": str(models_dir)}


@pytest.fixture(scope="module")
def collections(environment_of_module: dict[str, str], pinecone: list[str]) -> dict[str, str]:
    """sample_corpus in every store."""
    for store in STORES:
        done = rag(*pinecone, "ingest", CORPUS, "--store", store, **environment_of_module)
        assert done.status == 0, done.err
        assert "110 chunks embedded, 110 stored" in done.out
    return environment_of_module


def found(hits: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return [(hit["chunk_id"], pytest.approx(hit["score"], abs=1e-4)) for hit in hits]


def test_the_same_questions_give_the_same_sources(
    collections: dict[str, str], pinecone: list[str]
) -> None:
    for question in QUESTIONS:
        answers = {
            store: rag(*pinecone, "ask", question, "--store", store, "--json", **collections).json
            for store in STORES
        }
        expected = answers["faiss"]
        for store, answer in answers.items():
            assert found(answer["citations"]) == [
                (c["chunk_id"], c["score"]) for c in expected["citations"]
            ], (store, question)
            assert answer["answer"] == expected["answer"], (store, question)


@pytest.mark.parametrize("store", STORES)
def test_a_second_ingest_does_nothing(
    store: str, collections: dict[str, str], pinecone: list[str]
) -> None:
    again = rag(*pinecone, "ingest", CORPUS, "--store", store, "--json", **collections).json
    assert again["files"]["unchanged"] == 20
    assert again["chunks"] == {"embedded": 0, "stored": 0, "deleted": 0}


def test_a_collection_goes_round_through_every_store(
    collections: dict[str, str], pinecone: list[str]
) -> None:
    checksums = set()
    for source, target in zip(STORES, [*STORES[1:], STORES[0]], strict=True):
        stores = ["--from-store", source, "--to-store", target]
        name = "default" if source == STORES[0] else "round"
        done = rag(
            *pinecone, "collections", "copy", name, "round", *stores, "--json", **collections
        )
        assert done.status == 0, done.err
        assert done.json["copied"] == 110
        checksums.add(done.json["checksum"])
    assert len(checksums) == 1


@pytest.mark.parametrize("store", STORES)
def test_check_tells_where_it_is(
    store: str, collections: dict[str, str], pinecone: list[str]
) -> None:
    info = rag(*pinecone, "stores", "check", "--store", store, "--json", **collections).json
    assert "default" in info["collections"]
    assert info["version"]
