"""What is being taken in or deleted, and what is to be taken in again."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Query

from rag.errors import Forbidden
from rag.filters import Compare
from rag.service.access import DeskOf, Writer
from rag.service.errors import responses
from rag.service.jobs import State
from rag.service.originals import gone, held
from rag.service.routes.documents import Collection, DocumentId
from rag.service.schemas import JobOut, JobsOut
from rag.service.uploads import Upload

router = APIRouter(tags=["documents"])

JobId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]


@router.get("/jobs", responses=responses())
async def jobs(
    desk: DeskOf,
    caller: Writer,
    collection: Collection = None,
    state: State | None = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> JobsOut:
    """The jobs of the caller's tenant, newest first; those of the last week.

    Of one collection, or of all that the caller may write to.
    """
    if collection is not None:
        caller.require("write", collection)
    within = caller.collections if collection is None else {collection}
    found = await asyncio.to_thread(desk.jobs.newest, caller.tenant_key, limit, within, state)
    return JobsOut(jobs=[JobOut(**job.to_json()) for job in found])


@router.get("/jobs/{job_id}", responses=responses(404))
async def job(job_id: JobId, desk: DeskOf, caller: Writer) -> JobOut:
    """How far a job is."""
    found = await asyncio.to_thread(desk.jobs.get, job_id, caller.tenant_key)
    caller.require("write", found.collection)
    return JobOut(**found.to_json())


@router.post("/documents/{document_id}/ingest", status_code=202, responses=responses(404))
async def ingest(
    document_id: DocumentId, desk: DeskOf, caller: Writer, collection: Collection = None
) -> JobOut:
    """Take the file of a document in again, with the metadata that was given with it before.

    After the settings of `[ingest]`, or a file on the service's machine, have changed it is taken
    in anew; otherwise the job's report says that it is unchanged. 404 where the file is not at
    hand: upload it again. What `rag ingest` took in is not for keys of a tenant.
    """
    name = desk.collection(caller, collection, "write")
    where = caller.within(Compare("document_id", "eq", document_id))
    async with (
        desk.admission.within_deadline(),
        desk.admission.admitted(),
        desk.collections.using(name) as opened,
    ):
        record, _ = await asyncio.to_thread(held, opened.retriever.store, where)
    path = await asyncio.to_thread(desk.originals.path_of, name, record)
    if path is None:
        raise gone()
    if caller.tenant and str(path) == record.source:
        raise Forbidden(
            "the document is a file of the service's machine", "ask whoever runs the service"
        )
    upload = Upload(name, record.source, record.id, path)
    found = await asyncio.to_thread(desk.jobs.repeat, upload, caller.tenant_key)
    return JobOut(**found.to_json())
