"""What a running service does while one of its parts is down, hangs, or it is told to end."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from chroma_server import chroma_server, free_port
from documents import taken_in
from http_client import QUESTION, client, events, problem
from redis_server import redis_server
from servers import MODEL, RawServer, Reply, answer, llama_server, stream, wait_until
from service import Service, sample_data, service

CHAT = "/v1/chat/completions"
HANGS = Reply(then="hang")
WORDS = [{"choices": [{"delta": {"content": f"word{n} "}}]} for n in range(12)]
END: list[object] = [{"choices": [{"delta": {}, "finish_reason": "stop"}]}, "[DONE]"]


@contextmanager
def generating(paths: Mapping[str, Reply], **settings: object) -> Iterator[tuple[Path, Any]]:
    """A generator that says what it is told, and the settings that name it."""
    with RawServer(Reply(answer(404, {})), paths=paths) as server:
        yield {
            "generator.url": server.url,
            "generator.model": "m",
            "generator.retries": 0,
            "generator.first_token_s": 60,
            "answer.min_evidence": 0,
            "service.rate_limit": "",
            "service.address_limit": "",
            **settings,
        }  # type: ignore[misc]


def in_time(asking: Callable[[], httpx2.Response], seconds: float) -> httpx2.Response:
    started = time.monotonic()
    reply = asking()
    assert time.monotonic() - started < seconds
    return reply


def no_trace(running: Service) -> None:
    assert "Traceback" not in running.stderr, running.stderr[-5000:]


def test_a_cache_that_dies_makes_it_slower_never_wrong(tmp_path: Path) -> None:
    with redis_server() as redis:
        settings = {
            "cache.url": redis.url,
            "service.rate_limit": "100000/minute",
            "service.address_limit": "",
        }
        with service(sample_data(tmp_path / "data"), settings=settings) as running:
            replies: list[httpx2.Response] = []
            over = threading.Event()

            def load(who: int) -> None:
                with client(running.url) as api:
                    for n in itertools.count():
                        if over.is_set():
                            return
                        text = QUESTION if n % 2 else f"{QUESTION} ({who}.{n})"
                        replies.append(api.post("/query", json={"question": text}))

            threads = [threading.Thread(target=load, args=(n,)) for n in range(3)]
            with client(running.url) as api, ExitStack() as ending:
                ending.callback(lambda: [thread.join() for thread in threads])
                ending.callback(over.set)
                for thread in threads:
                    thread.start()
                wait_until(lambda: len(replies) > 10, 60)
                redis.kill()
                assert asked(api)["degraded"] == ["cache"]
                known = len(replies)
                wait_until(lambda: len(replies) > known + 10, 60)
                # What was seen of the parts counts for a second.
                wait_until(lambda: api.get("/health").json()["status"] == "degraded", 30)
                health = api.get("/health").json()
                assert health["ready"] and not health["parts"]["cache"]["ok"]
                redis.start()
                wait_until(lambda: asked(api)["degraded"] == [], 30)
                wait_until(lambda: bool(asked(api)["cached"]), 30)
                known = len(replies)
                wait_until(lambda: len(replies) > known + 6, 60)
            assert {reply.status_code for reply in replies} == {200}
            found = [reply.json() for reply in replies]
            assert all("Hold both arrow keys" in one["answer"] for one in found)
            assert {tuple(one["degraded"]) for one in found} == {(), ("cache",)}
            # Those after its return: the last three are of requests that began before it was seen.
            assert all(one["degraded"] == [] for one in found[-3:])
            no_trace(running)


def asked(api: httpx2.Client, question: str = QUESTION, **more: Any) -> Any:
    reply = api.post("/query", json={"question": question, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_generator_that_dies_means_quotes_until_it_is_back(tmp_path: Path) -> None:
    port = free_port()
    settings = {
        "generator.url": f"http://127.0.0.1:{port}/v1",
        "generator.model": MODEL,
        "generator.max_tokens": 12,
        "generator.context_tokens": 2048,
        "generator.retries": 0,
        "generator.breaker_failures": 2,
        "generator.breaker_reset_s": 1,
        "answer.min_evidence": 0,
    }

    def breaker(api: httpx2.Client) -> str:
        lines = api.get("/metrics").text.splitlines()
        (line,) = [x for x in lines if x.startswith('rag_breaker_state{part="generator"}')]
        return line.rpartition(" ")[2]

    with service(
        sample_data(tmp_path / "data"), settings=settings, until="/health/live"
    ) as running:
        with client(running.url) as api:
            with llama_server("chat", port):
                assert asked(api, top_k=1)["model"] == MODEL
                closed = breaker(api)
            for n in range(3):
                one = asked(api, top_k=1, temperature=n / 2)
                assert one["degraded"] == ["generator"]
                assert "Hold both arrow keys" in one["answer"]
            assert breaker(api) != closed
            quick = in_time(lambda: api.post("/query", json={"question": QUESTION}), 10)
            assert quick.json()["degraded"] == ["generator"]
            with llama_server("chat", port):
                wait_until(lambda: asked(api, top_k=1, temperature=1.5)["degraded"] == [], 60)
                assert breaker(api) == closed
                assert api.get("/health").json()["status"] == "ok"
        no_trace(running)


def test_beyond_the_queue_is_refused_at_once_and_served_afterwards(tmp_path: Path) -> None:
    paths = {CHAT: HANGS}
    limits: dict[str, object] = {"service.concurrency": 1, "service.queue": 1}
    with (
        generating(paths, **limits) as settings,
        service(sample_data(tmp_path / "data"), settings=settings) as running,  # type: ignore[arg-type]
        client(running.url) as api,
    ):

        def gauge(name: str) -> float:
            lines = api.get("/metrics").text.splitlines()
            return sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith(f"rag_{name}"))

        with asking(running, "the first"):
            wait_until(lambda: gauge("in_flight") == 1, 30)
            with asking(running, "the second"):
                wait_until(lambda: gauge("queue_depth") == 1, 30)
                for path, body in (
                    ("/query", {"question": "the third"}),
                    ("/query", {"question": "the third", "stream": True}),
                    ("/search", {"question": "the third"}),
                    (CHAT, {"model": "rag", "messages": [{"role": "user", "content": "x"}]}),
                ):
                    reply = in_time(lambda p=path, b=body: api.post(p, json=b), 5)  # type: ignore[misc]
                    problem(reply, 503, "overloaded")
                assert api.get("/health/live").status_code == 200
        paths[CHAT] = Reply(stream(*WORDS, *END))
        wait_until(lambda: gauge("in_flight") == gauge("queue_depth") == 0, 30)
        assert asked(api, "the fourth")["model"] == "m"
        assert api.post("/search", json={"question": "the fifth"}).status_code == 200


@contextmanager
def asking(running: Service, question: str) -> Iterator[None]:
    """Somebody who waits for an answer, and leaves at the end."""
    address = urlsplit(running.url)
    body = json.dumps({"question": question}).encode()
    head = f"POST /query HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield


def test_nothing_takes_longer_than_the_deadline(tmp_path: Path) -> None:
    with (
        generating({CHAT: HANGS}, **{"service.deadline_s": 1.5}) as settings,
        service(sample_data(tmp_path / "data"), settings=settings) as running,  # type: ignore[arg-type]
        client(running.url) as api,
    ):
        body = {"question": QUESTION}
        messages = [{"role": "user", "content": QUESTION}]
        for path, asked_for in (
            ("/query", body),
            ("/query", {**body, "stream": True}),
            (CHAT, {"model": "rag", "messages": messages}),
        ):
            reply = in_time(lambda p=path, b=asked_for: api.post(p, json=b), 10)  # type: ignore[misc]
            if reply.status_code == 200:  # a stream that had begun
                assert '"code":"overloaded"' in reply.text.rpartition("event: error")[2]
            else:
                assert "1.5 s" in problem(reply, 503, "overloaded")["message"]
        no_trace(running)


def test_a_store_that_hangs_or_dies_is_told_and_comes_back(tmp_path: Path) -> None:
    port = free_port()
    settings = {
        "stores.chroma.host": "127.0.0.1",
        "stores.chroma.port": port,
        "service.deadline_s": 2,
        "service.store_reset_s": 0.5,
    }
    data, chroma = tmp_path / "data", tmp_path / "chroma"
    arguments = ("--store", "chroma")
    with ExitStack() as server:
        _, process = server.enter_context(chroma_server(chroma, port))
        with (
            service(data, *arguments, settings=settings) as running,
            client(running.url) as api,
        ):
            job = taken_in(api, "note.txt", "The safe is behind the picture.")
            question = {"question": "Where is the safe?"}
            assert "behind the picture" in api.post("/query", json=question).text

            asking_for: list[Callable[[], httpx2.Response]] = [
                lambda: api.post("/query", json=question),
                lambda: api.post("/query", json={**question, "stream": True}),
                lambda: api.post("/search", json=question),
                lambda: api.get("/documents"),
                lambda: api.get(f"/documents/{job['document_id']}"),
                lambda: api.delete(f"/documents/{job['document_id']}"),
                lambda: api.get("/collections"),
                lambda: api.get("/collections/default"),
                lambda: api.get("/v1/models"),
            ]
            os.kill(process, signal.SIGSTOP)
            try:
                replies = all_at_once(asking_for, 15)
                ready = in_time(lambda: api.get("/health/ready"), 15)
            finally:
                os.kill(process, signal.SIGCONT)
            for reply in (*replies, ready):
                assert reply.status_code == 503 and int(reply.headers["Retry-After"]) >= 1
            for reply in replies:
                assert reply.json()["error"]["code"] in ("overloaded", "store_unavailable")
            assert not ready.json()["parts"]["store"]["ok"]
            wait_until(lambda: api.get("/health/ready").status_code == 200, 30)
            assert "behind the picture" in api.post("/query", json=question).text

            server.close()  # killed
            wait_until(lambda: api.get("/health/ready").status_code == 503, 30)
            ready = api.get("/health/ready")
            store = ready.json()["parts"]["store"]
            assert not store["ok"] and str(port) in store["detail"]
            assert ready.json()["parts"]["embedder"]["ok"]
            for reply in all_at_once(asking_for, 15):
                assert reply.json()["error"]["code"] == "store_unavailable", reply.text
                problem(reply, 503, "store_unavailable")
            server.enter_context(chroma_server(chroma, port))
            wait_until(lambda: api.get("/health/ready").status_code == 200, 30)
            assert "behind the picture" in api.post("/query", json=question).text
            no_trace(running)


def all_at_once(
    asking_for: list[Callable[[], httpx2.Response]], seconds: float
) -> list[httpx2.Response]:
    replies: list[httpx2.Response] = []
    threads = [
        threading.Thread(target=lambda a=one: replies.append(in_time(a, seconds)))  # type: ignore[misc]
        for one in asking_for
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(replies) == len(asking_for)
    return replies


def test_a_collection_that_cannot_be_read_is_no_ready_store(tmp_path: Path) -> None:
    data_dir = sample_data(tmp_path / "data")
    for path in (data_dir / "faiss" / "default").iterdir():
        if path.is_file():
            path.write_bytes(b"no longer what it was")
    with service(data_dir, until="/health/live") as running, client(running.url) as api:
        ready = api.get("/health/ready")
        assert ready.status_code == 503 and ready.json()["status"] == "unavailable"
        assert not ready.json()["parts"]["store"]["ok"]
        assert "default" in ready.json()["parts"]["store"]["detail"]
        assert api.get("/health").status_code == 200
        reply = api.post("/query", json={"question": QUESTION})
        assert reply.status_code in (500, 503) and "Traceback" not in reply.text


def test_what_readiness_needs_is_a_setting(tmp_path: Path) -> None:
    settings = {
        "generator.url": "http://127.0.0.1:9/v1",
        "generator.model": "m",
        "service.ready_needs": '["generator"]',
    }
    environment = {"RAG_SERVICE_READY_NEEDS": str(settings.pop("service.ready_needs"))}
    data_dir = sample_data(tmp_path / "data")
    with (
        service(data_dir, settings=settings, until="/health/live", **environment) as running,
        client(running.url) as api,
    ):
        ready = api.get("/health/ready")
        assert ready.status_code == 503 and int(ready.headers["Retry-After"]) >= 1
        parts = ready.json()["parts"]
        assert not parts["generator"]["ok"] and parts["store"]["ok"]


def test_a_stream_is_finished_before_the_process_ends(tmp_path: Path) -> None:
    with generating({CHAT: Reply(stream(*WORDS, *END), "drip")}) as settings:
        running, came, ready = stopped_amid_a_stream(tmp_path, settings)
    assert came[-1].name == "done"
    assert came[-1].data["answer"].split() == [f"word{n}" for n in range(12)]
    assert came[-1].data["degraded"] == []
    # Uvicorn takes no new connection and closes idle ones, some 0.1 s later.
    assert ready is None or (ready.status_code, ready.json()["status"]) == (503, "unavailable")
    assert running.stop() == 0
    no_trace(running)


def test_a_stream_that_does_not_end_in_time_says_so(tmp_path: Path) -> None:
    hangs = Reply(stream(*WORDS), "hang")
    with generating({CHAT: hangs}, **{"service.shutdown_s": 2}) as settings:
        running, came, _ = stopped_amid_a_stream(tmp_path, settings)
    assert came[-1].name == "error"
    assert came[-1].data["error"]["message"] == "the service stops"
    assert running.stop() == 0
    no_trace(running)


def stopped_amid_a_stream(
    tmp_path: Path, settings: Any
) -> tuple[Service, list[Any], httpx2.Response | None]:
    """The service, told to end; the events that came after that; how its readiness was."""
    ready = None
    body = {"question": QUESTION, "stream": True}
    with ExitStack() as opened:
        running = opened.enter_context(service(sample_data(tmp_path / "data"), settings=settings))
        api, other = (opened.enter_context(client(running.url)) for _ in range(2))
        other.get("/health/live")
        with api.stream("POST", "/query", json=body) as reply:
            coming = events(reply)
            assert any(event.name == "token" for event in coming)
            running.process.send_signal(signal.SIGTERM)
            with suppress(httpx2.TransportError):
                ready = other.get("/health/ready")
            came = list(coming)
        running.process.wait(45)  # a second signal, late, would end it otherwise
    return running, came, ready


def test_an_upload_in_the_middle_of_the_end_leaves_no_trace(tmp_path: Path) -> None:
    settings = {"service.shutdown_s": 1}
    with service(tmp_path / "data", settings=settings, until="/health/live") as running:
        address = urlsplit(running.url)
        head = f"POST /documents HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 1000\r\n"
        kind = "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        with socket.create_connection((address.hostname or "", address.port or 0)) as slow:
            slow.sendall(f"{head}{kind}".encode())
            with client(running.url) as api:
                wait_until(lambda: api.get("/health/live").status_code == 200, 10)
            assert running.stop() == 0
            assert slow.recv(1000).startswith(b"HTTP/1.1 503")
        no_trace(running)
