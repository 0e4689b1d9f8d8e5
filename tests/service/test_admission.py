import asyncio
from contextlib import AsyncExitStack

import pytest

from rag.errors import Overloaded
from rag.service.admission import Admission


async def test_beyond_the_queue_a_request_is_refused_at_once_and_told_when_to_come_again() -> None:
    admission = Admission(concurrency=1, queue=1, deadline_s=10)

    async def work() -> str:
        async with admission.admitted():
            return "done"

    async with AsyncExitStack() as first:
        await first.enter_async_context(admission.admitted())
        second = asyncio.create_task(work())
        await asyncio.sleep(0)
        assert (admission.working, admission.waiting) == (1, 1)
        with pytest.raises(Overloaded) as refused:
            await work()
        assert refused.value.retry_after > 0
    assert await second == "done"
    assert (admission.working, admission.waiting) == (0, 0)
    assert await work() == "done"


async def test_who_gives_up_waiting_leaves_the_queue() -> None:
    admission = Admission(concurrency=1, queue=1, deadline_s=10)

    async def work() -> None:
        async with admission.admitted():
            pass

    async with admission.admitted():
        waiting = asyncio.create_task(work())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert admission.waiting == 0
    await work()


async def test_what_takes_longer_than_the_deadline_is_cancelled() -> None:
    admission = Admission(concurrency=1, queue=1, deadline_s=0.01)
    with pytest.raises(Overloaded, match=r"0\.01 s"):
        async with admission.within_deadline(), admission.admitted():
            await asyncio.Event().wait()
    assert admission.working == 0
