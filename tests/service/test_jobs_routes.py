"""The list of jobs, and documents that are taken in again from the file that is there."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from commands import rag
from documents import ended, taken_in, upload
from http_client import problem
from service import Service, ingest, new_key, service

from ingest.pipeline import document_id
from rag.service.jobs import Jobs
from rag.service.uploads import Upload, Uploads

LONG = " ".join(f"The lamp number {n} of the lighthouse burns all night." for n in range(12))
# The file says that it is another tenant's.
MARKDOWN = f"---\nlang: en\ntenant: birch\n---\n# Lamps\n\n{LONG}\n"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs") / "data"


@pytest.fixture(scope="module")
def keys(data_dir: Path) -> dict[str, str]:
    writes = ("--scope", "read", "--scope", "write")
    return {
        "all": new_key(data_dir, *writes),
        "acme": new_key(data_dir, *writes, "--tenant", '{"tenant": "acme"}'),
        "birch": new_key(data_dir, *writes, "--tenant", '{"tenant": "birch"}'),
        "notes": new_key(data_dir, *writes, "--collection", "notes"),
        "reader": new_key(data_dir, "--scope", "read"),
    }


@pytest.fixture(scope="module")
def running(data_dir: Path, keys: dict[str, str]) -> Iterator[Service]:
    with service(data_dir) as started:
        yield started
        assert "unexpected" not in started.stderr, started.stderr[-5000:]


@contextmanager
def all_of(running: Service, keys: dict[str, str]) -> Iterator[dict[str, httpx2.Client]]:
    clients = {name: httpx2.Client(base_url=running.url, timeout=60) for name in keys}
    for name, key in keys.items():
        clients[name].headers["X-API-Key"] = key
    try:
        yield clients
    finally:
        for one in clients.values():
            one.close()


@pytest.fixture
def apis(running: Service, keys: dict[str, str]) -> Iterator[dict[str, httpx2.Client]]:
    with all_of(running, keys) as clients:
        yield clients


def again(api: httpx2.Client, document: str) -> Any:
    """The job, once it has ended, that takes a document in again."""
    reply = api.post(f"/documents/{document}/ingest")
    assert reply.status_code == 202, reply.text
    return ended(api, reply.json())


def files(job: Any) -> dict[str, int]:
    """What a job did: how many files were new, changed, unchanged."""
    assert job["state"] == "done", job
    return {name: n for name, n in job["report"]["files"].items() if n}


def found(api: httpx2.Client, **where: Any) -> set[str]:
    """The sources of what is found among the passages with this metadata."""
    reply = api.post("/search", json={"question": "lamp", "where": where or None, "top_k": 100})
    assert reply.status_code == 200, reply.text
    return {hit["source"] for hit in reply.json()["results"][0]["hits"]}


def unchanged(data_dir: Path, file: Path, *options: str, **environment: str) -> bool:
    """Whether `rag ingest` finds nothing to do, so that nothing it would keep was lost or added."""
    done = rag("--data-dir", data_dir, "ingest", file, *options, **environment)
    assert done.status == 0, done.err
    return "1 unchanged" in done.out + done.err


def test_jobs_are_listed_newest_first_to_those_whose_they_are(
    apis: dict[str, httpx2.Client],
) -> None:
    own = [taken_in(apis["acme"], f"{n}.txt", "Some text.")["id"] for n in range(3)]
    failed = ended(apis["acme"], upload(apis["acme"], "broken.pdf", b"%PDF-1.7\nno"))["id"]
    other = taken_in(apis["birch"], "0.txt", "Some text.")["id"]
    elsewhere = taken_in(apis["notes"], "0.txt", "Some text.", collection="notes")["id"]

    def listed(name: str, **params: Any) -> list[str]:
        reply = apis[name].get("/jobs", params=params)
        assert reply.status_code == 200, reply.text
        return [job["id"] for job in reply.json()["jobs"]]

    assert listed("acme") == [failed, *reversed(own)]
    assert listed("acme", state="failed") == [failed]
    assert listed("acme", state="done", limit=2) == own[:0:-1]
    assert listed("acme", collection="notes") == []
    assert listed("birch") == [other]
    assert listed("notes") == listed("all", collection="notes") == [elsewhere]
    assert listed("all") == [elsewhere, other, failed, *reversed(own)]
    problem(apis["notes"].get("/jobs", params={"collection": "default"}), 403, "forbidden")
    problem(apis["reader"].get("/jobs"), 403, "forbidden")
    problem(apis["all"].get("/jobs", params={"limit": 0}), 422, "invalid_request")


def test_an_unchanged_document_is_told_to_be(apis: dict[str, httpx2.Client]) -> None:
    job = taken_in(apis["acme"], "same.md", MARKDOWN, metadata='{"team": "ops"}')
    path = f"/documents/{job['document_id']}"
    before = apis["acme"].get(path).json()
    repeated = again(apis["acme"], job["document_id"])
    assert files(repeated) == {"unchanged": 1}
    assert (repeated["document_id"], repeated["source"]) == (job["document_id"], job["source"])
    assert apis["acme"].get(path).json() == before
    for name, status, code in (("birch", 404, "unknown_document"), ("reader", 403, "forbidden")):
        problem(apis[name].post(f"{path}/ingest"), status, code)
    problem(apis["all"].post("/documents/0123456789abcdef/ingest"), 404, "unknown_document")


def test_after_other_settings_it_is_taken_in_anew_with_the_metadata_that_it_was_given(
    data_dir: Path, keys: dict[str, str], running: Service, tmp_path: Path
) -> None:
    own = tmp_path / "own.md"
    own.write_text(MARKDOWN)
    ingest(data_dir, own, "--metadata", "team=hr")
    sent = [f"upload/tenant=acme/{name}.md" for name in ("sent", "admin")]
    with all_of(running, keys) as apis:
        ids = {
            name: taken_in(apis["acme"], f"{name}.md", MARKDOWN, metadata='{"team": "ops"}')[
                "document_id"
            ]
            for name in ("sent", "admin")
        }
    with (
        service(data_dir, settings={"ingest.chunk_tokens": 32}) as other,
        all_of(other, keys) as apis,
    ):
        sizes = {apis["acme"].get(f"/documents/{each}").json()["size"] for each in ids.values()}
        assert sizes == {len(MARKDOWN)}
        jobs = [
            again(apis["acme"], ids["sent"]),
            again(apis["all"], ids["admin"]),
            again(apis["all"], document_id(str(own))),
        ]
        for job in jobs:
            assert files(job) == {"changed": 1}
            assert job["chunks"] > 3
        for source in sent:
            assert found(apis["acme"], source=source, team="ops", lang="en", tenant="acme")
        assert not found(apis["birch"], team="ops")
        assert found(apis["all"], team="hr", lang="en", tenant="birch") == {str(own)}
        for each in ids.values():  # the kept file stays
            assert files(again(apis["acme"], each)) == {"unchanged": 1}
    metadata = ("--metadata", "team=hr")
    assert unchanged(data_dir, own, *metadata, RAG_INGEST_CHUNK_TOKENS="32")


def test_a_file_of_the_machine_is_taken_in_as_it_is_now_and_stays_where_it_is(
    data_dir: Path, apis: dict[str, httpx2.Client], tmp_path: Path
) -> None:
    file = tmp_path / "lamps.md"
    file.write_text("---\nyear: 2023\n---\nOne lamp burns on Papa Skerry.\n")
    ingest(data_dir, file, "--metadata", "tenant=acme")
    document = document_id(str(file))
    assert files(again(apis["all"], document)) == {"unchanged": 1}
    now = "---\nyear: 2024\n---\nTwo lamps burn on Papa Skerry.\n"
    file.write_text(now)
    assert files(again(apis["all"], document)) == {"changed": 1}
    assert str(file) in found(apis["all"], year=2024, tenant="acme")
    assert str(file) not in found(apis["all"], year=2023)
    assert unchanged(data_dir, file, "--metadata", "tenant=acme")
    assert file.read_text() == now

    problem(apis["acme"].post(f"/documents/{document}/ingest"), 403, "forbidden")
    file.write_text("")
    job = again(apis["all"], document)
    assert job["state"] == "failed" and "empty" in job["error"]
    assert file.exists()
    assert str(file) in found(apis["all"], year=2024)
    file.unlink()
    said = problem(apis["all"].post(f"/documents/{document}/ingest"), 404, "not_found")
    assert "not at hand" in said["message"] and "upload it again" in said["hint"]


def test_a_document_that_is_deleted_meanwhile_leaves_a_file_of_the_machine(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "service/uploads", 10, [".txt"])
    jobs = Jobs(tmp_path / "service", uploads, 100)
    own = tmp_path / "own.txt"
    own.write_text("One lamp.")
    kept = uploads.keep(io.BytesIO(b"Two lamps."), "kept.txt", "docs", {})
    uploads.settle(kept)
    place = uploads.path_of("docs", kept.document_id)
    assert place is not None
    for path, source in ((own, str(own)), (place, kept.source)):
        job = jobs.repeat(Upload("docs", source, document_id(source), path), "")
        jobs.delete("docs", job.document_id, source, "")
        assert jobs.get(job.id, "").state == "failed"
        assert path.exists(), "the deletion itself drops what was kept, in its turn"
        with pytest.raises(ValueError, match="did not come in"):
            uploads.discard(path)
    jobs.close()
