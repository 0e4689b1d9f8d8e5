"""The caches, against a real Redis that dies, hangs, fills up and comes back."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from redis import Redis
from redis_server import RedisServer, redis_server

from rag.errors import ConfigError
from rag.service.cache import MAX_VALUE, Cache, CacheDown, CachedQueries, cache_key, made
from rag.settings import CacheSettings
from rag.types import Fingerprint

TIMEOUT_S = 0.25


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@asynccontextmanager
async def cache_at(url: str, **settings: Any) -> AsyncIterator[Cache]:
    cache = made(CacheSettings(**{"url": url, "timeout_s": TIMEOUT_S, **settings}))
    try:
        yield cache
    finally:
        await cache.aclose()


@pytest.fixture(params=["memory", "redis"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    url = ""
    if request.param == "redis":
        url = request.getfixturevalue("server").url
    async with cache_at(url) as made_cache:
        assert made_cache.name == request.param
        yield made_cache


async def works(cache: Cache) -> bool:
    """Whether it keeps a value now."""
    try:
        await cache.set("probe", b"probe")
        return await cache.get("probe") == b"probe"
    except CacheDown:
        return False


async def until_it_works(cache: Cache) -> None:
    async with asyncio.timeout(10):
        while not await works(cache):
            await asyncio.sleep(0.01)


# --- what both do


async def test_what_is_kept_comes_back_in_the_order_asked_for(cache: Cache) -> None:
    await cache.check()
    await cache.set("a", b"1")
    await cache.set_many({"b": b"", "c": bytes(range(256))})
    assert await cache.get("a") == b"1"
    assert await cache.get("nothing") is None
    assert await cache.get_many(["c", "x", "b", "a"]) == [bytes(range(256)), None, b"", b"1"]
    assert await cache.get_many([]) == []
    await cache.set_many({})
    await cache.set("a", b"2")
    assert await cache.get("a") == b"2"
    assert cache.state == "closed"


@pytest.mark.parametrize("redis", [True, False])
async def test_a_value_goes_when_its_time_is_over(redis: bool, server: RedisServer) -> None:
    async with cache_at(server.url if redis else "", ttl_s=1) as cache:
        await cache.set("a", b"1")
        assert await cache.get("a") == b"1"
        async with asyncio.timeout(5):
            while await cache.get("a") is not None:
                await asyncio.sleep(0.05)


async def test_a_value_over_the_bound_is_not_kept(cache: Cache) -> None:
    await cache.set_many({"fits": bytes(MAX_VALUE), "not": bytes(MAX_VALUE + 1)})
    await cache.set("not either", bytes(MAX_VALUE + 1))
    kept = await cache.get_many(["fits", "not", "not either"])
    assert [value and len(value) for value in kept] == [MAX_VALUE, None, None]


# --- memory


async def test_the_memory_of_a_process_is_bounded_and_what_was_used_last_stays() -> None:
    async with cache_at("", size_mb=4) as cache:
        await cache.set("often", b"used")
        gc.collect()
        tracemalloc.start()
        try:
            for n in range(6_000):  # 10 MB
                await cache.set(cache_key("answer", n=n), n.to_bytes(4) * 400)
                assert await cache.get("often") == b"used"
            gc.collect()
            taken, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert 3 * 2**20 < taken <= most < 4.2 * 2**20
        assert await cache.get(cache_key("answer", n=0)) is None
        assert await cache.get(cache_key("answer", n=5_999)) == (5_999).to_bytes(4) * 400


@pytest.mark.parametrize("url", ["", "redis://127.0.0.1:1/0"])
async def test_a_cache_that_is_off_keeps_nothing_and_is_never_down(url: str) -> None:
    async with cache_at(url, enabled=False) as cache:
        assert cache.name == "off"
        await cache.check()
        await cache.set("a", b"1")
        assert await cache.get("a") is None


# --- Redis


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://localhost:6379",
        "redis://localhost:port",
        "redis://:sec/ret@localhost:6379/0",
        "redis://localhost:6379/0?db=one",
        "redis://localhost:6379/0?no_such_option=1",
        "redis://[::1",
    ],
)
def test_a_wrong_address_is_an_error_that_does_not_tell_the_password(url: str) -> None:
    with pytest.raises(ConfigError, match=r"cache\.url") as caught:
        made(CacheSettings(url=url))
    assert "sec" not in f"{caught.value} {caught.value.__cause__}"


async def test_redis_that_dies_is_left_alone_and_used_again_when_it_is_back(
    server: RedisServer,
) -> None:
    server.kill()
    async with cache_at(server.url) as cache:
        with pytest.raises(CacheDown, match="Redis failed"):
            await cache.get("a")
        server.start()
        await until_it_works(cache)
        for _ in range(2):
            server.kill()
            with pytest.raises(CacheDown):
                await cache.get("a")
            assert cache.state == "open"
            with pytest.raises(CacheDown, match="left alone"):
                await cache.set("a", b"1")
            with pytest.raises(CacheDown, match="Redis failed"):
                await cache.check()  # asks all the same
            server.start()
            await cache.check()
            await until_it_works(cache)
            assert cache.state == "closed"


async def test_redis_that_hangs_costs_the_timeout_once(server: RedisServer) -> None:
    async with cache_at(server.url) as cache:
        await until_it_works(cache)
        server.pause()
        started = time.perf_counter()
        with pytest.raises(CacheDown, match=r"within 0\.25 s"):
            await asyncio.wait_for(cache.get("a"), 10)
        first = time.perf_counter() - started
        refusals = []
        for _ in range(100):
            started = time.perf_counter()
            with pytest.raises(CacheDown):
                await cache.get("a")
            refusals.append(time.perf_counter() - started)
        server.resume()
        assert TIMEOUT_S <= first < 2 * TIMEOUT_S
        assert sorted(refusals)[50] < 0.005
        await until_it_works(cache)


async def test_a_connection_that_was_closed_while_nobody_used_it_is_no_failure(
    server: RedisServer,
) -> None:
    async with cache_at(server.url) as cache:
        await cache.set("a", b"1")
        with Redis.from_url(server.url) as other:
            other.client_kill_filter(_type="normal", skipme=True)
        assert await cache.get("a") == b"1"


async def test_redis_that_is_full_can_still_be_read(server: RedisServer) -> None:
    async with cache_at(server.url) as cache:
        await cache.set("a", b"1")
        with Redis.from_url(server.url) as other:
            other.config_set("maxmemory", "1")
        with pytest.raises(CacheDown, match="refuses"):
            await cache.set("b", b"1")
        assert await cache.get("a") == b"1"
        assert cache.state == "closed"


async def test_garbage_counts_as_missing(server: RedisServer) -> None:
    async with cache_at(server.url) as cache:
        await cache.set("good", b"a value")
        with Redis.from_url(server.url) as other:
            good = other.get("good")
            assert isinstance(good, bytes)
            garbage = [good[:n] for n in range(len(good))]
            garbage += [good + b"!", good.replace(b"value", b"volue"), b"\xff" * 100, b"a value"]
            garbage += [b"rag0" + good[4:]]
            keys = [f"bad{n}" for n in range(len(garbage))]
            for key, value in zip(keys, garbage, strict=True):
                other.set(key, value)
            other.rpush("list", good)
            other.hset("hash", "field", good)
        assert await cache.get_many([*keys, "good"]) == [None] * len(keys) + [b"a value"]
        for key in ["list", "hash"]:
            assert await cache.get(key) is None
            await cache.set(key, b"now a value")
            assert await cache.get(key) == b"now a value"


async def test_callers_who_leave_do_not_use_up_the_connections(server: RedisServer) -> None:
    async with cache_at(server.url, timeout_s=5) as cache:
        await until_it_works(cache)
        with Redis.from_url(server.url) as other:
            for n in range(100):
                many = [asyncio.create_task(cache.get("probe")) for _ in range(40)]
                for _ in range(n % 12):
                    await asyncio.sleep(0)
                for task in many[::2]:
                    task.cancel()
                await asyncio.gather(*many, return_exceptions=True)
                assert {t.result() for t in many[1::2]} == {b"probe"}
            assert len(other.client_list()) <= 33
        assert await works(cache)


async def test_a_claim_is_given_to_one_and_ends_by_itself(server: RedisServer) -> None:
    async with cache_at(server.url) as one, cache_at(server.url) as two:
        assert await one.claim("a", "one", 60)
        assert not await two.claim("a", "two", 60)
        await two.release("a", "two")
        assert not await two.claim("a", "two", 60)
        await one.release("a", "one")
        assert await two.claim("a", "two", 0.05)
        async with asyncio.timeout(5):
            while not await one.claim("a", "one", 60):
                await asyncio.sleep(0.01)


# --- keys

TEXTS = st.text(st.characters(codec=None, exclude_categories=())) | st.sampled_from(
    ["1", "true", "null", "NaN", "\ud83d\ude00", "\U0001f600", "é", "e\u0301", '"', "\\", "}"]
)
NUMBERS = st.integers() | st.floats(allow_nan=False) | st.booleans()
PARTS = st.recursive(
    st.none() | NUMBERS | st.sampled_from([0, 0.0, False, 1, 1.0, True]) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def typed(value: object) -> object:
    """The value, so that two are equal only if they are the same in type as well."""
    if isinstance(value, dict):
        return "mapping", frozenset((name, typed(part)) for name, part in value.items())
    if isinstance(value, list):
        return "list", tuple(map(typed, value))
    return type(value), repr(value)


@given(PARTS, PARTS)
def test_keys_are_equal_only_if_the_parts_are(one: object, two: object) -> None:
    same = typed(one) == typed(two)
    assert (cache_key("answer", part=one) == cache_key("answer", part=two)) == same


@given(st.dictionaries(TEXTS, PARTS, min_size=2))
def test_the_order_of_mappings_is_no_part_of_a_key(mapping: dict[str, object]) -> None:
    turned = dict(reversed(mapping.items()))
    assert cache_key("answer", where=mapping) == cache_key("answer", where=turned)


def test_values_that_python_or_json_take_for_each_other_have_keys_of_their_own() -> None:
    alike = [1, 1.0, True, "1", "true", [1], [[1]], {"1": 1}, "\ud83d\ude00", "\U0001f600", None]
    keys = {cache_key("answer", part=value) for value in alike}
    keys |= {cache_key("query", part=1), cache_key("answer", other=1), cache_key("answer")}
    assert len(keys) == len(alike) + 3
    assert all(key.startswith(("rag:answer:", "rag:query:")) for key in keys)
    assert cache_key("answer", part=(1, 2)) == cache_key("answer", part=[1, 2])


@pytest.mark.parametrize("part", [{1: "a"}, {"a": {None: 1}}, b"1", {1}, object()])
def test_what_has_no_key_is_refused(part: object) -> None:
    with pytest.raises(TypeError):
        cache_key("answer", part=part)


# --- vectors of questions

EMBEDDER = Fingerprint("a-model", "1", dim=3)


class Embedding:
    """Embeds texts as three numbers, and knows which were embedded."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    async def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append(list(texts))
        return np.array([[len(text), 1 / 3, -1e-30] for text in texts], np.float32)

    async def one(self, text: str) -> NDArray[np.float32]:
        return (await self([text]))[0]


