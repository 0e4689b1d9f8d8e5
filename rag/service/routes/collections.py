"""GET /collections: what there is to ask."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from rag.service.access import DeskOf, Reader
from rag.service.cache import cache_key
from rag.service.errors import responses
from rag.service.replies import json_bytes
from rag.service.schemas import NAME, CollectionOut, CollectionsOut, FieldOut, FieldsOut, ValueOut
from rag.types import Facet
from stores.facets import facets

router = APIRouter(tags=["collections"])


@router.get("/collections", responses=responses())
async def collections(desk: DeskOf, caller: Reader) -> CollectionsOut:
    """The collections that the caller may see, and the one that is asked where none is named."""
    names = await asyncio.to_thread(desk.app.backend.collections)
    default = desk.app.settings.collection
    return CollectionsOut(
        collections=[name for name in names if caller.sees(name)],
        default=default if caller.sees(default) else None,
    )


@router.get("/collections/{name}", responses=responses(404))
async def collection(
    name: Annotated[str, Path(pattern=NAME)], desk: DeskOf, caller: Reader
) -> CollectionOut:
    """What a collection says of itself. `chunks` are those that the caller may see."""
    caller.require("read", name)
    where = caller.within(None)
    async with (
        desk.admission.within_deadline(),
        desk.admission.admitted(),
        desk.collections.using(name) as opened,
    ):
        info = opened.info
        chunks = await asyncio.to_thread(opened.retriever.store.count, where)
    return CollectionOut(
        name=info.collection,
        store=info.kind,
        dim=info.dim,
        metric=info.metric,
        index=info.index,
        embedder=info.embedder.model if info.embedder else None,
        chunks=chunks,
        generation=opened.generation,
    )


@router.get("/collections/{name}/fields", response_model=FieldsOut, responses=responses(404))
async def fields(
    name: Annotated[str, Path(pattern=NAME)], desk: DeskOf, caller: Reader
) -> Response:
    """The metadata that is really there, for filters: of the documents that the caller may see."""
    caller.require("read", name)
    where = caller.within(None)
    async with desk.admission.within_deadline(), desk.collections.using(name) as opened:

        async def counted() -> tuple[bytes, bool]:
            async with desk.admission.admitted():
                found = await asyncio.to_thread(facets, opened.retriever.store, where)
            reply = FieldsOut(fields=list(map(_field, found.fields)), complete=found.complete)
            return json_bytes(reply.model_dump()), True

        if opened.generation is None:
            return _json((await counted())[0])
        about = cache_key("fields", about=opened.about, collection=name, tenant=caller.tenant_key)
        return _json((await desk.memo.get(about, counted)).value)


def _field(facet: Facet) -> FieldOut:
    return FieldOut(
        name=facet.name,
        kind=facet.kind,
        values=[ValueOut(value=value, documents=count) for value, count in facet.values],
        more=facet.more,
        least=facet.least,
        greatest=facet.greatest,
    )


def _json(value: bytes) -> Response:
    return Response(value, media_type="application/json")
