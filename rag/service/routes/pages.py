"""GET /documents/{id}/pages/{page}: a page of a PDF as a picture, passages marked."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import StringConstraints
from starlette.responses import Response

from rag.errors import NotFound
from rag.filters import Compare
from rag.service.access import DeskOf, Reader
from rag.service.errors import responses
from rag.service.originals import held
from rag.service.routes.documents import Collection, DocumentId

router = APIRouter(tags=["documents"])

# Twenty of them fit into the 64 KB that a request line may have.
Mark = Annotated[str, StringConstraints(max_length=2_000)]


_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The page, at most 1,200 pixels wide and 3,600 high.",
        "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        "headers": {
            "X-Marks-Found": {
                "description": "How many of the passages are marked, at least in part.",
                "required": True,
                "schema": {"type": "integer", "minimum": 0},
            }
        },
    }
}


@router.get(
    "/documents/{document_id}/pages/{page}",
    response_class=Response,
    responses={**_PICTURE, **responses(404)},
)
async def page(
    document_id: DocumentId,
    page: Annotated[int, Path(ge=1, le=10_000_000)],
    desk: DeskOf,
    caller: Reader,
    mark: Annotated[list[Mark], Query(max_length=20, default_factory=list)],
    collection: Collection = None,
) -> Response:
    """A page of a PDF, with each passage `mark` highlighted where it stands.

    White space, hyphens and ligatures need not be as they are set. Of a passage that is not there
    as a whole, the longest parts are marked, or nothing if they are less than half of it. 404 also
    where the document is no PDF, or its file is not at hand or another one by now.
    """
    name = desk.collection(caller, collection)
    where = caller.within(Compare("document_id", "eq", document_id))
    async with desk.admission.within_deadline():
        async with desk.admission.admitted(), desk.collections.using(name) as opened:
            record, first = await asyncio.to_thread(held, opened.retriever.store, where)
        original = await asyncio.to_thread(desk.originals.of, name, record, first)
        if original.path.suffix.lower() != ".pdf":
            raise NotFound("the document is no PDF, and has no pages to show", "see GET /documents")
        picture = await desk.pictures.draw(original, page, mark)
    headers = {"X-Marks-Found": str(picture.found), "Cache-Control": "private, max-age=60"}
    return Response(picture.png, headers=headers, media_type="image/png")
