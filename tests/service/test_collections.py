"""Collections that are held open: one description for all, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from word_app import WordApp

from rag import plugins
from rag.app import App
from rag.errors import UnknownCollection
from rag.retrieve import Retriever
from rag.service.api import create
from rag.service.collections import Collections
from rag.service.desk import Desk
from rag.settings import load
from rag.types import CollectionSpec, Facets
from stores.contract import chunk, random_vectors
from stores.facets import facets


@pytest.fixture
def app(tmp_path: Path) -> App:
    app = WordApp(tmp_path)
    made(app, "docs")
    return app


@pytest.fixture
async def collections(app: App) -> AsyncIterator[Collections]:
    collections = Collections(app)
    yield collections
    await collections.aclose()
    app.close()


def made(app: App, name: str) -> None:
    fingerprint = app.embedder().fingerprint
    app.backend.create(CollectionSpec(name, fingerprint.dim, embedder=fingerprint)).close()


async def retriever(collections: Collections) -> Retriever:
    async with collections.using("docs") as opened:
        return opened.retriever


async def test_who_comes_at_once_shares_one_description(app: App, collections: Collections) -> None:
    first = set(await asyncio.gather(*(retriever(collections) for _ in range(100))))
    with app.store() as store:
        store.annotate({"note": "written"})
    then = set(await asyncio.gather(*(retriever(collections) for _ in range(100))))
    assert (len(first), len(then), len(first | then)) == (1, 1, 2)


async def test_a_breaker_outlasts_what_is_written(app: App, collections: Collections) -> None:
    async with collections.using("docs") as before:
        before.breaker.failed()
    with app.store() as store:
        store.annotate({"note": "written"})
    async with collections.using("docs") as after:
        assert after is not before
        assert after.breaker is before.breaker


async def test_a_collection_that_is_gone_is_closed_although_nobody_uses_it(
    app: App, collections: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, closed = (await retriever(collections)).store, []
    close = store.close
    monkeypatch.setattr(
        store, "close", lambda: (closed.append(threading.current_thread()), close())
    )
    app.backend.drop("docs")
    with pytest.raises(UnknownCollection):
        await retriever(collections)
    assert len(closed) == 1
    assert closed[0] is not threading.main_thread()


async def test_a_collection_that_is_gone_is_closed_once_by_the_last_who_uses_it(
    app: App, collections: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []
    async with collections.using("docs") as opened:
        store = opened.retriever.store
        close = store.close
        monkeypatch.setattr(store, "close", lambda: (closed.append(1), close()))
        app.backend.drop("docs")
        made(app, "docs")
        others = await asyncio.gather(*(retriever(collections) for _ in range(10)))
        assert len(set(others)) == 1
        assert others[0] is not opened.retriever
        assert not closed
    assert closed == [1]


async def test_fields_are_counted_once_for_what_a_collection_holds(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[Any] = []

    def counting(store: Any, where: Any) -> Facets:
        counted.append(where)
        return facets(store, where)

    monkeypatch.setattr("rag.service.routes.collections.facets", counting)
    api = create(app.settings, app)
    transport = httpx2.ASGITransport(app=api)
    async with (
        api.router.lifespan_context(api),
        httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):

        async def names() -> list[str]:
            reply = await client.get("/collections/docs/fields")
            assert reply.status_code == 200, reply.text
            return [field["name"] for field in reply.json()["fields"]]

        assert await asyncio.gather(*(names() for _ in range(20))) == [[]] * 20
        assert len(counted) == 1
        with app.store() as store:
            store.upsert([chunk(0, team="ops")], random_vectors(1, dim=store.describe().dim))
        assert [await names() for _ in range(3)] == [["team"]] * 3
        assert len(counted) == 2
        monkeypatch.setattr("rag.service.collections._generation", lambda _: None)
        assert [await names() for _ in range(3)] == [["team"]] * 3
        assert len(counted) == 5, "what cannot be told to be the same was kept"


async def test_names_that_there_are_none_of_leave_nothing_behind(collections: Collections) -> None:
    def locks() -> int:
        gc.collect()
        # type(), because isinstance() asks the object too, and some warn of being asked.
        return sum(type(one) is asyncio.Lock for one in gc.get_objects())

    before = locks()
    for n in range(50):
        with pytest.raises(UnknownCollection):
            async with collections.using(f"none-{n}"):
                pass
    assert locks() <= before + 1, "but for what the last error remembers"


@pytest.mark.parametrize(
    ("store", "quick"),
    [("memory", True), ("faiss", True), ("chroma", False), ("milvus", False), ("pinecone", False)],
)
async def test_what_may_wait_for_others_is_asked_in_a_thread(
    tmp_path: Path, store: str, quick: bool
) -> None:
    app = WordApp(tmp_path)
    app.settings = app.settings.model_copy(update={"store": store})
    desk = Desk(app)
    assert desk.collections.quick is quick
    await desk.aclose()


async def test_the_check_of_the_embedder_is_of_the_one_that_is_used(app: App) -> None:
    asked: list[Any] = []
    embedder = app.embedder

    def counted(info: Any = None, model: str = "") -> Any:
        asked.append(info)
        return embedder(info, model)

    app.embedder = counted  # type: ignore[method-assign]
    desk = Desk(app)
    health = await desk.health.now()
    assert health.parts["embedder"].ok
    assert asked
    assert None not in asked, "a second copy was made, for no collection"
    app.backend.drop("docs")
    desk.health = Desk(app).health
    assert (await desk.health.now()).parts["embedder"].ok, "there need be no collection yet"
    await desk.aclose()


def test_an_embedder_that_is_being_made_keeps_nobody_from_the_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def make(**_: Any) -> object:
        begun.set()
        assert go_on.wait(10)
        return object()

    monkeypatch.setattr(plugins, "load", lambda _kind, _name: make)
    app = App(load({"data_dir": tmp_path}).settings)
    making = threading.Thread(target=app.embedder)
    asking = threading.Thread(target=lambda: app.generator)
    making.start()
    try:
        assert begun.wait(10)
        asking.start()
        asking.join(5)
        assert not asking.is_alive()
    finally:
        go_on.set()
        making.join()
        asking.join()
