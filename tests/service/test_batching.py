import asyncio
import threading
from collections.abc import Sequence

import pytest

from rag.service.batching import Batcher


class Gate:
    """A function that says what it was called with, and returns when it is let."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.leave = threading.Semaphore(0)

    def __call__(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.calls.append(list(items))
        self.entered.release()
        assert self.leave.acquire(timeout=10)
        return [ValueError(str(n)) if n < 0 else n * n for n in items]

    async def begun(self) -> None:
        await asyncio.to_thread(self.entered.acquire, True, 10)


async def test_what_comes_while_a_call_runs_is_made_in_one_call() -> None:
    gate = Gate()
    idle: list[int] = []
    batcher: Batcher[int, int] = Batcher(gate, most=3, on_idle=lambda: idle.append(len(gate.calls)))
    first = asyncio.create_task(batcher(1))
    await gate.begun()
    rest = [asyncio.create_task(batcher(n)) for n in range(2, 7)]
    await asyncio.sleep(0)
    assert batcher.depth == 5
    gate.leave.release(3)
    assert [await first, *await asyncio.gather(*rest)] == [1, 4, 9, 16, 25, 36]
    assert gate.calls == [[1], [2, 3, 4], [5, 6]]
    assert idle == [3], "it says once that nobody waits any more"


async def test_an_item_that_fails_fails_alone() -> None:
    gate = Gate()
    batcher: Batcher[int, int] = Batcher(gate)
    first = asyncio.create_task(batcher(0))
    await gate.begun()
    rest = [asyncio.create_task(batcher(n)) for n in (-1, 5)]
    await asyncio.sleep(0)
    gate.leave.release(2)
    assert await first == 0
    with pytest.raises(ValueError, match="-1"):
        await rest[0]
    assert await rest[1] == 25


async def test_a_call_that_fails_fails_its_items_and_no_later_ones() -> None:
    failing = [True]

    def call(items: Sequence[int]) -> Sequence[int]:
        if failing.pop(0) if failing else False:
            raise OSError("down")
        return list(items)

    batcher: Batcher[int, int] = Batcher(call)
    with pytest.raises(OSError, match="down"):
        await batcher(1)
    assert await batcher(2) == 2


async def test_who_goes_away_before_the_call_is_left_out_of_it() -> None:
    gate = Gate()
    batcher: Batcher[int, int] = Batcher(gate)
    first = asyncio.create_task(batcher(1))
    await gate.begun()
    leaving, staying = asyncio.create_task(batcher(2)), asyncio.create_task(batcher(3))
    await asyncio.sleep(0)
    leaving.cancel()
    gate.leave.release(2)
    assert (await first, await staying) == (1, 9)
    assert gate.calls == [[1], [3]]
