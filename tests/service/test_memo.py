"""What many ask for at once is computed by one, in a process and across processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from redis_server import RedisServer, redis_server

from rag.service.cache import cache_key, made
from rag.service.memo import Found, Memo
from rag.settings import CacheSettings

KEY = cache_key("answer", question="why?")


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@asynccontextmanager
async def memo_over(url: str = "", wait_s: float = 10.0) -> AsyncIterator[Memo]:
    cache = made(CacheSettings(url=url))
    try:
        yield Memo(cache, wait_s)
    finally:
        await cache.aclose()


class Work:
    """Gives its value when it is let go. Knows how often it was begun, and how many at a time."""

    def __init__(self, value: bytes = b"an answer", keep: bool = True, failures: int = 0) -> None:
        self.value, self.keep, self.failures = value, keep, failures
        self.begun = self.cancelled = self.running = self.most = 0
        self.go = asyncio.Event()

    async def __call__(self) -> tuple[bytes, bool]:
        self.begun += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go.wait()
            await asyncio.sleep(0)
            if self.begun <= self.failures:
                raise ValueError(f"failure {self.begun}")
            return self.value, self.keep
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


async def asking(memo: Memo, work: Work, callers: int) -> list[asyncio.Task[Found]]:
    """Callers who all wait for the work that one of them began."""
    tasks = [asyncio.create_task(memo.get(KEY, work)) for _ in range(callers)]
    await until(lambda: work.begun > 0)
    for _ in range(10):
        await asyncio.sleep(0)
    return tasks


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.002)


async def test_fifty_callers_compute_once() -> None:
    async with memo_over() as memo:
        work = Work()
        tasks = await asking(memo, work, 50)
        work.go.set()
        found = await asyncio.gather(*tasks)
        assert work.begun == 1
        assert {f.value for f in found} == {b"an answer"}
        assert [f.hit for f in found].count(False) == 1
        assert await memo.get(KEY, work) == Found(b"an answer", hit=True)
        assert work.begun == 1
        assert (await memo.get(cache_key("answer", question="who?"), work)).hit is False
        assert work.begun == 2


async def test_the_parts_serve_answers_that_are_streamed() -> None:
    async with memo_over() as memo:
        assert await memo.lookup(KEY) == (None, False)
        assert await memo.store(KEY, b"an answer") is False
        assert await memo.lookup(KEY) == (b"an answer", False)


async def test_what_is_not_to_be_kept_goes_to_those_who_wait_alone() -> None:
    async with memo_over() as memo:
        work = Work(keep=False)
        tasks = await asking(memo, work, 5)
        work.go.set()
        assert {f.value for f in await asyncio.gather(*tasks)} == {b"an answer"}
        assert work.begun == 1
        assert await memo.lookup(KEY) == (None, False)
        await memo.get(KEY, work)
        assert work.begun == 2


async def test_the_others_get_the_answer_when_the_one_who_began_leaves() -> None:
    async with memo_over() as memo:
        work = Work()
        tasks = await asking(memo, work, 5)
        for task in tasks[:4]:
            task.cancel()
        await asyncio.wait(tasks[:4])
        assert all(task.cancelled() for task in tasks[:4])
        work.go.set()
        assert (await tasks[4]).value == b"an answer"
        assert (work.begun, work.cancelled) == (1, 0)


async def test_when_all_leave_the_work_stops_and_the_next_begins_anew() -> None:
    async with memo_over() as memo:
        work = Work()
        tasks = await asking(memo, work, 3)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        work.go.set()
        assert await memo.get(KEY, work) == Found(b"an answer")
        assert (work.begun, work.cancelled) == (2, 1)


async def test_after_a_failure_those_who_waited_try_one_after_the_other() -> None:
    async with memo_over() as memo:
        work = Work(failures=3)
        tasks = await asking(memo, work, 10)
        work.go.set()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        failed = [str(e) for e in ended if isinstance(e, ValueError)]
        assert sorted(failed) == ["failure 1", "failure 2", "failure 3"]
        assert [f.value for f in ended if isinstance(f, Found)] == [b"an answer"] * 7
        assert (work.begun, work.most) == (4, 1)


async def test_work_that_cancels_itself_does_not_cancel_those_who_wait() -> None:
    class Stopped(Work):
        async def __call__(self) -> tuple[bytes, bool]:
            value = await super().__call__()
            if self.begun == 1:
                raise asyncio.CancelledError
            return value

    async with memo_over() as memo:
        work = Stopped()
        tasks = await asking(memo, work, 3)
        work.go.set()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [f.value for f in ended if isinstance(f, Found)] == [b"an answer"] * 2


async def test_processes_that_share_redis_compute_once(server: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        memos = [await stack.enter_async_context(memo_over(server.url)) for _ in range(3)]
        work = Work()
        tasks = [task for memo in memos for task in await asking(memo, work, 10)]
        work.go.set()
        found = await asyncio.gather(*tasks)
        assert {f.value for f in found} == {b"an answer"}
        assert work.begun == 1
        assert [f.hit for f in found].count(False) == 1
        assert not any(f.degraded for f in found)


async def test_another_process_goes_on_when_the_one_that_computes_fails_or_leaves(
    server: RedisServer,
) -> None:
    async with memo_over(server.url) as one, memo_over(server.url) as two:
        left = Work()
        [task] = await asking(one, left, 1)
        work = Work()
        work.go.set()
        other = asyncio.create_task(two.get(KEY, work))
        await asyncio.sleep(0)
        task.cancel()
        assert await asyncio.wait_for(other, 5) == Found(b"an answer")


async def test_a_process_that_died_with_its_claim_is_not_waited_for_long(
    server: RedisServer,
) -> None:
    dead = made(CacheSettings(url=server.url))
    assert await dead.claim(KEY, "of the dead", 600)
    async with memo_over(server.url, wait_s=0.3) as memo:
        work = Work()
        work.go.set()
        started = time.monotonic()
        assert await asyncio.wait_for(memo.get(KEY, work), 10) == Found(b"an answer")
        assert 0.3 <= time.monotonic() - started < 3
        assert not await dead.claim(KEY, "another", 600)  # it is still that of the dead
    await dead.aclose()


async def test_without_redis_a_process_computes_once_and_says_so(server: RedisServer) -> None:
    async with memo_over(server.url) as memo:
        await memo.store(KEY, b"kept")
        server.kill()
        for _ in range(2):
            work = Work()
            tasks = await asking(memo, work, 20)
            work.go.set()
            found = await asyncio.gather(*tasks)
            assert work.begun == 1
            assert {(f.value, f.degraded) for f in found} == {(b"an answer", True)}
        assert await memo.lookup(KEY) == (None, True)
        assert await memo.store(KEY, b"not kept") is True
        server.start()
        again = Work(b"a new answer")
        again.go.set()
        async with asyncio.timeout(10):
            while (found := [await memo.get(KEY, again)])[0].degraded:
                await asyncio.sleep(0.01)
        assert await memo.get(KEY, again) == Found(b"a new answer", hit=True)


async def test_redis_that_dies_while_an_answer_is_computed_fails_nobody(
    server: RedisServer,
) -> None:
    async with memo_over(server.url) as memo:
        work = Work()
        tasks = await asking(memo, work, 10)
        server.kill()
        work.go.set()
        found = await asyncio.gather(*tasks)
        assert {(f.value, f.degraded) for f in found} == {(b"an answer", True)}
        assert work.begun == 1
