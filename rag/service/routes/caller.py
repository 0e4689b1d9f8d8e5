"""GET /caller: what a key may do, for those who offer no more than that."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from rag.service.access import Reader
from rag.service.callers import SCOPES, Scope
from rag.service.errors import responses

router = APIRouter(tags=["operation"])


class CallerOut(BaseModel):
    """Who asks. `collections` null are all; `tenant`: it sees a part of each only."""

    id: str
    scopes: list[Scope]
    collections: list[str] | None
    tenant: bool


@router.get("/caller", responses=responses())
async def caller(caller: Reader) -> CallerOut:
    """What the key of this request allows."""
    return CallerOut(
        id=caller.id,
        scopes=[scope for scope in SCOPES if scope in caller.scopes or "admin" in caller.scopes],
        collections=None if caller.collections is None else sorted(caller.collections),
        tenant=bool(caller.tenant),
    )