async def test_a_text_is_embedded_once(cache: Cache) -> None:
    queries, embed = CachedQueries(cache), Embedding()
    first, degraded = await queries.vectors(EMBEDDER, ["a", "bb", "a"], embed)
    assert not degraded and embed.calls == [["a", "bb"]]
    again, _ = await queries.vectors(EMBEDDER, ["bb", "问题\ud800", "a"], embed)
    assert embed.calls[1:] == [["问题\ud800"]]
    assert first.dtype == again.dtype == np.float32 and first.shape == (3, 3)
    np.testing.assert_array_equal(again, (await Embedding()(["bb", "问题\ud800", "a"])))
    np.testing.assert_array_equal(first[[1, 0]], again[[0, 2]])
    vector, degraded = await queries.vector(EMBEDDER, "a", embed.one)
    np.testing.assert_array_equal(vector, first[0])
    assert len(embed.calls) == 2 and not degraded
    nothing, _ = await queries.vectors(EMBEDDER, [], embed)
    assert nothing.shape == (0, 3) and len(embed.calls) == 2


async def test_each_embedder_has_vectors_of_its_own(cache: Cache) -> None:
    queries, embed = CachedQueries(cache), Embedding()
    for model, prefix in itertools.product("ab", ["", "query: "]):
        await queries.vector(Fingerprint(model, "1", 3, query_prefix=prefix), "a", embed.one)
    assert len(embed.calls) == 4


