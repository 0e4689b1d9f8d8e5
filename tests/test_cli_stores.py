"""The commands about stores and whole collections."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import rag

CORPUS = Path(__file__).parents[1] / "sample_corpus"
pytestmark = pytest.mark.usefixtures("models_dir")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Path:
    """A data folder with a few documents ingested, to copy from."""
    data = tmp_path_factory.mktemp("small")
    done = rag(
        "ingest", CORPUS / "policies", RAG_DATA_DIR=str(data), RAG_MODELS_DIR=str(models_dir)
    )
    assert done.status == 0, done.err
    return data


@pytest.fixture
def ingested(small: Path, tmp_path: Path) -> Path:
    shutil.copytree(small, tmp_path / "data")
    return tmp_path / "data"


def test_a_collection_is_copied_verified_and_answers_the_same(ingested: Path) -> None:
    question = "How long is the warranty?"
    before = rag("search", question, "--json").json
    done = rag("collections", "copy", "default", "second")
    assert done.status == 0, done.err
    assert "chunks copied, 0 were there already" in done.out
    assert "checksum" in done.out
    assert rag("search", question, "--collection", "second", "--json").json == before
    again = rag("collections", "copy", "default", "second", "--json").json
    assert again["copied"] == 0
    assert again["kept"] > 10


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["copy", "default", "default"], 2, "onto itself"),
        (["copy", "none", "other"], 4, "none"),
        (["copy", "default", "other", "--to-store", "fais"], 2, "did you mean 'faiss'?"),
        (["copy", "default", "../x"], 2, "../x"),
        (["reembed", "none", "--model", "all-MiniLM-L6-v2"], 4, "none"),
        (["reembed", "default", "--model", "no/such"], 5, "no/such"),
        (["reembed", "default"], 2, "--model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_copied_or_embedded_is_told(
    arguments: list[str], status: int, says: str, ingested: Path
) -> None:
    done = rag("collections", *arguments)
    assert says in done.error
    assert done.status == status
    assert [row["collection"] for row in rag("collections", "list", "--json").json] == ["default"]


def test_reembedding_makes_another_embedder_the_collections_own(ingested: Path) -> None:
    changed = ["--set", "embedder.query_prefix=query: "]
    assert rag(*changed, "search", "warranty").status == 3
    done = rag(*changed, "collections", "reembed", "default", "--model", "all-MiniLM-L6-v2")
    assert done.status == 0, done.err
    assert "chunks embedded" in done.out
    assert rag(*changed, "search", "warranty").status == 0
    assert "rag collections reembed default" in rag("search", "warranty").error
    assert [row["collection"] for row in rag("collections", "list", "--json").json] == ["default"]
    second = rag(*changed, "ingest", CORPUS / "policies", "--json").json
    assert second["files"]["changed"] == second["files"]["new"] == 0


def test_stores_list_tells_what_is_installed() -> None:
    rows = {row["store"]: row for row in rag("stores", "list", "--json").json}
    assert set(rows) >= {"chroma", "faiss", "memory", "milvus", "pinecone"}
    assert rows["faiss"]["installed"]
    assert rows["faiss"]["packages"]["faiss"]
    assert "memory" in rag("stores", "list").out


def test_stores_list_names_the_extra_for_what_is_missing(tmp_path: Path) -> None:
    """A package that cannot be found, as on a machine without it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'chromadb' else find(name, *a)\n"
    )
    rows = {
        row["store"]: row for row in rag("stores", "list", "--json", PYTHONPATH=str(tmp_path)).json
    }
    assert not rows["chroma"]["installed"]
    assert rows["chroma"]["install"] == "pip install 'ragline[chroma]'"
    done = rag("collections", "list", "--store", "chroma", PYTHONPATH=str(tmp_path))
    assert "ragline[chroma]" in done.error
    assert done.status == 2


def test_stores_check_connects(ingested: Path) -> None:
    found = rag("stores", "check", "--json").json
    assert found["location"].startswith(str(ingested))
    assert found["collections"] == ["default"]
    assert "faiss" in found["version"]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("stores.faiss.indx=HNSW", "stores.faiss.indx is no setting"),
        ("stores.faiss.M=many", "stores.faiss.M is wrong"),
        ("stores.faiss.index=HNSW32", "use one of: auto, Flat"),
        ("stores.faiss.device=cuda", "use one of: auto, cpu"),
    ],
)
def test_settings_of_a_store_are_checked(setting: str, says: str) -> None:
    done = rag("--set", setting, "collections", "list")
    assert says in done.error
    assert done.status == 2


def test_settings_of_a_store_come_from_the_environment_too(ingested: Path) -> None:
    done = rag("stores", "check", RAG_STORES_FAISS='{"M": "48", "index": "HNSW"}')
    assert done.status == 0, done.err
    assert "M is wrong" in rag("stores", "check", RAG_STORES_FAISS='{"M": "x"}').error
