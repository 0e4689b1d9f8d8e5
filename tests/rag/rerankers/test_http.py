"""The reranker against servers that speak each of the calls, and that fail in every way."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from pydantic import SecretStr
from servers import RawServer, Reply, answer, chunked

from rag.errors import ConfigError, ModelUnavailable
from rag.rerankers.http import HttpReranker

QUESTION = "How long does the pump run?"
TEXTS = ["Lighthouses.", "Fourteen hours.", "Nobody knows."]


def results(*scores: float | None, numbers: list[int] | None = None) -> bytes:
    """What vLLM, Jina and Cohere answer, best first unless numbered otherwise."""
    return answer(200, {"id": "x", "results": rows("relevance_score", scores, numbers)})


def ranks(*scores: float | None, numbers: list[int] | None = None) -> bytes:
    """What TEI answers."""
    return answer(200, rows("score", scores, numbers))


def rows(
    name: str, scores: tuple[float | None, ...], numbers: list[int] | None
) -> list[dict[str, Any]]:
    pairs = zip(numbers or range(len(scores)), scores, strict=True)
    return [{"index": n, name: score, "document": {"text": "..."}} for n, score in pairs]


def reranker(url: str, **settings: Any) -> HttpReranker:
    return HttpReranker(url=url, **{"model": "m", "retries": 0, **settings})


# --- the calls


@pytest.mark.parametrize(
    ("api", "reply", "expected"),
    [
        (
            "tei",
            ranks(7.5, 0.0, -4.25, numbers=[1, 2, 0]),
            {"query": QUESTION, "texts": TEXTS, "raw_scores": True, "truncate": True},
        ),
        (
            "jina",
            results(7.5, 0.0, -4.25, numbers=[1, 2, 0]),
            {
                "model": "m",
                "query": QUESTION,
                "documents": TEXTS,
                "top_n": 3,
                "return_documents": False,
            },
        ),
        (
            "cohere",
            results(7.5, 0.0, -4.25, numbers=[1, 2, 0]),
            {"model": "m", "query": QUESTION, "documents": TEXTS, "top_n": 3},
        ),
    ],
)
def test_scores_come_in_the_order_of_the_texts(
    api: str, reply: bytes, expected: dict[str, Any]
) -> None:
    with RawServer(Reply(reply)) as server:
        assert reranker(server.url, api=api).scores(QUESTION, TEXTS) == [-4.25, 7.5, 0.0]
    assert server.requests == [("/v1/rerank", expected)]


def test_a_slash_at_the_end_of_the_url_does_not_matter() -> None:
    with RawServer(Reply(results(1.0))) as server:
        reranker(f"{server.url}/").scores(QUESTION, ["a"])
    assert server.requests[0][0] == "/v1/rerank"


def test_options_go_along_and_a_server_of_one_model_needs_no_name() -> None:
    with RawServer(Reply(results(1.0))) as server:
        asking = reranker(server.url, model="", options={"truncate_prompt_tokens": -1})
        asking.scores(QUESTION, ["a"])
        assert asking.model == server.url
    body = server.requests[0][1]
    assert body["truncate_prompt_tokens"] == -1
    assert "model" not in body


def test_tei_is_given_no_more_texts_than_it_takes() -> None:
    """Its default is 32; the scores of all the requests are in the order of the texts."""
    first, second = [float(n) for n in range(32)], [float(n) for n in range(32, 50)]
    backwards = Reply(ranks(*second[::-1], numbers=list(range(17, -1, -1))))
    with RawServer(Reply(ranks(*first)), backwards) as server:
        found = reranker(server.url, api="tei").scores(QUESTION, [f"text {n}" for n in range(50)])
    assert found == first + second
    asked = [body["texts"] for _, body in server.requests]
    assert asked == [[f"text {n}" for n in range(32)], [f"text {n}" for n in range(32, 50)]]


def test_no_texts_ask_nothing() -> None:
    with RawServer(Reply(results())) as server:
        assert reranker(server.url).scores(QUESTION, []) == []
    assert server.requests == []


def test_several_threads_get_their_own_scores() -> None:
    """Each question is a number, which the server gives back as the score."""

    def score(body: dict[str, Any], _: str) -> tuple[int, object]:
        return 200, {"results": [{"index": 0, "relevance_score": float(body["query"])}]}

    found: dict[int, list[float]] = {}
    with speaking(score) as url:
        asking = reranker(url)

        def ask(n: int) -> None:
            found[n] = asking.scores(str(n), ["a"])

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {n: [float(n)] for n in range(8)}


@contextmanager
def speaking(reply: Any) -> Iterator[str]:
    """A server whose answers are made from the body and the Authorization header."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.wfile.write(answer(*reply(body, self.headers.get("Authorization", ""))))

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def test_the_key_is_sent_and_a_wrong_one_is_said() -> None:
    def guarded(_: object, header: str) -> tuple[int, object]:
        if header != "Bearer right":
            return 401, {"error": {"message": "no such key"}}
        return 200, {"results": [{"index": 0, "relevance_score": 1.0}]}

    with speaking(guarded) as url:
        assert reranker(url, api_key=SecretStr("right\n")).scores(QUESTION, ["a"]) == [1.0]
        for wrong in (SecretStr("wrong"), SecretStr(""), None):
            with pytest.raises(ModelUnavailable, match=r"refused the key \(401\)") as raised:
                reranker(url, api_key=wrong).scores(QUESTION, ["a"])
            assert "set rerank.api_key" in str(raised.value)
            assert url in str(raised.value)