class Spoilt:
    """A cache that gives something else than was kept."""

    def __init__(self, cache: Cache, value: bytes) -> None:
        self._cache, self._value = cache, value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return [value and self._value for value in await self._cache.get_many(keys)]


NAN, INF = np.float32("nan"), np.float32("inf")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"1234567",
        np.zeros(2, "<f4").tobytes(),
        np.zeros(4, "<f4").tobytes(),
        np.array([1, NAN, 0], "<f4").tobytes(),
        np.array([1, INF, 0], "<f4").tobytes(),
    ],
)
async def test_what_is_no_vector_of_the_embedder_counts_as_missing(value: bytes) -> None:
    async with cache_at("") as cache:
        embed = Embedding()
        expected, _ = await CachedQueries(cache).vector(EMBEDDER, "a", embed.one)
        spoilt = CachedQueries(Spoilt(cache, value))
        vector, degraded = await spoilt.vector(EMBEDDER, "a", embed.one)
        np.testing.assert_array_equal(vector, expected)
        assert len(embed.calls) == 2 and not degraded


async def test_without_redis_all_is_embedded_and_the_cache_called_degraded(
    server: RedisServer,
) -> None:
    async with cache_at(server.url) as cache:
        queries, embed = CachedQueries(cache), Embedding()
        expected, _ = await queries.vectors(EMBEDDER, ["a", "bb"], embed)
        server.kill()
        for _ in range(2):
            vectors, degraded = await queries.vectors(EMBEDDER, ["a", "bb"], embed)
            assert degraded
            np.testing.assert_array_equal(vectors, expected)
        server.start()
        await until_it_works(cache)
        degraded = [(await queries.vectors(EMBEDDER, ["a", "bb"], embed))[1] for _ in range(2)]
        assert degraded == [False, False] and len(embed.calls) == 4
