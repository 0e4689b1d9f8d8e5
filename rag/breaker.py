"""A circuit breaker: what failed several times in a row is left alone for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from rag.errors import ModelUnavailable, RagError

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Closed, it lets all calls pass. After `failures` in a row it is open and lets none pass.

    `reset_s` seconds later it is half-open: one call may try, and closes it or opens it again. Only
    `error` is a failure, but none that is `unless`; what ends otherwise than by a result, such as
    a reader who leaves, is neither failure nor success. Safe between threads.
    """

    def __init__(
        self,
        failures: int = 5,
        reset_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        error: type[RagError] = ModelUnavailable,
        unless: tuple[type[RagError], ...] = (),
    ) -> None:
        """`clock` gives seconds."""
        self._most = failures
        self._reset = reset_s
        self._clock = clock
        self._error = error
        self._unless = unless
        self._lock = threading.Lock()
        self._failures = 0
        self._opened: float | None = None
        self._trying = False

    @property
    def state(self) -> State:
        """What it is now."""
        if self._opened is None:
            return "closed"
        return "half-open" if self._clock() - self._opened >= self._reset else "open"

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around a call. Raises the error at once where it may not pass."""
        trial = self._enter()
        try:
            yield
        except self._error as error:
            if not isinstance(error, self._unless):
                self.failed()
            raise
        else:
            self.worked()
        finally:
            if trial:
                self._trying = False

    def check(self) -> None:
        """Raise the error where a call could not pass."""
        if self.state == "open" or self._trying:
            raise self._refusal()

    def worked(self) -> None:
        """Take a call for a success although it goes on: what it tried is known."""
        with self._lock:
            self._failures, self._opened, self._trying = 0, None, False

    def failed(self) -> None:
        """Count a failure that happened outside `calling`."""
        with self._lock:
            self._failures += 1
            if self._trying or (self._opened is None and self._failures >= self._most):
                self._opened = self._clock()

    def _enter(self) -> bool:
        """Whether the call that may pass now is the one that tries."""
        with self._lock:
            if self._opened is None:
                return False
            if self._trying or self.state == "open":
                raise self._refusal()
            self._trying = True
            return True

    def _refusal(self) -> RagError:
        return self._error(
            f"it failed {self._most} times in a row and is left alone for {self._reset:g} s",
            "look at the server's log",
        )


def worst(states: Iterable[State]) -> State:
    """The state that lets the fewest calls pass; "closed" of none."""
    order: tuple[State, ...] = ("closed", "half-open", "open")
    return max(states, key=order.index, default="closed")
