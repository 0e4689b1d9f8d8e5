"""How often who may ask, counted in memory and in a real Redis that dies and comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from redis_server import RedisServer, redis_server

from rag.errors import ConfigError, TooManyRequests
from rag.service import limits
from rag.service.callers import ANYONE
from rag.service.limits import Allowance, RateLimits

DAY = 86_400


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """Where it is counted: "" is in memory."""
    return request.getfixturevalue("redis").url if request.param == "redis" else ""


@pytest.fixture
async def made() -> Any:
    """Makes limits; their connections are closed at the end."""
    opened: list[RateLimits] = []

    def make(*given: Any, **named: Any) -> RateLimits:
        opened.append(RateLimits(*given, **named))
        return opened[-1]

    yield make
    for one in opened:
        await one.close()


Make = Callable[..., RateLimits]


def address() -> str:
    """One that nobody counted before."""
    return f"2001:db8:{uuid4().hex[:4]}:{uuid4().hex[:4]}::1"


async def test_a_key_may_ask_so_often_and_no_more(url: str, made: Make) -> None:
    limited = made("3/day", "", url)
    key, other = uuid4().hex, uuid4().hex
    left = [await limited.hit(key, address()) for _ in range(3)]
    assert [(one.limit, one.remaining) for one in left if one] == [(3, 2), (3, 1), (3, 0)]
    for _ in range(2):
        with pytest.raises(TooManyRequests, match="this key may ask 3 times") as raised:
            await limited.hit(key, address())
        assert 1 <= raised.value.retry_after <= DAY
        assert raised.value.retry_after == int(raised.value.retry_after)
    assert await limited.hit(other, address())
    assert not limited.degraded


async def test_an_address_counts_whatever_its_keys(url: str, made: Make) -> None:
    limited = made("100/day", "3/day", url)
    here = address()
    for _ in range(3):
        await limited.hit(uuid4().hex, here)
    with pytest.raises(TooManyRequests, match="this address may ask 3 times"):
        await limited.hit(uuid4().hex, here)
    assert await limited.hit(uuid4().hex, address())


async def test_without_a_key_only_the_address_counts(url: str, made: Make) -> None:
    limited = made("1/day", "3/day", url)
    here = address()
    for _ in range(3):
        assert await limited.hit(ANYONE.id, here)
    with pytest.raises(TooManyRequests, match="this address"):
        await limited.hit(ANYONE.id, here)
    assert await limited.hit(ANYONE.id, address())
    assert await made("1/day", "", url).hit(ANYONE.id, here) is None


async def test_a_key_over_its_limit_leaves_others_at_its_address_alone(
    url: str, made: Make
) -> None:
    limited = made("1/day", "3/day", url)
    noisy, here = uuid4().hex, address()
    await limited.hit(noisy, here)
    for _ in range(5):
        with pytest.raises(TooManyRequests, match="this key"):
            await limited.hit(noisy, here)
    assert await limited.hit(uuid4().hex, here)


async def test_the_limit_that_is_nearest_to_its_end_is_told(url: str, made: Make) -> None:
    limited = made("50/day; 3/hour", "100/day", url)
    here = address()
    left = await limited.hit(uuid4().hex, here)
    assert left is not None
    assert (left.limit, left.remaining) == (3, 2)
    assert 1 <= left.reset_s <= 3600
    assert await made("", "", url).hit("k", here) is None


async def test_a_window_ends_when_it_was_said_to(url: str, made: Make) -> None:
    limited, key = made("2/2 second", "", url), uuid4().hex
    while not 1.1 < time.time() % 2 < 1.5:  # so that it ends well before 2 s are over
        await asyncio.sleep(0.01)
    refused = await until_refused(limited, key)
    assert refused.retry_after == 1
    started = time.monotonic()
    while True:
        try:
            assert await limited.hit(key, "127.0.0.1")
            break
        except TooManyRequests:
            assert time.monotonic() - started < 1.2
            await asyncio.sleep(0.01)


async def until_refused(limited: RateLimits, key: str) -> TooManyRequests:
    for _ in range(1000):
        try:
            await limited.hit(key, "127.0.0.1")
        except TooManyRequests as error:
            return error
    raise AssertionError("never refused")


async def test_requests_at_a_time_are_counted_one_by_one(url: str, made: Make) -> None:
    limited, key = made("20/day", "", url, 10.0), uuid4().hex
    asked = (limited.hit(key, "127.0.0.1") for _ in range(100))
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(one, Allowance) for one in found) == 20
    assert sum(isinstance(one, TooManyRequests) for one in found) == 80
    assert not limited.degraded


@pytest.mark.parametrize(
    ("one", "same", "another"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1"),
        ("10.1.2.3", "::ffff:10.1.2.3", "10.1.2.4"),
        ("what a client made up", "something else", "10.9.9.9"),
        ("", "\ud800", "10.9.9.8"),
    ],
)
async def test_what_counts_as_one_address(one: str, same: str, another: str, made: Make) -> None:
    limited = made("", "1/day")
    await limited.hit("k", one)
    with pytest.raises(TooManyRequests):
        await limited.hit("k", same)
    assert await limited.hit("k", another)


async def test_processes_count_together_in_redis_and_alone_in_memory(
    redis: RedisServer, made: Make
) -> None:
    key = uuid4().hex
    one, two = made("2/day", "", redis.url), made("2/day", "", redis.url)
    await one.hit(key, "127.0.0.1")
    await two.hit(key, "127.0.0.1")
    for limited in (one, two):
        with pytest.raises(TooManyRequests):
            await limited.hit(key, "127.0.0.1")
    one, two = made("1/day", ""), made("1/day", "")
    await one.hit(key, "127.0.0.1")
    assert await two.hit(key, "127.0.0.1")


# --- Redis down


async def test_limits_hold_in_each_process_while_redis_is_down(
    monkeypatch: pytest.MonkeyPatch, made: Make
) -> None:
    monkeypatch.setattr(limits, "REDIS_AGAIN_S", 0.05)
    with redis_server() as server:
        one, two = made("3/day", "", server.url), made("3/day", "", server.url)
        await one.hit("k", "127.0.0.1")
        server.kill()
        for limited in (one, two):
            for _ in range(3):
                assert await limited.hit("k", "127.0.0.1")
            with pytest.raises(TooManyRequests):
                await limited.hit("k", "127.0.0.1")
            assert limited.degraded
        server.start()
        for limited in (one, two):
            await until_whole(limited)
        key = uuid4().hex
        for limited in (one, two, one):
            await limited.hit(key, "127.0.0.1")
        with pytest.raises(TooManyRequests):
            await two.hit(key, "127.0.0.1")


async def until_whole(limited: RateLimits) -> None:
    end = time.monotonic() + 10
    while limited.degraded:
        assert time.monotonic() < end
        await limited.hit(uuid4().hex, "127.0.0.1")
        await asyncio.sleep(0.01)


async def test_a_redis_that_hangs_holds_up_nobody_for_long(made: Make) -> None:
    with redis_server() as server:
        limited = made("1000/day", "1000/day", server.url, 0.2)
        await limited.hit("k", "127.0.0.1")
        server.pause()
        started = time.perf_counter()
        await asyncio.gather(*(limited.hit("k", "127.0.0.1") for _ in range(50)))
        assert time.perf_counter() - started < 1
        assert limited.degraded
        started = time.perf_counter()
        for _ in range(50):
            await limited.hit("k", "127.0.0.1")
        assert time.perf_counter() - started < 0.2


async def test_while_redis_hangs_one_request_tries_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, made: Make
) -> None:
    with redis_server() as server:
        limited = made("1000/day", "", server.url, 0.3)
        monkeypatch.setattr(limits, "REDIS_AGAIN_S", 0.0)
        server.pause()
        await limited.hit("k", "127.0.0.1")
        assert limited.degraded
        monkeypatch.setattr(limits, "REDIS_AGAIN_S", 60.0)
        times = await asyncio.gather(*(timed(limited) for _ in range(20)))
        assert sum(seconds > 0.2 for seconds in times) == 1


async def timed(limited: RateLimits) -> float:
    started = time.perf_counter()
    await limited.hit("k", "127.0.0.1")
    return time.perf_counter() - started


async def test_redis_may_be_down_from_the_start(made: Make) -> None:
    limited = made("1/day", "", "redis://127.0.0.1:1/0")
    await limited.hit("k", "127.0.0.1")
    assert limited.degraded
    with pytest.raises(TooManyRequests):
        await limited.hit("k", "127.0.0.1")


# --- what it costs, and what is refused


async def test_counting_in_memory_is_cheap_with_many_addresses(made: Make) -> None:
    limited = made("1000000/day", "1000000/day")
    for number in range(20_000):
        await limited.hit(f"k{number}", f"10.0.{number // 256}.{number % 256}")
    best = 1.0
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(100):
            await limited.hit("k1", "10.0.0.1")
        best = min(best, (time.perf_counter() - started) / 100)
    assert best < 50e-6


def test_headers_say_what_is_left() -> None:
    assert Allowance(600, 599, 42).headers() == {
        "RateLimit-Limit": "600",
        "RateLimit-Remaining": "599",
        "RateLimit-Reset": "42",
        "X-RateLimit-Limit": "600",
        "X-RateLimit-Remaining": "599",
        "X-RateLimit-Reset": "42",
    }


@pytest.mark.parametrize("wrong", ["600", "x", ";", "600/fortnight", "-1/day", "0/day", "1/day;"])
def test_a_limit_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"service\.rate_limit"):
        RateLimits(wrong, "")
    with pytest.raises(ConfigError, match=r"service\.address_limit"):
        RateLimits("", wrong)


@pytest.mark.parametrize("wrong", ["http://u:secret@host", "localhost:6379", "redis://host:secret"])
def test_an_address_of_redis_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"cache\.url") as raised:
        RateLimits("", "", wrong)
    assert "secret" not in str(raised.value)
