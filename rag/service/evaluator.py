"""The thread that runs what `rag.service.evaluations` has in its queue.

Of all processes that share the folder one at a time, so that what is timed is not another one. Who
runs it holds a lock of the operating system: an evaluation that is "running" while nobody holds it
was left by a dead process, and has failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rag.errors import RagError
from rag.service.background import Background
from rag.service.datasets import Datasets
from rag.service.evaluations import Evaluation, Evaluations, Stage
from rag.service.locks import claimed

if TYPE_CHECKING:
    from rag.app import App

_NOTE_S = 0.5  # progress is written to the disk so often


class _Interrupted(Exception):
    """Raised out of an evaluation that is to go no further."""


class Evaluator(Background):
    """Runs one evaluation after another. One that is interrupted has failed; what waits stays."""

    def __init__(
        self,
        folder: Path,
        evaluations: Evaluations,
        datasets: Datasets,
        app: App,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`say` gets a line on what fails unexpectedly."""
        super().__init__("evaluations", say)
        self._lock = folder / "evaluating.lock"
        self._evaluations = evaluations
        self._datasets = datasets
        self._app = app
        evaluations.on_added = self.wake

    def work_once(self) -> bool:
        """Run one evaluation; whether there was one."""
        if not self._evaluations.due():
            return False
        with claimed(self._lock) as ours:
            evaluation = self._evaluations.take() if ours else None
            if evaluation is not None:
                self._run(evaluation)
        return evaluation is not None

    def _run(self, evaluation: Evaluation) -> None:
        from rag.service.measuring import measured

        try:
            folder = self._datasets.folder_of(evaluation.dataset) if evaluation.dataset else None
            outcome = measured(self._app, evaluation.wanted, folder, self._noting(evaluation))
            self._evaluations.finish(evaluation.id, outcome)
        except _Interrupted:  # if it was deleted, there is nothing left to fail
            self._evaluations.fail(evaluation.id, "the service was stopped; run it again")
        except RagError as error:
            self._evaluations.fail(evaluation.id, str(error))
        except Exception as error:  # a bug: the queue goes on
            self._say(f"evaluation {evaluation.id}: unexpected {type(error).__name__} ({error})")
            why = f"unexpected {type(error).__name__}; see the service's log"
            self._evaluations.fail(evaluation.id, why)

    def _noting(self, evaluation: Evaluation) -> Callable[[Stage, int, int], None]:
        """What writes down how far the evaluation is, and ends it if it is to go no further."""
        last, due = "", 0.0

        def note(stage: Stage, done: int, total: int) -> None:
            nonlocal last, due
            if self._stopping.is_set():
                raise _Interrupted
            if stage != last or time.monotonic() >= due:
                last, due = stage, time.monotonic() + _NOTE_S
                if not self._evaluations.note(evaluation.id, stage, done, total):
                    raise _Interrupted

        return note
