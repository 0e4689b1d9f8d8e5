"""`rag serve`: what it refuses to begin, several processes, and its end."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import pytest
from chroma_server import chroma_server
from commands import rag
from documents import ended, sources, taken_in, upload
from http_client import client, problem
from prometheus import prometheus
from servers import wait_until
from service import Service, new_key, service

QUESTION = "Where is the safe?"
NOTE = "The safe is behind the picture."


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without any key."""
    return tmp_path_factory.mktemp("serving") / "data"


def test_other_machines_are_let_in_only_with_keys(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "::ffff:0.0.0.0"):
        refused = rag("--data-dir", tmp_path, "serve", "--host", host, "--port", "0")
        assert refused.status == 2
        assert "rag keys create" in refused.error and "--without-keys" in refused.error
    arguments = ("--host", "0.0.0.0")
    with (
        service(tmp_path, *arguments, "--without-keys", until="/health/live") as running,
        client(_local(running)) as api,
    ):
        assert api.get("/collections").status_code == 200
    key = new_key(tmp_path)
    with service(tmp_path, *arguments, until="/health/live") as running:
        with client(_local(running)) as api:
            problem(api.get("/collections"), 401, "unauthenticated")
        with client(_local(running), key) as api:
            assert api.get("/collections").status_code == 200
    (known,) = rag("--data-dir", tmp_path, "keys", "list", "--json").json
    assert rag("--data-dir", tmp_path, "keys", "revoke", known["id"]).status == 0
    refused = rag("--data-dir", tmp_path, "serve", *arguments, "--port", "0")
    assert refused.status == 2 and "there are no keys" in refused.error


def _local(running: Service) -> str:
    return f"http://127.0.0.1:{urlsplit(running.url).port}"


def test_a_port_that_is_taken_is_one_line(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = rag("--data-dir", data_dir, "serve", "--port", port)
    assert refused.status == 2
    assert port in refused.error and "--port" in refused.error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("service.rate_limit", "often"),
        ("service.concurrency", "0"),
        ("service.deadline_s", "soon"),
        ("service.nothing", "1"),
        ("cache.url", "http://127.0.0.1"),
        ("oidc.jwks_url", "http://127.0.0.1/keys"),
        ("embedder.kind", "magic"),
        ("generator.kind", "magic"),
        ("generator.kind", "openai"),
        ("rerank.kind", "magic"),
        ("answer.templates", "/nowhere"),
        ("store", "magic"),
        ("stores.faiss.index", "magic"),
    ],
)
def test_a_wrong_setting_is_one_line_before_it_listens(
    data_dir: Path, name: str, value: str
) -> None:
    done = rag("--data-dir", data_dir, "--set", f"{name}={value}", "serve", "--port", "0")
    assert done.status == 2, done.err
    assert done.error and "listening" not in done.err


def test_workers_do_not_share_an_embedded_store(data_dir: Path) -> None:
    refused = rag("--data-dir", data_dir, "serve", "--workers", "2", "--port", "0")
    assert refused.status == 2
    assert "'faiss'" in refused.error and "stores.chroma.host" in refused.error


class Shared(NamedTuple):
    """A service of two processes."""

    running: Service
    key: str
    workers: list[int]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("shared")
    key = new_key(folder / "data", "--scope", "admin")
    with chroma_server(folder / "chroma") as (port, _):
        settings = {
            "stores.chroma.host": "127.0.0.1",
            "stores.chroma.port": port,
            "service.rate_limit": "",
            "service.address_limit": "",
        }
        arguments = ("--store", "chroma", "--workers", "2")
        with service(folder / "data", *arguments, settings=settings) as running:
            wait_until(lambda: len(started(running)) == 2, 60)
            yield Shared(running, key, started(running))
            assert running.stop() == 0
            assert not [pid for pid in started(running) if alive(pid)]
            assert "Traceback" not in running.stderr, running.stderr[-5000:]


