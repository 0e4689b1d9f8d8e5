"""What is wrong is refused with a 4xx in the one shape: no 500, no trace, and nothing written."""

from __future__ import annotations

import base64
import io
import json
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from http_client import QUESTION, client, problem
from service import Service, new_key, sample_data, service

from rag.service.jobs import Jobs
from rag.service.uploads import Uploads


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {"service.max_body_kb": 256, "service.max_upload_mb": 1}
    data_dir = sample_data(tmp_path_factory.mktemp("service") / "data")
    with service(data_dir, settings=settings) as started:
        yield started
        assert "unexpected" not in started.stderr, started.stderr[-5000:]


@pytest.fixture
def api(running: Service) -> Iterator[httpx2.Client]:
    with client(running.url) as opened:
        yield opened


def nested(depth: int) -> str:
    return '{"$not": ' * depth + '{"lang": "en"}' + "}" * depth


@pytest.mark.parametrize("route", ["/query", "/search"])
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("{", 400, "malformed_json"),
        ("", 422, "invalid_request"),
        ("[]", 422, "invalid_request"),
        ('"text"', 422, "invalid_request"),
        ('{"question": "x"', 400, "malformed_json"),
        ("\x00\x01", 400, "malformed_json"),
        ("[" * 100_000, 400, "bad_request"),
        ('{"question": "x", "where": ' + nested(1000) + "}", 400, "bad_request"),
        ('{"question": "x", "where": ' + nested(50) + "}", 422, "invalid_filter"),
        ('{"question": "x", "top_k": 1e400}', 422, "invalid_request"),
        ('{"question": "x", "top_k": ' + "9" * 5000 + "}", 400, "bad_request"),
        ('{"question": "\\ud800"}', 422, "invalid_request"),
        ('{"question": "x", "where": {"year": NaN}}', 422, "invalid_filter"),
        ('{"question": "x", "where": {"\\ud800": 1}}', 422, "invalid_filter"),
    ],
)
def test_a_body_that_is_no_request(
    api: httpx2.Client, route: str, body: str, status: int, code: str
) -> None:
    headers = {"Content-Type": "application/json"}
    problem(api.post(route, content=body.encode(), headers=headers), status, code)


@pytest.mark.parametrize("route", ["/query", "/search"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"question": ""},
        {"question": " \n "},
        {"question": "x" * 8_001},
        {"question": "a\x00b"},
        {"question": "a\x1bb"},
        {"question": 7},
        {"question": None},
        {"question": QUESTION, "top_k": 0},
        {"question": QUESTION, "top_k": 10**9},
        {"question": QUESTION, "top_k": "5"},
        {"question": QUESTION, "top_k": True},
        {"question": QUESTION, "mode": "magic"},
        {"question": QUESTION, "topk": 5},
        {"question": QUESTION, "collection": "../../etc"},
        {"question": QUESTION, "collection": "X"},
        {"question": QUESTION, "diversity": 2},
        {"question": QUESTION, "where": []},
        {"question": QUESTION, "where": {"year": {"$near": 1}}},
        {"question": QUESTION, "where": {"year": {"$in": 5}}},
        {"question": QUESTION, "where": {"$or": []}},
        {"question": QUESTION, "where": {"a": [1]}},
        {"question": QUESTION, "where": {"a": 2**70}},
    ],
    ids=str,
)
def test_a_wrong_field(api: httpx2.Client, route: str, wrong: dict[str, Any]) -> None:
    reply = api.post(route, json=wrong)
    assert reply.status_code == 422
    problem(reply, 422, reply.json()["error"]["code"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"history": [{"question": "x"}]},
        {"history": [{"question": "x", "answer": "y"}] * 51},
        {"max_tokens": 0},
        {"temperature": 3},
        {"stream": "yes"},
    ],
    ids=str,
)
def test_a_wrong_field_of_a_question(api: httpx2.Client, wrong: dict[str, Any]) -> None:
    problem(api.post("/query", json={"question": QUESTION, **wrong}), 422, "invalid_request")


def test_a_body_over_the_limit(api: httpx2.Client) -> None:
    problem(api.post("/query", json={"question": "x" * 2**20}), 413, "too_large")

    def endless() -> Iterator[bytes]:
        for _ in range(1024):
            yield b" " * 1024

    headers = {"Content-Type": "application/json"}
    problem(api.post("/query", content=endless(), headers=headers), 413, "too_large")


def test_a_body_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    data = sample_data(tmp_path / "data")
    with service(data, settings={"service.deadline_s": 0.1}) as running:
        address = urlsplit(running.url)
        with socket.create_connection((address.hostname or "", address.port or 0)) as slow:
            slow.settimeout(30)
            head = f"POST /query HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 100\r\n\r\n"
            slow.sendall(head.encode() + b"{")
            assert slow.recv(65536).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("wrong", [["x"] * 65, [], ["x", 7], ["x", " "], "x" * 8_001], ids=len)