# --- what fails


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        pytest.param(Reply(then="hang"), "did not answer in 0.2 s", id="silent"),
        pytest.param(Reply(results(1.0, 2.0)[:40], then="hang"), "did not answer", id="stalled"),
        pytest.param(Reply(then="reset"), "broke off", id="dropped"),
        pytest.param(Reply(results(1.0, 2.0)[:-9]), "broke off", id="half a body"),
        pytest.param(Reply(chunked(results(1.0, 2.0))), "broke off", id="cut chunks"),
        pytest.param(Reply(b"SSH-2.0-OpenSSH_9.6\r\n"), "broke off", id="not HTTP"),
        pytest.param(Reply(answer(200, "<html></html>")), "does not speak .* jina", id="HTML"),
        pytest.param(Reply(answer(200, {"data": []})), "does not speak", id="another call"),
        pytest.param(Reply(answer(200, {"results": [{"index": 0}]})), "does not speak"),
        pytest.param(Reply(answer(200, [[]])), "does not speak", id="lists"),
        pytest.param(Reply(results(1.0)), "gave 1 scores for 2 texts", id="too few"),
        pytest.param(Reply(results(1.0, 2.0, 3.0)), "gave 3 scores for 2", id="too many"),
        pytest.param(Reply(results(1.0, 2.0, numbers=[0, 0])), "misnumbered", id="twice"),
        pytest.param(Reply(results(1.0, 2.0, numbers=[1, 2])), "misnumbered", id="from 1"),
        pytest.param(Reply(results(1.0, 2.0, numbers=[-1, 0])), "misnumbered", id="below 0"),
        pytest.param(Reply(results(1.0, float("nan"))), "gave a score that is no", id="NaN"),
        pytest.param(Reply(results(1.0, float("inf"))), "gave a score that is no", id="inf"),
        pytest.param(Reply(results(1.0, None)), "gave a score that is no number", id="null"),
        pytest.param(
            Reply(answer(404, {"detail": "Not Found"})), r"the path \(Not Found\).*before /rerank"
        ),
        pytest.param(Reply(answer(307, "")), r"failed \(307\)", id="redirect"),
        pytest.param(
            Reply(answer(413, {"error": "batch size 64 > maximum", "error_type": "Validation"})),
            r"failed \(batch size 64 > maximum\)",
            id="TEI",
        ),
        pytest.param(
            Reply(answer(400, {"error": {"message": "at least 513 input tokens", "code": 400}})),
            r"failed \(at least 513 input tokens\)",
            id="vLLM",
        ),
        pytest.param(
            Reply(answer(429, {"message": "trial key"})), r"failed \(trial key\)", id="Cohere"
        ),
        pytest.param(Reply(answer(502, "<html>bad</html>")), r"failed \(502\); look", id="proxy"),
    ],
)
def test_failures(reply: Reply, words: str) -> None:
    with RawServer(reply) as server, pytest.raises(ModelUnavailable, match=words) as raised:
        waits = 0.2 if reply.then == "hang" else 5
        reranker(server.url, timeout_s=waits).scores(QUESTION, ["a", "b"])
    assert server.url in str(raised.value)
    assert raised.value.hint
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_failure_of_the_server_is_tried_again(status: int) -> None:
    failing = Reply(answer(status, {"error": "busy"}))
    with RawServer(failing, failing, Reply(results(2.0))) as server:
        assert reranker(server.url, retries=2).scores(QUESTION, ["a"]) == [2.0]
    assert len(server.requests) == 3
    assert server.requests[0] == server.requests[2]


def test_a_failure_that_stays_is_said_after_the_retries() -> None:
    failing = Reply(answer(503, {"error": "model is overloaded"}))
    with RawServer(failing) as server, pytest.raises(ModelUnavailable, match="is overloaded"):
        reranker(server.url, retries=2).scores(QUESTION, ["a"])
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply(then="hang"), id="silence"),
        pytest.param(Reply(answer(401, {})), id="a wrong key"),
        pytest.param(Reply(answer(422, {})), id="a wrong request"),
        pytest.param(Reply(answer(429, {})), id="a limit"),
        pytest.param(Reply(results(1.0)[:-9]), id="half a body"),
        pytest.param(Reply(results(1.0, 2.0)), id="a wrong answer"),
    ],
)
def test_any_other_failure_is_not_tried_again(reply: Reply) -> None:
    with RawServer(reply) as server, pytest.raises(ModelUnavailable):
        reranker(server.url, retries=2, timeout_s=0.2).scores(QUESTION, ["a"])
    assert len(server.requests) == 1


def test_a_server_that_starts_meanwhile_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses grow, and differ by chance so that many clients do not come back at once."""
    pauses: list[float] = []
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))  # nobody listens yet: connections are refused

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(results(2.0))

        serving = threading.Thread(target=serve)

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 2:
                listening.listen()
                serving.start()

        monkeypatch.setattr("rag.rerankers.http.time.sleep", pause)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert reranker(url, retries=2).scores(QUESTION, ["a"]) == [2.0]
        serving.join()
    assert 0.1 <= pauses[0] < 0.2 <= pauses[1] < 0.4
    assert pauses[1] != 2 * pauses[0]


def test_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(ModelUnavailable, match=f"no server answers at {url}; start it"):
        reranker(url).scores(QUESTION, ["a"])


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "http://[::1"])
def test_a_url_that_is_none_is_said_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match=r"rerank\.url"):
        reranker(url)


def test_the_registry_makes_it_from_all_the_settings() -> None:
    from rag import plugins
    from rag.settings import load

    with RawServer(Reply(ranks(3.0))) as server:
        given = {"rerank.kind": "http", "rerank.url": server.url, "rerank.api": "tei"}
        settings = load(given).settings
        values = settings.rerank.model_dump()
        made = plugins.load("reranker", settings.rerank.kind)(
            **values, models_dir=settings.models_dir, say=print
        )
        assert made.scores(QUESTION, ["a"]) == [3.0]
