"""The thread that ingests and deletes what `rag.service.jobs` has in its queue.

Who works on a collection holds a lock of the operating system, which frees it when the process
dies: a job that is "running" in a collection that nobody holds was left by a dead process, and is
begun again. So no clock decides, and no two processes are ever at one job or one collection.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from rag.errors import ModelUnavailable, RagError, StoreUnavailable, UnknownCollection
from rag.service import originals
from rag.service.background import Background
from rag.service.jobs import Jobs, Task
from rag.service.locks import claimed
from rag.service.uploads import Uploads

if TYPE_CHECKING:
    from ingest.pipeline import Progress
    from rag.app import App

_LONGEST_WAIT_S = 60.0
_ATTEMPTS = 1_500  # one a minute, for a day
_SWEEP_S = 3_600


class _Interrupted(Exception):
    """Raised out of an ingest that is to go no further."""


class Worker(Background):
    """Does one job after another. One that is interrupted goes back into the queue."""

    def __init__(
        self,
        folder: Path,
        jobs: Jobs,
        uploads: Uploads,
        app_for: Callable[[str], App],
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`app_for` gives the application for a collection; `say` gets a line on what fails."""
        super().__init__("jobs", say)
        self._locks = folder / "locks"
        self._jobs = jobs
        self._uploads = uploads
        self._app_for = app_for
        self._id = uuid4().hex
        self._sweep_at = 0.0
        jobs.on_added = self.wake

    def work_once(self) -> bool:
        """Do one job; whether there was one."""
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + _SWEEP_S
            self._jobs.sweep()
        for collection in self._jobs.due():
            with claimed(self._locks / f"{collection}.lock") as ours:
                task = self._jobs.take(collection, self._id) if ours else None
                if task is not None:
                    self._do(task)
                    return True
        return False

    def _do(self, task: Task) -> None:
        try:
            if task.kind == "delete":
                self._delete(task)
            else:
                self._ingest(task)
        except _Interrupted:
            self._jobs.again(task, "", 0)
        except (StoreUnavailable, ModelUnavailable) as error:
            if task.attempts < _ATTEMPTS:  # it was acknowledged, and will be well some day
                wait_s = min(2.0 ** min(task.attempts - 1, 10), _LONGEST_WAIT_S)
                self._jobs.again(task, str(error), wait_s)
            else:
                self._jobs.fail(task, str(error))
        except RagError as error:
            self._jobs.fail(task, str(error))
        except Exception as error:  # a bug: the queue goes on
            self._say(f"job {task.id}: unexpected {type(error).__name__} ({error})")
            self._jobs.fail(task, f"unexpected {type(error).__name__}; see the service's log")

    def _ingest(self, task: Task) -> None:
        upload = task.upload
        path = self._uploads.file_of(upload)
        if path is None:
            self._jobs.fail(task, "the file is gone; upload it again")
            return

        def progress(now: Progress) -> None:
            go_on = self._jobs.note(task, now.files, now.chunks)
            if self._stopping.is_set() or not go_on:
                raise _Interrupted

        app = self._app_for(upload.collection)
        again, metadata = task.metadata is None, task.metadata
        if metadata is None:
            with app.store() as store:
                metadata = originals.given(store, upload, path, app.settings.ingest)
        report = app.ingest(
            [path], metadata=metadata, sources={path: upload.source}, progress=progress
        )
        if report.skipped:
            self._jobs.fail(task, report.skipped[0].reason)
            return
        if not again:
            self._uploads.settle(upload)
        self._jobs.done(task, report.to_json())

    def _delete(self, task: Task) -> None:
        upload = task.upload
        with suppress(UnknownCollection), self._app_for(upload.collection).store() as store:
            store.delete(document_ids=[upload.document_id])
        self._uploads.delete(upload.collection, upload.document_id)
        self._jobs.done(task, None)
