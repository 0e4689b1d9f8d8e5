"""The embedder against a real llama-server, and against servers that fail in every way."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import DIMENSIONS, MODEL, RawServer, Reply, answer, chunked, llama_server

from rag.embedders.openai import OpenAIEmbedder
from rag.errors import ConfigError, ContextTooLong, ModelError, ModelUnavailable

TEXTS = ["A lighthouse keeper.", "泵的压力是多少?", "E-22", "The pump holds 5 litres.", "x"]


@pytest.fixture(scope="session")
def llama() -> Iterator[str]:
    with llama_server("embeddings") as url:
        yield f"{url}/v1"


# --- a real server


def test_unit_rows_in_the_order_of_the_texts(llama: str) -> None:
    embedder = OpenAIEmbedder(url=llama, model=MODEL, batch_size=2)
    vectors = embedder.embed_documents(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), DIMENSIONS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alone = np.concatenate([embedder.embed_documents([text]) for text in TEXTS])
    cosines = vectors @ alone.T
    assert list(cosines.argmax(axis=1)) == list(range(len(TEXTS)))
    np.testing.assert_allclose(cosines.diagonal(), 1, atol=1e-3)


def test_the_dimension_is_known_without_a_text(llama: str) -> None:
    embedder = OpenAIEmbedder(url=llama, model=MODEL)
    assert embedder.fingerprint.dim == DIMENSIONS
    assert embedder.embed_documents([]).shape == (0, DIMENSIONS)


def test_prefixes_are_part_of_what_is_embedded(llama: str) -> None:
    plain = OpenAIEmbedder(url=llama, model=MODEL)
    prefixed = OpenAIEmbedder(
        url=llama, model=MODEL, query_prefix="query: ", document_prefix="passage: "
    )
    for got, text in (
        (prefixed.embed_queries(["pump"]), "query: pump"),
        (prefixed.embed_documents(["pump"]), "passage: pump"),
    ):
        np.testing.assert_allclose(got @ plain.embed_documents([text]).T, 1, atol=1e-5)


def test_a_text_that_the_server_finds_too_long(llama: str) -> None:
    """llama-server says it with a 500, which must not pass for a failure of the server."""
    embedder = OpenAIEmbedder(url=llama, model=MODEL, max_tokens=100_000)
    with pytest.raises(ContextTooLong, match="too large"):
        embedder.embed_documents(["short", "word " * 200])


def test_a_long_query_is_cut(llama: str) -> None:
    embedder = OpenAIEmbedder(url=llama, model=MODEL)
    vectors = embedder.embed_queries(["short", "word " * 160])
    cut = embedder.embed_queries(["word " * 80])
    assert vectors.shape == (2, DIMENSIONS)
    np.testing.assert_allclose(vectors[1:] @ cut.T, 1, atol=1e-4)


# --- what servers send


def rows(*embeddings: list[float], numbers: list[int] | None = None) -> bytes:
    numbers = numbers or list(range(len(embeddings)))
    data = [{"index": n, "embedding": e} for n, e in zip(numbers, embeddings, strict=True)]
    return answer(200, {"object": "list", "data": data})


def embedder(server: RawServer, **settings: Any) -> OpenAIEmbedder:
    return OpenAIEmbedder(url=server.url, **{"model": "m", "retries": 0, **settings})


def test_rows_are_ordered_by_their_index() -> None:
    with RawServer(Reply(rows([0.0, 2.0], [3.0, 0.0], numbers=[1, 0]))) as server:
        vectors = embedder(server).embed_documents(["a", "b"])
    assert vectors.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_texts_go_in_batches_with_the_options() -> None:
    two, one = Reply(rows([1.0, 0.0], [1.0, 0.0])), Reply(rows([1.0, 0.0]))
    with RawServer(two, one) as server:
        embedder(server, batch_size=2, options={"dimensions": 2}).embed_documents(["a", "b", "c"])
    same = {"model": "m", "encoding_format": "float", "dimensions": 2}
    assert server.requests == [
        ("/v1/embeddings", {**same, "input": ["a", "b"]}),
        ("/v1/embeddings", {**same, "input": ["c"]}),
    ]


def test_a_text_over_the_limit_is_never_sent() -> None:
    """Some servers, such as Ollama, would cut it and say nothing."""
    with RawServer(Reply(rows([1.0, 0.0]))) as server:
        with pytest.raises(ContextTooLong, match="limit of 20"):
            embedder(server, max_tokens=20).embed_documents(["word " * 30])
        assert server.requests == []


def test_tokens_are_counted_with_the_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "pump": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    counting = OpenAIEmbedder(
        url="http://127.0.0.1:1/v1",
        model="m",
        tokenizer=str(tmp_path / "tokenizer.json"),
        document_prefix="passage ",
    )
    assert counting.count_tokens(["pump", "pump pump pump"]) == [2, 4]


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        pytest.param(Reply(then="hang"), ModelUnavailable, "did not answer in 0.2 s", id="silent"),
        pytest.param(Reply(then="reset"), ModelUnavailable, "broke off", id="dropped"),
        pytest.param(
            Reply(answer(401, {"error": {"message": "bad key"}})), ModelError, "refused the key"
        ),
        pytest.param(
            Reply(answer(404, {"detail": "Not Found"})), ModelError, "ends in /v1", id="no route"
        ),
        pytest.param(
            Reply(answer(413, {"error": "`inputs` must have less than 512 tokens. Given: 900"})),
            ContextTooLong,
            "512",
            id="too long, TEI",
        ),
        pytest.param(
            Reply(answer(422, {"error": "batch size 64 > maximum allowed batch size 32"})),
            ModelError,
            "batch size 32",
            id="another limit",
        ),
        pytest.param(Reply(answer(500, "<html>no</html>")), ModelUnavailable, r"failed \(500\)"),
        pytest.param(
            Reply(answer(429, {"error": {"message": "limit of 1000 tokens a minute"}})),
            ModelUnavailable,
            "a minute",
            id="busy",
        ),
        pytest.param(
            Reply(answer(200, "<html></html>")), ModelUnavailable, "does not speak", id="HTML"
        ),
        pytest.param(Reply(answer(200, {"data": None})), ModelUnavailable, "does not speak"),
        pytest.param(
            Reply(rows([0.5, None])),  # type: ignore[list-item]  # how llama-server writes NaN
            ModelUnavailable,
            "does not speak",
            id="null",
        ),
        pytest.param(Reply(rows([1.0, 0.0])[:-9]), ModelUnavailable, "broke off", id="cut"),
        pytest.param(Reply(chunked(rows([1.0]))), ModelUnavailable, "broke off", id="cut chunks"),
        pytest.param(Reply(rows([1.0, 0.0])), ModelError, "1 vectors for 2", id="too few"),
        pytest.param(
            Reply(rows([1.0], [2.0], numbers=[0, 0])), ModelError, "misnumbered", id="numbers"
        ),
        pytest.param(Reply(rows([1.0], [1.0, 0.0])), ModelError, "1 and 2 numbers", id="ragged"),
        pytest.param(Reply(rows([1.0], [0.0])), ModelError, "NaN or zero", id="zero"),
        pytest.param(Reply(rows([1.0], [float("nan")])), ModelError, "NaN or zero", id="NaN"),
    ],
)
def test_failures(reply: Reply, kind: type[ModelError], words: str) -> None:
    with RawServer(reply) as server, pytest.raises(ModelError, match=words) as raised:
        embedder(server, timeout_s=0.2 if reply.then == "hang" else 5).embed_documents(["a", "b"])
    assert type(raised.value) is kind


def test_connection_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with pytest.raises(ModelUnavailable, match="no server answers"):
        OpenAIEmbedder(url=url, model="m", retries=0).embed_queries(["a"])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(status: int) -> None:
    failing = Reply(answer(status, {}, "Retry-After: 0.001"))
    with RawServer(failing, failing, Reply(rows([2.0]))) as server:
        assert embedder(server, retries=2).embed_documents(["a"]).tolist() == [[1.0]]


def test_a_dropped_connection_is_tried_again() -> None:
    with RawServer(Reply(then="reset"), Reply(rows([2.0]))) as server:
        assert embedder(server, retries=1).embed_documents(["a"]).tolist() == [[1.0]]


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply(then="hang"), id="silence"),
        pytest.param(Reply(answer(401, {})), id="a wrong key"),
        pytest.param(
            Reply(answer(500, {"error": {"message": "input is too large to process"}})),
            id="a text that is too long",
        ),
    ],
)
def test_a_failure_that_would_come_again_is_not_tried_again(reply: Reply) -> None:
    with RawServer(reply) as server:
        with pytest.raises(ModelError):
            embedder(server, retries=2, timeout_s=0.2).embed_documents(["a"])
        assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000/v1", "http://[::1/v1"])
def test_a_url_that_is_none_is_said_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match=r"embedder\.url"):
        OpenAIEmbedder(url=url, model="m")
