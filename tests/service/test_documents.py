"""Documents that come and go while a service answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from commands import rag
from documents import ended, sources, taken_in, upload
from http_client import client, events, problem
from service import SAMPLE, Service, sample_data, service

PDF = SAMPLE / "manuals" / "hx-220-installation-manual.pdf"
ADDRESS = "Which Modbus address does the HX-220 come with from the factory?"
# What no document of the sample says.
LIGHTHOUSE = "Who keeps the lamp of the Skerravoe lighthouse burning?"
KEEPER = "The keeper of the Skerravoe lighthouse is {}, who keeps its lamp burning every night."


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(sample_data(tmp_path_factory.mktemp("service") / "data")) as started:
        yield started
        assert "unexpected" not in started.stderr, started.stderr[-5000:]


@pytest.fixture
def api(running: Service) -> Iterator[httpx2.Client]:
    with client(running.url) as opened:
        yield opened


def asked(api: httpx2.Client, question: str, collection: str = "default", **more: Any) -> Any:
    reply = api.post("/query", json={"question": question, "collection": collection, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


@contextmanager
def searched_all_the_time(running: Service, collection: str) -> Iterator[list[httpx2.Response]]:
    """The replies to a client that searches without a pause until the end."""
    replies: list[httpx2.Response] = []
    over = threading.Event()

    def search() -> None:
        with client(running.url) as api:
            while not over.is_set():
                body = {"question": LIGHTHOUSE, "collection": collection}
                replies.append(api.post("/search", json=body))

    thread = threading.Thread(target=search)
    thread.start()
    try:
        yield replies
    finally:
        over.set()
        thread.join()


def cited(answer: Any) -> set[str]:
    return {citation["source"] for citation in answer["citations"]}


@pytest.mark.parametrize(
    ("name", "data", "question", "said"),
    [
        ("lighthouse.txt", KEEPER.format("Morag Tulloch"), LIGHTHOUSE, "Morag Tulloch"),
        (
            "ferry.md",
            "# Ferry timetable\n\nThe ferry to Papa Skerry sails at 06:40 on weekdays.\n",
            "When does the ferry to Papa Skerry sail?",
            "06:40",
        ),
        ("hx-220.pdf", PDF, ADDRESS, "17"),
        (
            "年度 报告 (终稿).txt",
            "鸬鹚灯塔的看守人是王小明，他每晚点亮灯塔。",
            "鸬鹚灯塔的看守人是谁？",
            "王小明",
        ),
    ],
    ids=["txt", "md", "pdf", "chinese"],
)
def test_an_upload_is_listed_and_cited_under_its_name(
    api: httpx2.Client, name: str, data: str | Path, question: str, said: str
) -> None:
    job = upload(api, name, data, collection="uploads", metadata='{"team": "ops"}')
    assert job["kind"] == "ingest" and job["collection"] == "uploads"
    job = ended(api, job)
    assert (job["state"], job["stage"], job["error"]) == ("done", "ended", "")
    assert job["files"] == 1 and job["chunks"] == job["report"]["chunks"]["stored"] >= 1
    source = f"upload/{name}"
    assert job["source"] == source
    assert source in sources(api, "uploads")
    record = api.get(f"/documents/{job['document_id']}", params={"collection": "uploads"}).json()
    assert (record["source"], record["chunks"]) == (source, job["chunks"])
    answer = asked(api, question, "uploads", where={"team": "ops"})
    assert source in cited(answer) and said in answer["answer"]
    assert asked(api, question, "uploads", where={"team": "hr"})["citations"] == []


def test_the_same_name_again_replaces_the_document(api: httpx2.Client) -> None:
    first = taken_in(api, "keeper.txt", KEEPER.format("Morag Tulloch"), collection="replaced")
    assert "Morag" in asked(api, LIGHTHOUSE, "replaced")["answer"]
    second = taken_in(api, "keeper.txt", KEEPER.format("Hamish Rendall"), collection="replaced")
    assert second["document_id"] == first["document_id"]
    answer = asked(api, LIGHTHOUSE, "replaced")
    assert "Hamish" in answer["answer"] and "Morag" not in answer["answer"]
    assert not answer["cached"]
    assert sources(api, "replaced") == ["upload/keeper.txt"]
    body = {"question": "Morag Tulloch", "collection": "replaced"}
    hits = api.post("/search", json=body).json()["results"][0]["hits"]
    assert not any("Morag" in hit["text"] for hit in hits)


def test_a_deleted_document_is_in_no_answer_from_then_on(api: httpx2.Client) -> None:
    job = taken_in(api, "gone.txt", KEEPER.format("Morag Tulloch"))
    assert "upload/gone.txt" in cited(asked(api, LIGHTHOUSE))
    assert asked(api, LIGHTHOUSE)["cached"]
    reply = api.delete(f"/documents/{job['document_id']}")
    assert (reply.status_code, reply.json()["state"]) == (200, "done"), reply.text
    answer = asked(api, LIGHTHOUSE)
    assert not answer["cached"]
    assert "upload/gone.txt" not in cited(answer) and "Morag" not in answer["answer"]
    assert "upload/gone.txt" not in sources(api)
    problem(api.get(f"/documents/{job['document_id']}"), 404, "unknown_document")
    problem(api.delete(f"/documents/{job['document_id']}"), 404, "unknown_document")


def test_a_deleted_document_can_come_back(api: httpx2.Client) -> None:
    for keeper in ("Morag Tulloch", "Hamish Rendall"):
        job = taken_in(api, "back.txt", KEEPER.format(keeper), collection="back")
        assert keeper in asked(api, LIGHTHOUSE, "back")["answer"]
        path = f"/documents/{job['document_id']}"
        assert api.delete(path, params={"collection": "back"}).status_code == 200
        assert sources(api, "back") == []


def test_a_document_can_be_deleted_while_it_is_taken_in(api: httpx2.Client) -> None:
    job = upload(api, "hx.pdf", PDF, collection="hasty")
    path, where = f"/documents/{job['document_id']}", {"collection": "hasty"}
    reply = api.delete(path, params=where)
    assert reply.status_code in (200, 202), reply.text
    assert ended(api, reply.json())["state"] == "done"
    ended(api, job)
    assert api.get(path, params=where).status_code == 404


def pages(api: httpx2.Client, limit: int, **asked: Any) -> Iterator[list[str]]:
    """The sources of each page, as a client that follows `next` reads them."""
    after: dict[str, str] = {}
    while after is not None:
        reply = api.get("/documents", params={"limit": limit, **asked, **after})
        assert reply.status_code == 200, reply.text
        yield [document["source"] for document in reply.json()["documents"]]
        after = reply.json()["next"] and {"after": reply.json()["next"]}


def test_pages_follow_each_other_to_the_end(api: httpx2.Client) -> None:
    whole = sources(api)
    assert len(whole) == 20
    assert whole == sorted(whole)
    for limit in (1, 7, 10, 20):
        found = list(pages(api, limit))
        assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)
        assert 0 < len(found[-1]) <= limit
        assert [source for page in found for source in page] == whole


def test_documents_are_searched_by_source_and_title(api: httpx2.Client) -> None:
    for name in ("Ünï_100%.txt", "uni-1000.txt", "年度报告.txt"):
        taken_in(api, name, "A text.", collection="searched")
    for text, found in {
        "ÜNÏ": ["Ünï_100%.txt"],
        "100": ["uni-1000.txt", "Ünï_100%.txt"],
        "100%": ["Ünï_100%.txt"],
        "_": ["Ünï_100%.txt"],
        "报告": ["年度报告.txt"],
        "\0": [],
        "nothing": [],
    }.items():
        (page,) = pages(api, 5, collection="searched", search=text)
        assert page == [f"upload/{name}" for name in found], text
    taken_in(api, "boats.md", "# Ferry Timetable\n\nAt noon.", collection="searched")
    assert list(pages(api, 5, collection="searched", search="ferry TIME")) == [["upload/boats.md"]]
    (first, second) = pages(api, 1, collection="searched", search="100")
    assert first + second == ["upload/uni-1000.txt", "upload/Ünï_100%.txt"]


def fields(api: httpx2.Client, collection: str) -> dict[str, Any]:
    reply = api.get(f"/collections/{collection}/fields")
    assert reply.status_code == 200, reply.text
    assert reply.json()["complete"]
    return {field.pop("name"): field for field in reply.json()["fields"]}


def test_fields_are_those_of_the_documents_that_are_there(api: httpx2.Client) -> None:
    taken_in(api, "a.txt", "A.", collection="fields", metadata='{"team": "ops", "year": 2024}')
    job = taken_in(api, "b.txt", "B.", collection="fields", metadata='{"year": 2.5, "new": true}')
    nothing: dict[str, Any] = {"more": False, "least": None, "greatest": None}
    assert fields(api, "fields") == {
        "new": {"kind": "truth", "values": [{"value": True, "documents": 1}], **nothing},
        "team": {"kind": "text", "values": [{"value": "ops", "documents": 1}], **nothing},
        "year": {
            "kind": "number",
            "values": [{"value": 2.5, "documents": 1}, {"value": 2024, "documents": 1}],
            "more": False,
            "least": 2.5,
            "greatest": 2024,
        },
    }
    assert "2024.0" not in api.get("/collections/fields/fields").text
    assert api.delete(f"/documents/{job['document_id']}?collection=fields").status_code == 200
    assert set(fields(api, "fields")) == {"team", "year"}


def test_listing_waits_its_turn_and_no_longer_than_the_deadline(tmp_path: Path) -> None:
    data_dir = sample_data(tmp_path / "data")
    paths = ("/documents", "/documents/x", "/collections/default", "/collections/default/fields")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        busy = {
            "generator.url": f"http://127.0.0.1:{silent.getsockname()[1]}/v1",
            "generator.model": "m",
            "service.concurrency": 1,
            "service.queue": 0,
        }
        with service(data_dir, settings=busy) as running, client(running.url) as api:
            body = {"question": ADDRESS, "stream": True}
            with api.stream("POST", "/query", json=body) as answering:
                stream = events(answering)  # kept, for its end closes the connection
                assert next(stream).name == "sources"
                for path in paths:
                    assert "waiting" in problem(api.get(path), 503, "overloaded")["message"]
    hasty = {"service.deadline_s": 0.0001}
    with (
        service(data_dir, settings=hasty, until="/health/live") as running,
        client(running.url) as api,
    ):
        for path in paths:
            assert "0.0001 s" in problem(api.get(path), 503, "overloaded")["message"]


def test_what_another_process_ingests_is_seen_at_once(
    running: Service, api: httpx2.Client, tmp_path: Path
) -> None:
    question = "Where is the harbour master's office?"
    before = asked(api, question)
    assert asked(api, question)["cached"]
    note = tmp_path / "harbour.txt"
    note.write_text("The harbour master's office is in the old net loft on Pier Road.")
    done = rag("--data-dir", running.data_dir, "ingest", note)
    assert done.status == 0, done.err
    after = asked(api, question)
    assert not after["cached"] and "net loft" in after["answer"]
    assert after["collection_generation"] != before["collection_generation"]
    gone = rag("--data-dir", running.data_dir, "documents", "delete", note)
    assert gone.status == 0, gone.err
    assert "net loft" not in asked(api, question)["answer"]


def test_an_unreadable_file_fails_in_one_line_and_the_older_version_stays(
    api: httpx2.Client,
) -> None:
    taken_in(api, "hx.pdf", PDF, collection="unreadable")
    before = asked(api, ADDRESS, "unreadable")
    broken = b"%PDF-1.7\n" + b"this is no PDF at all\n" * 50
    job = ended(api, upload(api, "hx.pdf", broken, collection="unreadable"))
    assert job["state"] == "failed"
    assert job["error"] and "\n" not in job["error"] and "Traceback" not in job["error"]
    assert "/new/" not in job["error"]
    after = asked(api, ADDRESS, "unreadable")
    assert after["citations"] == before["citations"] != []
    assert sources(api, "unreadable") == ["upload/hx.pdf"]


def test_an_upload_makes_a_collection_that_is_not_there(api: httpx2.Client) -> None:
    body = {"question": LIGHTHOUSE, "collection": "brand-new"}
    problem(api.post("/query", json=body), 404, "unknown_collection")
    assert "brand-new" not in api.get("/collections").json()["collections"]
    taken_in(api, "keeper.txt", KEEPER.format("Morag Tulloch"), collection="brand-new")
    assert "brand-new" in api.get("/collections").json()["collections"]
    found = api.get("/collections/brand-new").json()
    assert found["chunks"] == 1 and found["embedder"] == "all-MiniLM-L6-v2"
    assert "Morag" in asked(api, LIGHTHOUSE, "brand-new")["answer"]


def test_a_collection_may_be_re_embedded_or_made_anew_meanwhile(
    running: Service, api: httpx2.Client, tmp_path: Path
) -> None:
    def run(*arguments: str | Path) -> None:
        done = rag("--data-dir", running.data_dir, *arguments)
        assert done.status == 0, done.err

    taken_in(api, "keeper.txt", KEEPER.format("Morag Tulloch"), collection="swapped")
    first = asked(api, LIGHTHOUSE, "swapped")
    with searched_all_the_time(running, "swapped") as replies:
        run("collections", "reembed", "swapped", "--model", "all-MiniLM-L6-v2")
    second = asked(api, LIGHTHOUSE, "swapped")
    assert len(replies) > 5
    for reply in replies:
        if reply.status_code != 200:  # it was searching when its collection went
            problem(reply, 503, "collection_gone")
    assert second["answer"] == first["answer"] and not second["cached"]
    run("collections", "delete", "swapped", "--yes")
    body = {"question": LIGHTHOUSE, "collection": "swapped"}
    problem(api.post("/query", json=body), 404, "unknown_collection")
    note = tmp_path / "keeper.txt"
    note.write_text(KEEPER.format("Hamish Rendall"))
    run("ingest", "--collection", "swapped", note)
    third = asked(api, LIGHTHOUSE, "swapped")
    assert "Hamish" in third["answer"] and not third["cached"]
    taken_in(api, "second.txt", "The lamp burns oil.", collection="swapped")
    assert len(sources(api, "swapped")) == 2


def test_an_acknowledged_upload_outlives_a_crash(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    names = [f"keeper-{n}.txt" for n in range(4)]
    with service(data_dir, until="/health/live") as running, client(running.url) as api:
        jobs = [upload(api, name, KEEPER.format(name)) for name in names]
        running.kill()
    with service(data_dir) as running, client(running.url) as api:
        assert [ended(api, job)["state"] for job in jobs] == ["done"] * len(jobs)
        assert sources(api) == [f"upload/{name}" for name in names]
        assert cited(asked(api, LIGHTHOUSE)) <= {f"upload/{name}" for name in names}