def test_what_is_right_is_said_of_wrong_questions(api: httpx2.Client, wrong: Any) -> None:
    said = problem(api.post("/search", json={"question": wrong}), 422, "invalid_request")["message"]
    assert "a list of 1 to 64" in said and "at most 8,000 characters" in said


def test_too_much_at_once(api: httpx2.Client) -> None:
    reply = api.post("/search", json={"question": ["x" * 8_000] * 8 + ["x"]})
    assert "64,000" in problem(reply, 422, "invalid_request")["message"]


@pytest.mark.parametrize("question", [" \n ", "a\x1bb"], ids=repr)
def test_a_question_without_text_is_called_so(api: httpx2.Client, question: str) -> None:
    message = problem(api.post("/query", json={"question": question}), 422, "invalid_request")
    assert message["message"] == "question: is empty or holds control characters"


def test_what_was_sent_is_not_echoed_whole(api: httpx2.Client) -> None:
    for where in ({"year": {"$" + "x" * 50_000: 1}}, {"x" * 50_000: {"$in": 5}}):
        reply = api.post("/search", json={"question": "x", "where": where})
        problem(reply, 422, "invalid_filter")
        assert len(reply.content) < 1_000


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/query", 405),
        ("GET", "/collections/", 404),  # no redirect: it would go where the Host header says
        ("DELETE", "/collections/default", 405),
        ("GET", "/collections/nowhere", 404),
        ("GET", "/collections/..%2F..%2Fetc", 404),
        ("GET", "/documents/nothing", 404),
        ("DELETE", "/documents/nothing", 404),
        ("GET", "/documents?limit=0", 422),
        ("GET", "/documents?after=", 422),
        ("GET", "/documents?after=nothing", 422),
        ("GET", "/documents?search=" + "x" * 501, 422),
        ("GET", "/collections/nowhere/fields", 404),
        ("GET", "/collections/A/fields", 422),
        ("GET", "/documents?collection=nowhere", 404),
        ("GET", "/jobs/" + "0" * 32, 404),
        ("GET", "/jobs/x", 422),
    ],
)
def test_what_is_not_there(api: httpx2.Client, method: str, path: str, status: int) -> None:
    reply = api.request(method, path)
    problem(reply, status, reply.json()["error"]["code"])


@pytest.mark.parametrize(
    "text",
    [
        *("no JSON", "{}", "null", '"abc"', '["a", "b"]', '["a", "b", 3]', '["a", "b", "c", "d"]'),
        *('["\\ud800", "b", "c"]', "[" * 20_000, "9" * 5_000),
    ],
    ids=lambda text: text[:20],
)
def test_a_cursor_that_is_none(api: httpx2.Client, text: str) -> None:
    cursor = base64.urlsafe_b64encode(text.encode()).decode()
    for after in (cursor, "文" + cursor[:50]):
        problem(api.get("/documents", params={"after": after}), 422, "input_error")


def test_the_rating_of_an_answer_that_nobody_got(api: httpx2.Client) -> None:
    problem(api.post("/feedback", json={"answer_id": "0" * 32, "rating": "up"}), 404, "not_found")