def started(running: Service) -> list[int]:
    """The processes that answer, as they say themselves."""
    return [
        int(line.partition("Started server process [")[2].partition("]")[0])
        for line in running.stderr.splitlines()
        if "Started server process [" in line
    ]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def asked_anew(shared: Shared, count: int, path: str = "/health/live") -> list[httpx2.Response]:
    """The replies to requests that are made at once, each over a connection of its own."""
    replies: list[httpx2.Response] = []

    def ask() -> None:
        with client(shared.running.url, shared.key) as api:
            replies.append(api.get(path))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {reply.status_code for reply in replies} == {200}
    return replies


def requests_counted(metrics: str, route: str) -> float:
    return sum(
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith("rag_requests_total{") and f'route="{route}"' in line
    )


def test_both_answer_and_the_figures_are_those_of_both(shared: Shared) -> None:
    with client(shared.running.url, shared.key) as api:
        before = requests_counted(api.get("/metrics").text, "/collections")
        for _ in range(4):
            asked_anew(shared, 10, "/collections")
        counts = {
            requests_counted(r.text, "/collections") for r in asked_anew(shared, 8, "/metrics")
        }
    assert counts == {before + 40}
    busy = [pid for pid in shared.workers if connections_taken(pid)]
    assert busy == shared.workers


def connections_taken(pid: int) -> bool:
    """Whether a process has answered anything: then it has files of figures."""
    folder = f"/proc/{pid}/maps"
    return "counter_" in Path(folder).read_text()


def test_keys_jobs_answers_and_documents_are_those_of_both(shared: Shared) -> None:
    new = new_key(shared.running.data_dir, "--scope", "admin")
    with client(shared.running.url, new) as api:
        jobs = [upload(api, f"note-{n}.txt", NOTE) for n in range(6)]
        assert {ended(api, job)["state"] for job in jobs} == {"done"}
    for _ in range(6):  # each over a new connection, so by either process
        with client(shared.running.url, new) as api:
            assert len(sources(api)) == 6
            answer = api.post("/query", json={"question": QUESTION}).json()
            assert "behind the picture" in answer["answer"]
        with client(shared.running.url, new) as api:
            rating = {"answer_id": answer["request_id"], "rating": "up"}
            assert api.post("/feedback", json=rating).status_code == 201
            assert api.get(f"/jobs/{jobs[0]['id']}").status_code == 200
    with client(shared.running.url, new) as api:
        path = f"/documents/{jobs[0]['document_id']}"
        assert api.delete(path).status_code == 200
    for _ in range(6):
        with client(shared.running.url, new) as api:
            assert "upload/note-0.txt" not in api.post("/query", json={"question": QUESTION}).text
    assert (
        rag("--data-dir", shared.running.data_dir, "keys", "revoke", new.split("_")[1]).status == 0
    )
    for _ in range(6):
        with client(shared.running.url, new) as api:
            problem(api.get("/collections"), 401, "unauthenticated")


def test_prometheus_scrapes_it(tmp_path: Path) -> None:
    with service(tmp_path / "data", until="/health/live") as running, client(running.url) as api:
        taken_in(api, "note.txt", NOTE)
        for _ in range(3):
            assert api.post("/query", json={"question": QUESTION}).status_code == 200
        with prometheus(urlsplit(running.url).netloc, tmp_path / "prometheus") as server:
            server.wait_for('up{job="rag"}', 1)
            server.wait_for('sum(rag_requests_total{route="/query",status="200"})', 3)


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    with chroma_server(tmp_path / "chroma") as (port, _):
        settings = {"stores.chroma.host": "127.0.0.1", "stores.chroma.port": port}
        arguments = ("--store", "chroma", "--workers", "2")
        with service(tmp_path / "data", *arguments, settings=settings) as running:
            wait_until(lambda: len(started(running)) == 2, 60)
            os.kill(started(running)[0], 9)
            wait_until(lambda: len(started(running)) == 3, 60)
            with client(running.url) as api:
                taken_in(api, "note.txt", NOTE)
                assert "behind the picture" in api.post("/query", json={"question": QUESTION}).text
            assert running.stop() == 0
            assert not [pid for pid in started(running) if alive(pid)]
