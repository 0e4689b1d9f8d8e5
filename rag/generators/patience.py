"""How long a server is waited for, and whether it is asked again."""

from __future__ import annotations

import asyncio

import httpx2
import tenacity

from rag.generators.concessions import concession
from rag.generators.wire import Reading
from rag.model_server import Refused, too_long

_END_S = 2.0  # how long the usage and the stream's end may take after the finish reason
_LONGEST_PAUSE_S = 30.0


class Clock:
    """When an answer is late: after `silence_s` without a token, or `whole_s` after its start."""

    def __init__(self, silence_s: float, whole_s: float) -> None:
        self._now = asyncio.get_running_loop().time
        self._silence = silence_s
        self._heard = self._now()
        self._end = self._heard + whole_s

    def heard(self) -> None:
        """A token came."""
        self._heard = self._now()

    def deadline(self, reading: Reading | None = None) -> float:
        """The time of the event loop at which the next token, or the end, is late."""
        silence = _END_S if reading and reading.finish else self._silence
        return min(self._heard + silence, self._end)

    def left(self) -> float:
        """Seconds to the deadline."""
        return self.deadline() - self._now()

    def over(self) -> bool:
        """Whether the time for the whole answer is up."""
        return self._now() >= self._end - 0.001  # timers go off up to a tick early


def retrying(retries: int, backoff_s: float, clock: Clock) -> tenacity.AsyncRetrying:
    """Tries again `retries` times, as long as the clock allows.

    It pauses `backoff_s` seconds, doubled each time, and a random part of `backoff_s`; longer where
    the server asks for it.
    """
    growing = tenacity.wait_exponential(backoff_s, _LONGEST_PAUSE_S) + tenacity.wait_random(
        0, backoff_s
    )

    def pause(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(growing(state), error.wait_s if isinstance(error, Refused) else 0.0)

    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(lambda error: _passing(error, clock)),
        wait=pause,
        stop=tenacity.stop_after_attempt(retries + 1),
        reraise=True,
    )


def _passing(error: BaseException, clock: Clock) -> bool:
    """Whether the same request may succeed in a moment."""
    if isinstance(error, Refused):
        lasting = too_long(error.status, error.said) or concession(error.status, error.said, ())
        return error.status >= 500 and not lasting and error.wait_s < clock.left()
    late = isinstance(error, (TimeoutError, httpx2.TimeoutException))
    connecting = isinstance(error, httpx2.ConnectTimeout)
    return connecting or (isinstance(error, (httpx2.TransportError, OSError)) and not late)
