"""A circuit breaker: what failed several times in a row is left alone for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast

import pybreaker

from rag.errors import ModelUnavailable

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Closed, it lets all calls pass. After `failures` in a row it is open and lets none pass.

    `reset_s` seconds later it is half-open: one call may try, and closes it or opens it again. Only
    ModelUnavailable counts as a failure. Safe between threads.
    """

    def __init__(self, failures: int = 5, reset_s: float = 30.0) -> None:
        self._failures = failures
        self._reset = reset_s
        self._trial = threading.Lock()
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=failures,
            reset_timeout=reset_s,
            exclude=[lambda error: not isinstance(error, ModelUnavailable)],
            throw_new_error_on_trip=False,
        )

    @property
    def state(self) -> State:
        """What it is now; open until a call tries, however long ago it opened."""
        return cast("State", self._breaker.current_state)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around a call. Raises ModelUnavailable at once where it may not pass."""
        trial = self.state != "closed"
        if trial and not self._trial.acquire(blocking=False):
            raise self._refusal()
        try:
            with self._breaker.calling():
                yield
        except pybreaker.CircuitBreakerError as error:
            raise self._refusal() from error
        finally:
            if trial:
                self._trial.release()

    def _refusal(self) -> ModelUnavailable:
        return ModelUnavailable(
            f"it failed {self._failures} times in a row and is left alone for {self._reset:g} s",
            "look at the server's log",
        )
