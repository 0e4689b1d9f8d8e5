from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rag.embedders.encoder import Encoder
from rag.embedders.sentence_transformers import SentenceTransformersEmbedder
from rag.errors import ConfigError, ContextTooLong, ModelUnavailable

TEXTS = [
    "The box runs for fourteen hours.",
    "潮汐箱可以运行十四个小时。",
    "word " * 200,
    "x",
    "How long does it run?",
]


def embedder(models_dir: Path, **options: object) -> SentenceTransformersEmbedder:
    arguments = {"model": "all-MiniLM-L6-v2", "models_dir": models_dir, **options}
    return SentenceTransformersEmbedder(**arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def reference(models_dir: Path) -> np.ndarray:
    """What sentence-transformers itself gives, in float32."""
    import torch

    from rag.embedders.sentence_transformers import load_torch

    model = load_torch(models_dir / "all-MiniLM-L6-v2", "cpu", torch.float32)
    return np.asarray(model.encode(TEXTS, normalize_embeddings=True))


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize(("precision", "least"), [("float32", 0.99999), ("bfloat16", 0.999)])
def test_vectors_are_those_of_sentence_transformers(
    models_dir: Path, reference: np.ndarray, backend: str, precision: str, least: float
) -> None:
    ours = embedder(models_dir, backend=backend, precision=precision, batch_size=2)
    vectors = ours.embed_documents(TEXTS)
    assert vectors.shape == (5, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (vectors * reference).sum(1).min() > least
    assert ours.embed_documents([]).shape == (0, 384)


def test_fingerprint_tells_what_shapes_the_vectors(models_dir: Path) -> None:
    plain = embedder(models_dir, precision="float32").fingerprint
    assert plain.revision.startswith("53aa51172d142c89")
    assert (plain.model, plain.dim, plain.precision) == ("all-MiniLM-L6-v2", 384, "float32")
    assert embedder(models_dir, precision="bfloat16").fingerprint != plain
    assert embedder(models_dir, precision="float32", query_prefix="q").fingerprint != plain
    assert embedder(models_dir, precision="float32", backend="torch").fingerprint == plain
    hub_name = "sentence-transformers/all-MiniLM-L6-v2"
    assert embedder(models_dir, precision="float32", model=hub_name).fingerprint == plain


def test_a_text_over_the_limit_is_refused_and_a_question_is_cut(models_dir: Path) -> None:
    ours = embedder(models_dir)
    long = "word " * 300
    assert ours.count_tokens([long, ""]) == [302, 2]
    assert ours.max_tokens == 256
    with pytest.raises(ContextTooLong, match="302"):
        ours.embed_documents([long])
    assert ours.embed_queries([long]).shape == (1, 384)


def test_prefixes_are_embedded_and_counted(models_dir: Path) -> None:
    plain = embedder(models_dir, precision="float32")
    prefixed = embedder(
        models_dir, precision="float32", query_prefix="query: ", document_prefix="passage: "
    )
    for ours, theirs in (
        (prefixed.embed_queries(["a"]), plain.embed_queries(["query: a"])),
        (prefixed.embed_documents(["a"]), plain.embed_documents(["passage: a"])),
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert prefixed.count_tokens(["a"]) == plain.count_tokens(["passage: a"])


@pytest.mark.parametrize(
    ("name", "prompts", "expected"),
    [
        ("org/plain", None, ("", "")),
        ("intfloat/multilingual-e5-small", None, ("query: ", "passage: ")),
        ("BAAI/bge-small-zh-v1.5", None, ("为这个句子生成表示以用于检索相关文章：", "")),
        ("org/x", {"query": "Q: ", "document": "D: "}, ("Q: ", "D: ")),
        ("org/x", {"query": "Q: ", "passage": "P: "}, ("Q: ", "P: ")),
        ("org/x", {"query": "", "document": ""}, ("", "")),
    ],
)
def test_a_models_own_prefixes_are_found(
    models_dir: Path, tmp_path: Path, name: str, prompts: object, expected: tuple[str, str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models_dir / "all-MiniLM-L6-v2", folder)
    if prompts:
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    assert Encoder(folder).prefixes(name) == expected


def test_batches_are_cut_sorted_and_complete(models_dir: Path) -> None:
    encoder = Encoder(models_dir / "all-MiniLM-L6-v2")
    texts = ["a", "word " * 400, "two words", "c d e f"]
    batches = encoder.batches(texts, 2)
    assert sorted(row for rows, _, _ in batches for row in rows) == [0, 1, 2, 3]
    rows, ids, mask = batches[0]
    assert rows[0] == 1
    assert ids.shape == mask.shape == (2, 256)
    assert mask[0].sum() == 256
    assert ids[0, -1] == 102  # the end mark is kept when a text is cut
    assert mask[1].sum() == encoder.count([texts[rows[1]]])[0]


def test_a_folder_that_is_no_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no sentence-transformers model"):
        embedder(tmp_path, model=f"{tmp_path}/")


def test_unknown_options_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision"):
        embedder(tmp_path, precision="int4")
    with pytest.raises(ConfigError, match="backend"):
        embedder(tmp_path, backend="magic")


def test_threads_that_embed_first_at_the_same_moment_all_come_back(models_dir: Path) -> None:
    """One process in four stood still for ever, so several are tried."""
    code = """
import sys, threading
from pathlib import Path
from rag.embedders.sentence_transformers import SentenceTransformersEmbedder
embedder = SentenceTransformersEmbedder(model="all-MiniLM-L6-v2", models_dir=Path(sys.argv[1]))
start = threading.Barrier(16)
def embed():
    start.wait()
    embedder.embed_queries(["a question"])
threads = [threading.Thread(target=embed) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
    for _ in range(6):
        subprocess.run([sys.executable, "-c", code, models_dir], check=True, timeout=60)


@pytest.mark.gpu
def test_the_gpu_gives_the_same_vectors(models_dir: Path, reference: np.ndarray) -> None:
    ours = embedder(models_dir, device="cuda", precision="float32")
    assert (ours.embed_documents(TEXTS) * reference).sum(1).min() > 0.999
    fast = embedder(models_dir, device="cuda")
    assert fast.fingerprint.precision == "bfloat16"
    assert (fast.embed_documents(TEXTS) * reference).sum(1).min() > 0.999