def bomb() -> bytes:
    """A docx of some KB that would be gigabytes."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        with archive.open("word/document.xml", "w", force_zip64=True) as file:
            for _ in range(512):
                file.write(b"\0" * 2**20)
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "status"),
    [
        ("report.pdf", b"MZ\x90\x00" + b"\0" * 500, 415),
        ("report.exe", b"MZ\x90\x00", 415),
        ("report", b"text", 415),
        (".pdf", b"%PDF-1.7", 415),
        ("big.txt", b"x" * (2**20 + 2), 413),
        ("nul.txt", b"a\0b", 415),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_upload_that_is_refused_leaves_nothing(
    running: Service, api: httpx2.Client, name: str, data: bytes, status: int
) -> None:
    before = api.get("/documents").json()
    reply = api.post("/documents", files={"file": (name, data)})
    problem(reply, status, reply.json()["error"]["code"])
    assert api.get("/documents").json() == before
    assert not list((running.data_dir / "service" / "uploads").rglob("*.*x*"))


def test_a_bomb_is_refused(api: httpx2.Client) -> None:
    reply = api.post("/documents", files={"file": ("bomb.docx", bomb())})
    problem(reply, 415, "unsupported_format")


@pytest.mark.parametrize(
    "metadata", ["{", "[]", '{"a": {"b": 1}}', '{"source": "x"}', '{"$a": 1}', '"x"'], ids=str
)
def test_an_upload_with_wrong_metadata(api: httpx2.Client, metadata: str) -> None:
    files = {"file": ("note.txt", b"A note.")}
    reply = api.post("/documents", files=files, data={"metadata": metadata})
    problem(reply, 422, "input_error")


def test_an_upload_without_a_file(api: httpx2.Client) -> None:
    problem(api.post("/documents", data={"metadata": "{}"}), 422, "input_error")


def test_a_form_that_is_none(api: httpx2.Client) -> None:
    note = ("note.txt", b"A note.")
    for reply in (
        api.post("/documents", content="x", headers={"Content-Type": "multipart/form-data"}),
        api.post("/documents", files=[("file", note), ("file", note)]),
        api.post("/documents", files={"file": note}, data={"metadata": "x" * 30_000}),
    ):
        assert "multipart form" in problem(reply, 422, "input_error")["hint"]


def test_a_full_queue_refuses_a_file_before_it_is_sent(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "service" / "uploads", 1, [".txt"])
    jobs = Jobs(tmp_path / "service", uploads, 1)
    jobs.add(uploads.keep(io.BytesIO(b"A note."), "note.txt", "default", {}), "", {})
    task = jobs.take("default", "worker")
    assert task is not None
    jobs.again(task, "it waits", 3_600)
    jobs.close()
    with service(tmp_path, settings={"service.max_jobs": 1}, until="/health/live") as running:
        address = urlsplit(running.url)
        with socket.create_connection((address.hostname or "", address.port or 0)) as sending:
            sending.settimeout(30)
            sending.sendall(
                f"POST /documents HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 9999\r\n"
                "Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode()
            )
            assert sending.recv(65536).startswith(b"HTTP/1.1 503 ")


def test_probes_may_ask_with_head(api: httpx2.Client) -> None:
    for path in ("/health/live", "/health/ready"):
        reply = api.head(path)
        assert (reply.status_code, reply.content) == (200, b"")


def test_a_key_for_a_part_does_not_see_how_all_are_served(tmp_path: Path) -> None:
    options = {
        "part": ("--collection", "default"),
        "tenant": ("--tenant", '{"tenant": "acme"}'),
        "all": ("--scope", "read"),
        "admin": ("--scope", "admin", "--collection", "default"),
    }
    keys = {name: new_key(tmp_path, *given) for name, given in options.items()}
    with service(tmp_path, until="/health/live") as running:
        for name, key in keys.items():
            with client(running.url, key) as api:
                for path in ("/metrics", "/health"):
                    if name in ("part", "tenant"):
                        problem(api.get(path), 403, "forbidden")
                    else:
                        assert api.get(path).status_code == 200


def test_what_is_no_json_counts_against_who_has_no_key(tmp_path: Path) -> None:
    new_key(tmp_path)
    settings = {"service.address_limit": "3/hour"}
    with (
        service(tmp_path, settings=settings, until="/health/live") as running,
        client(running.url) as api,
    ):
        headers = {"Content-Type": "application/json"}
        for _ in range(3):
            problem(api.post("/query", content="{", headers=headers), 400, "malformed_json")
        problem(api.post("/query", json={"question": "x"}), 429, "too_many_requests")


def test_wrong_keys_open_nothing(tmp_path: Path) -> None:
    data_dir = sample_data(tmp_path / "data")
    key = new_key(data_dir, "--scope", "read", "--collection", "default")
    with service(data_dir, until="/health/live") as running, client(running.url) as api:
        for headers in (
            {},
            {"Authorization": "Bearer nothing"},
            {"Authorization": f"Basic {key}"},
            {"Authorization": f"Bearer {key}x"},
            {"X-API-Key": "x" * 5_000},
            {"X-API-Key": ""},
        ):
            body = {"question": QUESTION}
            reply = api.post("/query", json=body, headers=headers)
            problem(reply, 401, "unauthenticated")
            assert reply.headers["WWW-Authenticate"] == "Bearer"
        for route in ("/metrics", "/health", "/collections", "/documents"):
            problem(api.get(route), 401, "unauthenticated")
        allowed = {"X-API-Key": key}
        assert api.post("/query", json={"question": QUESTION}, headers=allowed).status_code == 200
        other = {"question": QUESTION, "collection": "other"}
        problem(api.post("/query", json=other, headers=allowed), 403, "forbidden")
        files = {"file": ("note.txt", b"A note.")}
        problem(api.post("/documents", files=files, headers=allowed), 403, "forbidden")


def test_pages_of_other_sites_cannot_use_the_browser_of_this_machine(api: httpx2.Client) -> None:
    files = {"file": ("note.txt", b"A note.")}
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        problem(api.post("/documents", files=files, headers=headers), 403, "forbidden")
    local = {"Origin": "http://localhost:3000"}
    assert api.post("/search", json={"question": "x"}, headers=local).status_code == 200


def test_every_reply_has_headers_that_protect_and_no_cors(api: httpx2.Client) -> None:
    for reply in (api.get("/health/live"), api.get("/nothing"), api.post("/query", content="{")):
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["X-Frame-Options"] == "DENY"
        assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
        assert not any(name.lower().startswith("access-control") for name in reply.headers)
        assert "server" not in reply.headers


def test_an_error_tells_the_field(api: httpx2.Client) -> None:
    body = {"question": QUESTION, "topk": 5}
    assert "topk" in problem(api.post("/query", json=body), 422, "invalid_request")["message"]
    reply = api.post("/query", content=json.dumps(body), headers={"Content-Type": "text/plain"})
    assert "Content-Type" in problem(reply, 422, "invalid_request")["hint"]
