"""Uploads become documents, whatever happens to the processes that see to it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from word_app import WordApp

from ingest import pipeline
from rag import plugins
from rag.errors import NotFound, Overloaded, UnknownCollection
from rag.service import background
from rag.service import jobs as jobs_module
from rag.service import worker as worker_module
from rag.service.jobs import Job, Jobs
from rag.service.uploads import Upload, Uploads
from rag.service.worker import Worker

PROGRAM = Path(__file__).with_name("job_process.py")
LONG = " ".join(f"word{n}." for n in range(300))
ACME = {"tenant": "acme"}


def spawn(tmp_path: Path, *command: str, **options: Any) -> subprocess.Popen[str]:
    support = Path(__file__).parents[1] / "support"
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(tmp_path), *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(support), *sys.path])},
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def run(tmp_path: Path, *command: str) -> tuple[int, str]:
    with spawn(tmp_path, *command) as process:
        out, _ = process.communicate(timeout=120)
    return process.returncode, out.strip()


def until(holds: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)
    return found


class Service:
    """A queue, and workers on it that end with the test."""

    def __init__(self, folder: Path, max_jobs: int = 100) -> None:
        self.folder = folder
        self.uploads = Uploads(folder / "service/uploads", 10, plugins.names("reader"))
        self.jobs = Jobs(folder / "service", self.uploads, max_jobs)
        self.app = WordApp(folder)
        self.said: list[str] = []
        self.workers: list[Worker] = []

    def start(self, app_for: Callable[[str], Any] | None = None) -> Worker:
        made = Worker(
            self.folder / "service",
            self.jobs,
            self.uploads,
            app_for or (lambda _: self.app),
            self.said.append,
        )
        made.start()
        self.workers.append(made)
        return made

    def keep(self, text: str | bytes, name: str = "a.txt", collection: str = "docs") -> Upload:
        data = text.encode() if isinstance(text, str) else text
        return self.uploads.keep(io.BytesIO(data), name, collection, ACME)

    def add(self, text: str | bytes, name: str = "a.txt", collection: str = "docs") -> Job:
        return self.jobs.add(self.keep(text, name, collection), "acme", ACME)

    def delete(self, job: Job) -> Job:
        return self.jobs.delete(job.collection, job.document_id, job.source, "acme")

    def get(self, job: Job) -> Job:
        return self.jobs.get(job.id, "acme")

    def ended(self, job: Job) -> Job:
        until(lambda: self.get(job).state in ("done", "failed"))
        return self.get(job)

    def text(self, name: str = "a.txt") -> str:
        """All that the store holds of a document; it must be there in one version."""
        source = f"upload/tenant=acme/{name}"
        with self.app.store() as store:
            chunks = [c for some, _ in store.scan() for c in some if c.source == source]
        assert len({chunk.version for chunk in chunks}) <= 1
        assert all(chunk.metadata["tenant"] == "acme" for chunk in chunks)
        return " ".join(c.text for c in sorted(chunks, key=lambda c: c.position))

    def file(self, job: Job) -> str | None:
        path = self.uploads.path_of(job.collection, job.document_id)
        return path and path.read_text("utf-8")

    def waiting_files(self) -> list[Path]:
        return list(self.folder.glob("service/uploads/*/new/*"))


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(pipeline, "_WINDOW", 4)
    monkeypatch.setattr(background, "_POLL_S", 0.05)
    monkeypatch.setattr(worker_module, "_LONGEST_WAIT_S", 0.1)
    made = Service(tmp_path)
    yield made
    made.app.gate.set()
    assert all(worker.stop(30) for worker in made.workers)
    made.jobs.close()


def test_an_upload_becomes_a_document(service: Service) -> None:
    service.start()
    added = service.add(LONG, "报告.txt")
    assert (added.state, added.stage, added.kind) == ("queued", "waiting", "ingest")
    done = service.ended(added)
    assert (done.state, done.stage, done.error, done.files) == ("done", "ended", "", 1)
    assert done.report is not None
    assert done.report["files"]["new"] == 1
    assert done.report["chunks"]["stored"] == done.chunks > 10
    assert done.added_at <= (done.started_at or 0) <= (done.ended_at or 0) <= time.time()
    assert service.text("报告.txt") == LONG
    assert service.file(done) == LONG
    assert service.waiting_files() == []
    with service.app.store() as store:
        (record,) = store.documents()
        assert record.id == done.document_id
        assert record.source == done.source == "upload/tenant=acme/报告.txt"
        assert record.title == "报告", "not the name under which it is kept"
    json.dumps(done.to_json())


def test_a_second_upload_of_the_name_replaces_the_first(service: Service) -> None:
    service.start()
    one, two = service.add("First text."), service.add("Second text.")
    assert service.ended(two).state == service.get(one).state == "done"
    assert service.text() == service.file(two) == "Second text."
    same = service.ended(service.add("Second text."))
    assert same.report is not None
    assert same.report["files"]["unchanged"] == 1
    assert service.waiting_files() == []


def test_what_cannot_be_read_leaves_the_older_version(service: Service) -> None:
    service.start()
    service.ended(service.add("First text."))
    failed = service.ended(service.add("Größe".encode("latin-1")))
    assert failed.state == "failed"
    assert failed.error.startswith("is not UTF-8 text")
    assert "iconv" in failed.error
    assert service.text() == service.file(failed) == "First text."
    until(lambda: service.waiting_files() == [])


def test_progress_is_told(service: Service) -> None:
    service.app.gate.clear()
    service.start()
    job = service.add(LONG)
    assert service.app.reached.wait(30)
    assert (service.get(job).state, service.get(job).stage) == ("running", "reading")
    service.app.gate.set()
    seen = set()

    def finished() -> bool:
        seen.add((service.get(job).stage, service.get(job).chunks))
        return service.get(job).state == "done"

    until(finished)
    assert len(seen) > 2, seen


KILLS = "upsert 1 before, upsert 4 after, settle 1 before, settle 1 after, done 1 after"


@pytest.mark.parametrize("command", KILLS.split(", "))
def test_kill_9_loses_and_doubles_nothing(service: Service, tmp_path: Path, command: str) -> None:
    worker = service.start()
    undisturbed = service.ended(service.add(LONG, "undisturbed.txt"))
    assert worker.stop(30)
    job = service.add(LONG)
    assert run(tmp_path, "die", *command.split())[0] == -signal.SIGKILL
    service.start()
    job = service.ended(job)
    assert (job.state, job.error) == ("done", "")
    assert service.text() == service.file(job) == LONG
    with service.app.store() as store:
        held = {record.source: record for record in store.documents()}
    assert len(held) == 2
    assert held[job.source].complete
    assert held[job.source].chunks == held[undisturbed.source].chunks
    assert service.waiting_files() == []


def test_an_upload_is_on_the_disk_once_it_is_acknowledged(service: Service, tmp_path: Path) -> None:
    status, job_id = run(tmp_path, "add", "a.txt", LONG)
    assert status == -signal.SIGKILL
    service.start()
    assert service.ended(service.jobs.get(job_id, "acme")).state == "done"
    assert service.text() == LONG


def test_a_file_that_kills_its_process_is_given_up(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "_DEATHS", 2)
    job = service.add(LONG)
    for _ in range(2):
        assert run(tmp_path, "die", "upsert", "1", "before")[0] == -signal.SIGKILL
    other = service.add("Other.", "b.txt")
    service.start()
    assert service.ended(other).state == "done"
    assert service.get(job).state == "failed"
    assert "its process died 2 times" in service.get(job).error
    assert service.waiting_files() == []


def test_several_processes_share_the_work_and_never_meet(service: Service, tmp_path: Path) -> None:
    collections = ("one", "two")
    added = [service.add(f"{LONG} {n}.", f"{n}.txt", collections[n % 2]) for n in range(12)]
    processes = [spawn(tmp_path, "work") for _ in range(3)]
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert [(service.get(j).state, service.get(j).attempts) for j in added] == [("done", 1)] * 12
    log = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    for collection in collections:
        turns = [(what, process) for name, what, process in log if name == collection]
        assert len(turns) == 12
        for began, ended in zip(turns[::2], turns[1::2], strict=True):
            assert began[0] == "+"
            assert ended == ("-", began[1]), "two at a time"


def test_another_writer_of_the_collection_is_waited_for(service: Service, tmp_path: Path) -> None:
    service.start()
    service.ended(service.add("First text."))
    with spawn(tmp_path, "hold", stdin=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        job = service.add("Second text.")
        waits = "being written by another process"
        until(lambda: service.get(job).attempts > 2 and waits in service.get(job).error)
        assert service.get(job).state in ("queued", "running")
        writer.communicate()
    assert service.ended(job).state == "done"
    assert service.get(job).error == ""
    assert service.text() == "Second text."


def test_a_store_that_is_down_is_waited_for_and_the_order_kept(service: Service) -> None:
    place = service.folder / "faiss"
    place.write_text("in the way")
    service.start()
    one = service.add("First text.")
    until(lambda: service.get(one).attempts > 1)
    two = service.add("Second text.")
    third = service.add("Third.", "b.txt")
    until(lambda: service.get(third).attempts > 1)
    assert service.get(two).attempts == 0, "it waits for the one before it"
    place.unlink()
    assert [service.ended(job).state for job in (one, two, third)] == ["done"] * 3
    assert service.text() == service.file(two) == "Second text."


def test_a_store_that_stays_down_fails_the_job_in_the_end(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_ATTEMPTS", 3)
    (service.folder / "faiss").write_text("in the way")
    service.start()
    failed = service.ended(service.add("Text."))
    assert (failed.state, failed.attempts) == ("failed", 3)
    assert "check that the folder" in failed.error


def test_a_bug_fails_its_job_and_no_other(service: Service) -> None:
    def app_for(name: str) -> Any:
        if name == "bad":
            raise ZeroDivisionError("by\nzero")
        return service.app

    service.start(app_for)
    bad, good = service.add("x", collection="bad"), service.add("y")
    assert service.ended(good).state == "done"
    assert service.ended(bad).error == "unexpected ZeroDivisionError; see the service's log"
    assert any(bad.id in line for line in service.said)


def test_a_stopped_worker_gives_its_job_back(service: Service) -> None:
    service.app.gate.clear()
    first = service.start()
    job = service.add(LONG)
    assert service.app.reached.wait(30)
    assert not first.stop(0.05), "it embeds"
    service.app.gate.set()
    assert first.stop(30)
    assert (service.get(job).state, service.get(job).error) == ("queued", "")
    assert 0 < service.get(job).chunks < 50
    service.start()
    assert service.ended(job).state == "done"
    assert service.text() == service.file(job) == LONG


def test_a_deletion_cancels_what_waits(service: Service) -> None:
    job = service.add("Text.")
    other = service.add("Other.", "b.txt")
    deletion = service.delete(job)
    failed = service.get(job)
    assert failed.state == "failed"
    assert failed.error == "the document was deleted before it was taken in; upload it again"
    assert len(service.waiting_files()) == 1
    service.start()
    assert service.ended(other).state == service.ended(deletion).state == "done"
    assert (service.text(), service.file(job)) == ("", None)
    assert service.text("b.txt") == "Other."


def test_a_deletion_wins_over_a_job_that_runs(service: Service) -> None:
    service.start()
    first = service.ended(service.add("First text."))
    service.app.gate.clear()
    service.app.reached.clear()
    job = service.add(LONG)
    assert service.app.reached.wait(30)
    waits = service.add("Third text.")
    deletion = service.delete(job)
    service.app.gate.set()
    assert service.ended(deletion).state == "done"
    assert [service.get(j).state for j in (first, job, waits)] == ["done", "failed", "failed"]
    assert (service.text(), service.file(job), service.waiting_files()) == ("", None, [])


def test_a_deletion_wins_over_a_job_whose_process_died(service: Service, tmp_path: Path) -> None:
    job = service.add(LONG)
    assert run(tmp_path, "die", "upsert", "5", "after")[0] == -signal.SIGKILL
    deletion = service.delete(job)
    service.start()
    assert service.ended(deletion).state == "done"
    assert service.get(job).state == "failed"
    assert (service.text(), service.waiting_files()) == ("", [])


def test_an_upload_after_a_deletion_stays(service: Service) -> None:
    one = service.add("First text.")
    deletion = service.delete(one)
    two = service.add("Second text.")
    service.start()
    assert service.ended(two).state == service.ended(deletion).state == "done"
    assert service.text() == service.file(two) == "Second text."


def test_deletions_go_before_uploads_that_wait(service: Service) -> None:
    service.app.gate.clear()
    service.start()
    running = service.add("Zero.", "0.txt")
    assert service.app.reached.wait(30)
    waiting = service.add("One.", "1.txt")
    deletion = service.delete(running)
    service.app.gate.set()
    service.ended(waiting)
    assert (service.ended(deletion).ended_at or 0) < (service.get(waiting).started_at or 0)


def test_a_document_of_no_collection_is_deleted_already(service: Service) -> None:
    service.start()
    assert service.ended(service.jobs.delete("docs", "0" * 16, "x", "acme")).state == "done"
    with pytest.raises(UnknownCollection):
        service.app.backend.open("docs")


def test_a_full_queue_refuses_and_keeps_no_file(tmp_path: Path) -> None:
    service = Service(tmp_path, max_jobs=2)
    jobs = [service.add("x", f"{n}.txt") for n in range(2)]
    with pytest.raises(Overloaded) as caught:
        service.add("x", "2.txt")
    assert caught.value.retry_after > 0
    with pytest.raises(Overloaded):
        service.jobs.check_room()
    with pytest.raises(Overloaded):
        service.delete(jobs[0])
    assert service.jobs.queued() == len(service.waiting_files()) == 2
    assert service.get(jobs[0]).state == "queued", "nothing of a refused deletion is done"
    service.jobs.close()


def test_the_queue_is_bounded_for_many_at_once(tmp_path: Path) -> None:
    service = Service(tmp_path, max_jobs=10)
    refused: list[int] = []

    def add(number: int) -> None:
        try:
            service.add("x", f"{number}.txt")
        except Overloaded:
            refused.append(number)

    threads = [threading.Thread(target=add, args=[n]) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (service.jobs.queued(), len(refused)) == (10, 20)
    service.jobs.close()


def test_another_tenants_job_is_not_there(service: Service) -> None:
    job = service.add("x")
    assert service.jobs.get(job.id, "acme") == service.jobs.get(job.id, "") == job
    for job_id, tenant in ((job.id, "globex"), ("nonsense", "acme"), ("", "")):
        with pytest.raises(NotFound, match="there is no such job"):
            service.jobs.get(job_id, tenant)


def test_old_jobs_are_forgotten_and_waiting_ones_are_not(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = service.start()
    done = service.ended(service.add("x"))
    worker.stop(30)
    waiting = service.add("y")
    service.jobs.sweep()
    assert service.get(done) == done
    monkeypatch.setattr(jobs_module, "_KEPT_S", 0)
    service.jobs.sweep()
    with pytest.raises(NotFound):
        service.get(done)
    assert service.get(waiting).state == "queued"
    assert service.file(done) == "x"
