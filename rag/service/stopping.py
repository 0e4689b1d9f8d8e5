"""How the application learns that its process is told to end."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stopping(tell: Callable[[], None]) -> Iterator[None]:
    """Calls `tell` in this event loop when a signal ends the process.

    Uvicorn tells an application only once all its requests are over, or cut off. So this stands
    before uvicorn's own handlers, which it calls.
    """
    if threading.current_thread() is not threading.main_thread():  # no signals come here
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(tell)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in _SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
