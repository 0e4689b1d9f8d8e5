"""Documents: sent in, listed, deleted."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rag.errors import InputError, UnknownDocument
from rag.filters import Compare
from rag.service import cursor
from rag.service.access import DeskOf, Reader, Writer
from rag.service.callers import Caller
from rag.service.desk import Desk
from rag.service.envelope import UPLOADS
from rag.service.errors import responses
from rag.service.replies import json_response
from rag.service.schemas import NAME, DocumentOut, DocumentsOut, JobOut
from rag.service.uploads import stamped
from rag.types import DocumentRecord

router = APIRouter(tags=["documents"])

_FIELD = 20_000  # bytes
_SEND_FORM = "send a multipart form with one file, and collection and metadata (up to 16 KB)"
_POLL_S = 0.02
_WAIT_S = 10.0  # for a deletion, which takes milliseconds unless something is being ingested
DocumentId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.:-]{1,200}$")]
Collection = Annotated[str | None, Query(pattern=NAME)]


_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "PDF, Markdown, HTML, DOCX or plain text.",
                        },
                        "collection": {"type": "string", "pattern": NAME},
                        "metadata": {
                            "type": "string",
                            "description": "A JSON object of text, numbers, true and false.",
                            "examples": ['{"team": "ops"}'],
                        },
                    },
                }
            }
        },
    }
}


@router.post(UPLOADS, status_code=202, responses=responses(404, 415), openapi_extra=_FORM)
async def upload(request: Request, desk: DeskOf, caller: Writer) -> JobOut:
    """Take in a document. It is on the disk once this answers; GET /jobs/{id} tells how it goes.

    The same file name again replaces the document.
    """
    await asyncio.to_thread(desk.jobs.check_room)
    # The form is read here, not by FastAPI, which would read it before the key is checked.
    async with _form(request) as form:
        if unknown := sorted(set(form) - {"file", "collection", "metadata"}):
            raise InputError(f"there is no field {unknown[0]!r}", "send file, collection, metadata")
        file, collection = form.get("file"), form.get("collection")
        if not isinstance(file, UploadFile):
            raise InputError("there is no file", "send it as the field 'file' of a multipart form")
        if collection is not None and not (
            isinstance(collection, str) and re.fullmatch(NAME, collection)
        ):
            raise InputError("the collection has no valid name", "see GET /collections")
        name = desk.collection(caller, collection, "write")
        request.state.collection = name
        stamp = caller.stamp()
        metadata = stamped(_object(form.get("metadata", "{}")), stamp)
        kept = await asyncio.to_thread(
            desk.uploads.keep, file.file, file.filename or "", name, stamp
        )
    job = await asyncio.to_thread(desk.jobs.add, kept, caller.tenant_key, metadata)
    return JobOut(**job.to_json())


@router.get("/documents", responses=responses(404))
async def documents(
    desk: DeskOf,
    caller: Reader,
    collection: Collection = None,
    search: Annotated[
        str, Query(max_length=500, description="What source or title contain, whatever the case.")
    ] = "",
    after: Annotated[
        str | None,
        Query(min_length=1, description="`next` of the page before."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> DocumentsOut:
    """The documents that the caller may see, ordered by source, a page at a time."""
    name = desk.collection(caller, collection)
    where = caller.within(None)
    key = None if after is None else cursor.to_key(after)
    async with (
        desk.admission.within_deadline(),
        desk.admission.admitted(),
        desk.collections.using(name) as opened,
    ):
        store = opened.retriever.store

        def listed() -> list[DocumentRecord]:
            # One more, which tells whether there is another page.
            return list(store.documents(where, containing=search, after=key, limit=limit + 1))

        records = await asyncio.to_thread(listed)
    page, more = records[:limit], records[limit:]
    return DocumentsOut(
        documents=await _described(desk, name, page),
        next=cursor.to_text(page[-1].key) if more else None,
    )


@router.get("/documents/{document_id}", responses=responses(404))
async def document(
    document_id: DocumentId, desk: DeskOf, caller: Reader, collection: Collection = None
) -> DocumentOut:
    """One document."""
    name = desk.collection(caller, collection)
    record = await _record(desk, caller, name, document_id)
    return (await _described(desk, name, [record]))[0]


@router.delete(
    "/documents/{document_id}",
    response_model=JobOut,
    responses={202: {"model": JobOut, "description": "It waits its turn."}, **responses(404)},
)
async def delete(
    document_id: DocumentId, desk: DeskOf, caller: Writer, collection: Collection = None
) -> Response:
    """Delete a document: once the job is done, it is in no answer any more.

    One that is still being taken in is deleted too.
    """
    name = desk.collection(caller, collection, "write")
    asked_for = name, document_id, caller.tenant_key
    source = await asyncio.to_thread(desk.jobs.coming, *asked_for)
    if source is None:  # asked last, as what was coming may have come meanwhile
        source = (await _record(desk, caller, name, document_id)).source
    job = await asyncio.to_thread(desk.jobs.delete, name, document_id, source, caller.tenant_key)
    for _ in range(round(_WAIT_S / _POLL_S)):
        if job.state in ("done", "failed"):
            break
        await asyncio.sleep(_POLL_S)
        job = await asyncio.to_thread(desk.jobs.get, job.id, caller.tenant_key)
    return json_response(JobOut(**job.to_json()).model_dump(), 200 if job.state == "done" else 202)


async def _described(
    desk: Desk, collection: str, records: Sequence[DocumentRecord]
) -> list[DocumentOut]:
    """Documents as the service gives them, with the sizes of their files."""

    def described() -> list[DocumentOut]:
        return [DocumentOut.of(r, desk.originals.size_of(collection, r)) for r in records]

    return await asyncio.to_thread(described)


async def _record(desk: Desk, caller: Caller, collection: str, document_id: str) -> DocumentRecord:
    """The newest version. Raises UnknownDocument, also for one that the caller may not see."""
    where = caller.within(Compare("document_id", "eq", document_id))
    async with (
        desk.admission.within_deadline(),
        desk.admission.admitted(),
        desk.collections.using(collection) as opened,
    ):
        store = opened.retriever.store
        records = await asyncio.to_thread(lambda: list(store.documents(where)))
    if not records:
        raise UnknownDocument(
            f"collection {collection!r} holds no document {document_id!r}", "see GET /documents"
        )
    return max(records, key=lambda record: record.ingested_at)


@asynccontextmanager
async def _form(request: Request) -> AsyncIterator[FormData]:
    """The form of a request. Raises InputError for what is none."""
    try:
        form = await request.form(max_files=1, max_fields=2, max_part_size=_FIELD)
    except HTTPException as error:
        if error.status_code != 400:  # the body is over the limit
            raise
        raise InputError(f"the form cannot be read ({error.detail})", _SEND_FORM) from error
    try:
        yield form
    finally:
        await form.close()


def _object(text: object) -> dict[str, Any]:
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError) as error:
        raise InputError("metadata is not JSON", """send it like {"team": "ops"}""") from error
    if not isinstance(value, dict):
        raise InputError("metadata is no JSON object", """send it like {"team": "ops"}""")
    return value
