"""A process of the service that has a queue: python job_process.py DATA_DIR COMMAND...

add NAME TEXT        accepts an upload and kills itself with SIGKILL
work                 does jobs until none is left
die METHOD AT WHEN   the same, but kills itself before or after the AT-th call of a method
hold                 is the writer of collection "docs" until its standard input ends
"""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from word_app import WordApp

from ingest import pipeline
from rag import plugins
from rag.service.jobs import Jobs
from rag.service.uploads import Uploads
from rag.service.worker import Worker
from stores.faiss import FaissStore
from stores.sqlite import locked

data_dir = Path(sys.argv[1])
folder = data_dir / "service"
uploads = Uploads(folder / "uploads", 10, plugins.names("reader"))


class LoggedApp(WordApp):
    """Writes down when it began and ended an ingest."""

    def ingest(self, *arguments: Any, **named: Any) -> Any:
        self._log("+")
        try:
            return super().ingest(*arguments, **named)
        finally:
            self._log("-")

    def _log(self, what: str) -> None:
        with (data_dir / "log").open("a") as log:
            log.write(f"{self.settings.collection} {what} {os.getpid()}\n")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def deadly(owner: Any, method: str, at: int, when: str) -> None:
    whole, calls = getattr(owner, method), []

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == at and when == "before":
            die()
        result = whole(*arguments, **named)
        if len(calls) == at:
            die()
        return result

    setattr(owner, method, call)


def work() -> None:
    pipeline._WINDOW = 4  # a document spans several windows
    jobs = Jobs(folder, uploads, 100)
    worker = Worker(folder, jobs, uploads, lambda name: LoggedApp(data_dir, name), print)
    worker.start()
    deadline = time.monotonic() + 60
    while jobs.due():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert worker.stop(10)
    jobs.close()


def main() -> None:
    command, *rest = sys.argv[2:]
    if command == "add":
        name, text = rest
        upload = uploads.keep(io.BytesIO(text.encode()), name, "docs", {"tenant": "acme"})
        print(Jobs(folder, uploads, 100).add(upload, "acme", {"tenant": "acme"}).id, flush=True)
        die()
    elif command == "die":
        method, at, when = rest
        owner = {"upsert": FaissStore, "settle": Uploads, "done": Jobs}[method]
        deadly(owner, method, int(at), when)
        work()
    elif command == "work":
        work()
    elif command == "hold":
        with locked(data_dir / "faiss/docs"):
            print("holds it", flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main()
