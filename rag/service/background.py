"""A thread that works on a queue on the disk until it is told to stop."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable

from rag.errors import RagError

_POLL_S = 1.0  # how soon work is seen that another process left, or that is due by now


class Background(ABC):
    """Does one piece of work after another; `wake` tells it that there is some."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        """`say` gets a line on what fails."""
        self._name = name
        self._say = say
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.wake = self._wake.set

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Interrupt what runs, at its next step; whether that came about within so many seconds.

        A thread that goes on ends with the process.
        """
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():  # it may never have begun
            self._thread.join(timeout)
        return not self._thread.is_alive()

    @abstractmethod
    def work_once(self) -> bool:
        """Do one piece; whether there was one. Raises RagError or OSError for the queue itself."""

    def _work(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            worked = False
            try:
                worked = self.work_once()
            except (RagError, OSError) as error:  # what is in the queue stays
                self._say(f"the {self._name} wait: {error}")
            if not worked:
                self._wake.wait(_POLL_S)
