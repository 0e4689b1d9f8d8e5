"""An answer in steps: nothing is lost, and leaving it ends it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import closing

import pytest

from rag.errors import InputError
from ui.frames import frames


async def numbers(count: int) -> AsyncGenerator[int]:
    for n in range(count):
        yield n


def test_all_comes_in_order() -> None:
    steps = list(frames(numbers(1000), 1.0))
    assert [n for step in steps for n in step] == list(range(1000))


def test_steps_go_on_while_nothing_comes() -> None:
    go_on = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def slow() -> AsyncGenerator[str]:
        loops.append(asyncio.get_running_loop())
        yield "first"
        await go_on.wait()
        yield "second"

    steps = frames(slow(), 0.01)
    assert next(steps) == ["first"]
    assert next(steps) == next(steps) == []
    loops[0].call_soon_threadsafe(go_on.set)
    assert ["second"] in list(steps)


def test_leaving_it_closes_the_stream_wherever_it_waits() -> None:
    closed = threading.Event()

    async def endless() -> AsyncGenerator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    with closing(frames(endless(), 0.01)) as steps:
        assert next(steps) == [1]
    assert closed.wait(10)


def test_what_it_raises_is_raised_after_what_came() -> None:
    async def failing() -> AsyncGenerator[int]:
        yield 1
        raise InputError("no", "yes")

    came = []
    with pytest.raises(InputError, match="no"):
        for step in frames(failing(), 1.0):
            came += step
    assert came == [1]


def test_what_comes_is_not_held_back() -> None:
    async def one() -> AsyncGenerator[float]:
        yield time.monotonic()
        await asyncio.Event().wait()

    with closing(frames(one(), 10.0)) as steps:
        (sent,) = next(steps)
        assert time.monotonic() - sent < 1
