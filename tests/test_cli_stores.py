"""The commands about stores and whole collections."""

from __future__ import annotations

import shutil
import subprocess
import sys
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


@pytest.mark.parametrize(
    "setting",
    [
        "faiss.M=1",
        "faiss.ef_search=0",
        "faiss.nprobe=-1",
        "faiss.M=true",
        "faiss.index=hnsw",
        "chroma.max_neighbors=0",
        "chroma.port=99999999",
        "chroma.timeout_s=-1",
        "chroma.host=http://127.0.0.1",
        "chroma.host=127.0.0.1:8000",
        "milvus.uri=127.0.0.1:19530",
        "milvus.nprobe=0",
        "milvus.timeout_s=nan",
        "pinecone.wait_seconds=-1",
        "pinecone.controller_host=ftp://x",
        "chorma.host=x",
    ],
)
def test_settings_that_a_store_cannot_use_are_refused(setting: str, tmp_path: Path) -> None:
    kind, _, name = setting.partition("=")[0].partition(".")
    store = "chroma" if kind == "chorma" else kind
    key = ["--set", "stores.pinecone.api_key=x"] if kind == "pinecone" else []
    arguments = ["--set", f"stores.{setting}", *key, "collections", "list", "--store", store]
    done = rag(*arguments, RAG_DATA_DIR=str(tmp_path))
    assert done.status == 2, done.err
    assert name in done.err or kind in done.err
    assert len(done.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_setting_of_a_store_by_its_own_variable(tmp_path: Path) -> None:
    given = {"RAG_STORES_CHROMA_HOST": "127.0.0.1", "RAG_STORES_CHROMA_PORT": "1"}
    done = rag("stores", "check", "--store", "chroma", RAG_DATA_DIR=str(tmp_path), **given)
    assert "127.0.0.1:1" in done.err
    shown = rag("config", "show", RAG_STORES_PINECONE_API_KEY="secret")
    assert "RAG_STORES_PINECONE_API_KEY" in shown.out
    assert "secret" not in shown.out + shown.err
    assert "names no setting" not in shown.err
    whole = rag("config", "show", RAG_STORES_PINECONE='{"api_key": "secret"}')
    assert "names no setting" not in whole.err


def test_a_copy_into_a_collection_of_others_writes_nothing(ingested: Path, tmp_path: Path) -> None:
    (tmp_path / "own.md").write_text("My own notes about the sea.", "utf-8")
    assert rag("ingest", tmp_path / "own.md", "--collection", "mine").status == 0
    done = rag("collections", "copy", "default", "mine")
    assert done.status == 3
    assert "holds other chunks already" in done.err
    assert rag("collections", "show", "mine", "--json").json["count"] == 1


@pytest.mark.parametrize("moment", ["before", "between"])
def test_reembed_killed_in_the_swap_goes_on_by_itself(ingested: Path, moment: str) -> None:
    """Between the old collection set aside and the new one named, and just before."""
    code = f"""
import os, sys
from pathlib import Path
import stores.faiss
replace, rename = stores.faiss.FaissBackend.replace, Path.rename
def die(self, *names, **by):
    if {moment!r} == "before":
        os.kill(os.getpid(), 9)
    Path.rename = lambda path, to: (rename(path, to), os.kill(os.getpid(), 9))
    return replace(self, *names, **by)
stores.faiss.FaissBackend.replace = die
from rag.cli import main
sys.exit(main(sys.argv[1:]))
"""
    before = rag("collections", "show", "default", "--json").json["count"]
    command = ["collections", "reembed", "default", "--model", "all-MiniLM-L6-v2"]
    done = subprocess.run([sys.executable, "-c", code, *command], check=False)
    assert done.returncode == -9
    assert rag("search", "warranty", "--json").json
    assert rag(*command).status == 0
    assert rag("collections", "show", "default", "--json").json["count"] == before
    assert rag("collections", "list", "--json").json[0]["collection"] == "default"
    assert len(rag("collections", "list", "--json").json) == 1


def test_reembed_spares_a_collection_of_that_name(ingested: Path) -> None:
    assert rag("collections", "copy", "default", "default--next").status == 0
    done = rag("collections", "reembed", "default", "--model", "all-MiniLM-L6-v2")
    assert done.status == 3
    assert "default--next" in done.err
    assert rag("collections", "show", "default--next", "--json").json["count"] > 10
    assert rag("collections", "reembed", "default--next", "--model", "all-MiniLM-L6-v2").status == 0
    assert rag("collections", "show", "default--next", "--json").json["count"] > 10
