"""POST /query and POST /search of a running service."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from commands import rag
from http_client import OFF_TOPIC, QUESTION, client, events, problem
from servers import (
    MODEL,
    RawServer,
    Reply,
    answer,
    get,
    llama_server,
    stream,
    wait_until,
)
from service import Service, sample_data, service


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(sample_data(tmp_path_factory.mktemp("service") / "data")) as started:
        yield started


@pytest.fixture
def api(running: Service) -> Iterator[httpx2.Client]:
    with client(running.url) as opened:
        yield opened


def asked(api: httpx2.Client, question: str = QUESTION, **more: Any) -> Any:
    reply = api.post("/query", json={"question": question, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_an_answer_shows_where_it_comes_from(api: httpx2.Client) -> None:
    found = asked(api)
    assert "Hold both arrow keys for 6 seconds" in found["answer"]
    assert not found["abstained"] and found["degraded"] == []
    citation = found["citations"][0]
    assert f"[{citation['marker']}]" in found["answer"]
    assert citation["source"].endswith("tk-40-operator-manual.pdf") and citation["page"] == 3
    start, end = citation["span"]
    assert "E-22" in citation["text"][start:end]
    assert {"embed", "search", "first_token", "generate", "total"} <= set(found["timings_ms"])
    assert found["model"] == "extractive" and found["collection"] == "default"
    assert found["collection_generation"] and len(found["request_id"]) == 32


def test_the_answer_is_that_of_the_command_line(running: Service, api: httpx2.Client) -> None:
    found = asked(api, mode="hybrid", top_k=3)
    done = rag("--data-dir", running.data_dir, "ask", QUESTION, "--top-k", "3", "--json")
    for name in ("answer", "citations", "statements", "abstained", "evidence", "search"):
        assert found[name] == done.json[name], name


def test_a_chinese_question_is_answered_from_chinese_documents(api: httpx2.Client) -> None:
    found = asked(api, "青岛办公室的员工每年有几天年假？")
    assert any("/zh/" in citation["source"] for citation in found["citations"])


def test_what_the_documents_do_not_say_is_abstained_from(api: httpx2.Client) -> None:
    found = asked(api, OFF_TOPIC)
    assert found["abstained"] and found["citations"] == []


def test_the_same_question_comes_from_the_cache_unless_a_new_answer_is_asked_for(
    api: httpx2.Client,
) -> None:
    question = "Which torque do the cabinet screws need?"
    first, second = asked(api, question), asked(api, question)
    assert not first["cached"] and second["cached"]
    assert first["request_id"] != second["request_id"]
    for name in ("answer", "citations", "statements", "collection_generation"):
        assert first[name] == second[name]
    anew = api.post("/query", json={"question": question}, headers={"Cache-Control": "no-cache"})
    assert not anew.json()["cached"]
    assert not asked(api, question, top_k=4)["cached"]
    assert not asked(api, question, where={"lang": "en"})["cached"]


def test_a_stream_has_typed_events_and_ends_with_the_whole_answer(api: httpx2.Client) -> None:
    question = "How long is the warranty on pumps?"
    body = {"question": question, "stream": True}
    for cached in (False, True):
        with api.stream("POST", "/query", json=body) as reply:
            assert reply.headers["Content-Type"].startswith("text/event-stream")
            assert reply.headers["X-Accel-Buffering"] == "no"
            came = list(events(reply))
        names = [event.name for event in came]
        assert names[0] == "sources" and names[-1] == "done"
        done = came[-1].data
        assert done["cached"] is cached
        assert "".join(e.data["text"] for e in came if e.name == "token") == done["answer"]
        assert [e.data for e in came if e.name == "citation"] == done["citations"]
        sources = {one["marker"]: one["chunk_id"] for one in came[0].data["citations"]}
        assert all(sources[c["marker"]] == c["chunk_id"] for c in done["citations"])
    whole = asked(api, question)
    assert (whole["answer"], whole["citations"]) == (done["answer"], done["citations"])


def test_the_accept_header_asks_for_a_stream_too(api: httpx2.Client) -> None:
    headers = {"Accept": "text/event-stream"}
    with api.stream("POST", "/query", json={"question": QUESTION}, headers=headers) as reply:
        assert next(events(reply)).name == "sources"


def test_what_fails_before_the_first_event_has_its_own_status(api: httpx2.Client) -> None:
    reply = api.post("/query", json={"question": QUESTION, "stream": True, "collection": "nowhere"})
    problem(reply, 404, "unknown_collection")


def test_a_conversation_goes_on(api: httpx2.Client) -> None:
    first = asked(api, "What does the TK-40 cost?")
    turn = {"question": first["question"], "answer": first["answer"]}
    found = asked(api, "And how long is its warranty?", history=[turn])
    assert "TK-40" in found["search"]


def test_search_gives_hits_for_one_question_or_many(api: httpx2.Client) -> None:
    one = api.post("/search", json={"question": QUESTION, "top_k": 3}).json()
    assert [hit["marker"] for hit in one["results"][0]["hits"]] == [1, 2, 3]
    assert {leg["name"] for leg in one["results"][0]["hits"][0]["legs"]} == {"dense", "keyword"}
    questions = [QUESTION, "leave", "warranty", "安装手册"]
    many = api.post("/search", json={"question": questions, "top_k": 3}).json()["results"]
    assert [result["question"] for result in many] == questions
    ids = [hit["chunk_id"] for hit in many[0]["hits"]]
    assert ids == [hit["chunk_id"] for hit in one["results"][0]["hits"]]


def test_a_filter_holds(api: httpx2.Client) -> None:
    body = {"question": "warranty", "where": {"source": {"$in": ["nowhere"]}}}
    assert api.post("/search", json=body).json()["results"][0]["hits"] == []


def test_questions_that_are_asked_at_once_are_answered_as_alone(api: httpx2.Client) -> None:
    questions = [
        *("balance the cells", "warranty on pumps", "travel by train", "leave in the first year"),
        *("ferry lock-up", "foam supplier", "calibration of BR-7", "password length"),
    ]

    def found(question: str, **more: Any) -> list[str]:
        body = {"question": question, "top_k": 4, **more}
        results = api.post("/search", json=body).json()["results"]
        return [hit["chunk_id"] for hit in results[0]["hits"]]

    alone = [found(question) for question in questions]
    filtered = [found(question, where={"lang": {"$ne": "en"}}) for question in questions]
    together: dict[tuple[str, bool], list[str]] = {}

    def ask(question: str, narrow: bool) -> None:
        more = {"where": {"lang": {"$ne": "en"}}} if narrow else {}
        together[question, narrow] = found(question, **more)

    threads = [
        threading.Thread(target=ask, args=(question, narrow))
        for question in questions
        for narrow in (False, True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[question, False] for question in questions] == alone
    assert [together[question, True] for question in questions] == filtered


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_stops_the_engine(tmp_path: Path, streamed: bool) -> None:
    with llama_server("chat") as llama:

        def busy() -> bool:
            return any(slot["is_processing"] for slot in get(f"{llama}/slots"))

        def writing() -> bool:
            told = [slot.get("next_token") or [{}] for slot in get(f"{llama}/slots")]
            return any(tokens[0].get("n_decoded", 0) > 3 for tokens in told)

        settings = {
            "generator.url": f"{llama}/v1",
            "generator.model": MODEL,
            "generator.max_tokens": 1200,
            "generator.context_tokens": 2048,
            "answer.min_evidence": 0,
        }
        body = {"question": QUESTION, "top_k": 1, "stream": streamed}
        endless = '{"ignore_eos": true}'
        data = sample_data(tmp_path / "data")
        with service(data, settings=settings, RAG_GENERATOR_OPTIONS=endless) as running:
            with connected(running.url, "/query", body):
                wait_until(writing, 60)
                assert busy()
            wait_until(lambda: not busy(), 5)  # it would go on for more than ten seconds


@contextmanager
def connected(url: str, path: str, body: object) -> Iterator[None]:
    """A client that has asked, and closes its connection at the end whatever has come."""
    address = urlsplit(url)
    data = json.dumps(body).encode()
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        yield


def test_a_silence_is_filled_with_heartbeats_and_a_failure_is_the_last_event(
    tmp_path: Path,
) -> None:
    slow = Reply(stream({"choices": [{"delta": {"content": "First"}}]}), "hang")
    paths = {"/v1/chat/completions": slow}
    with RawServer(Reply(answer(404, {})), paths=paths) as server:
        settings = {
            "generator.url": server.url,
            "generator.model": "m",
            "generator.first_token_s": 30,
            "service.heartbeat_s": 0.1,
            "service.deadline_s": 3,
        }
        with (
            service(sample_data(tmp_path / "data"), settings=settings) as running,
            client(running.url) as api,
        ):
            api.post("/search", json={"question": QUESTION}).raise_for_status()  # loads the model
            reply = api.post("/query", json={"question": QUESTION, "stream": True})
            text = reply.text
    assert text.count(": still here") > 3
    assert '"code":"overloaded"' in text.rpartition("event: error")[2]


def test_the_generator_down_means_quotes_that_say_so(tmp_path: Path) -> None:
    settings = {
        "generator.url": "http://127.0.0.1:9/v1",
        "generator.model": "m",
        "generator.retries": 0,
    }
    with (
        service(sample_data(tmp_path / "data"), settings=settings) as running,
        client(running.url) as api,
    ):
        answers = [asked(api), asked(api)]
        ready = api.get("/health/ready")
    for one in answers:
        assert one["degraded"] == ["generator"] and not one["cached"]
        assert "Hold both arrow keys" in one["answer"]
    assert ready.status_code == 200 and ready.json()["status"] == "degraded"
    assert "127.0.0.1:9" in ready.json()["parts"]["generator"]["detail"]
