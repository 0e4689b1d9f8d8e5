"""What a route needs to know of who asks; for `Depends`."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from fastapi import Depends, Request

from rag.errors import Forbidden, Unauthenticated
from rag.service.callers import ANYONE, Caller, Scope
from rag.service.desk import Desk


async def desk_of(request: Request) -> Desk:  # async, or FastAPI calls it in a thread
    """What all requests of this process share."""
    desk: Desk = request.app.state.desk
    return desk


class Allowed:
    """Lets in who has the scope, as often as the limits allow.

    It depends on nothing else, because each dependency costs a request some 50 us; how a key is
    presented is described in `rag.service.openapi`.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    async def __call__(self, request: Request) -> Caller:
        """The caller. Raises Unauthenticated, Forbidden, TooManyRequests."""
        desk: Desk = request.app.state.desk
        address = request.client.host if request.client else ""
        shown = request.headers.get("authorization"), request.headers.get("x-api-key")
        try:
            caller = await desk.authentication.caller(*shown)
        except Unauthenticated:
            await desk.limits.hit(ANYONE.id, address)  # who guesses is slowed down
            raise
        request.state.caller = caller.id
        allowance = await desk.limits.hit(caller.id, address)
        request.state.headers = allowance.headers() if allowance else {}
        caller.require(self._scope)
        return caller


DeskOf: TypeAlias = Annotated[Desk, Depends(desk_of)]
Reader: TypeAlias = Annotated[Caller, Depends(Allowed("read"))]
Writer: TypeAlias = Annotated[Caller, Depends(Allowed("write"))]
Admin: TypeAlias = Annotated[Caller, Depends(Allowed("admin"))]


async def _operator(caller: Reader) -> Caller:
    limited = caller.tenant or caller.collections is not None
    if limited and "admin" not in caller.scopes:
        raise Forbidden(
            "this key sees a part only, and this tells of all",
            "use a key without --tenant and --collection",
        )
    return caller


async def _examiner(caller: Reader) -> Caller:
    if caller.tenant and "admin" not in caller.scopes:
        raise Forbidden(
            "this key sees a tenant's part only, and this shows documents of all",
            "use a key without --tenant",
        )
    return caller


Operator: TypeAlias = Annotated[Caller, Depends(_operator)]
"""Who may know how the service does for everybody: a reader of all, or an admin."""

Examiner: TypeAlias = Annotated[Caller, Depends(_examiner)]
"""Who may see what was found for questions, whosever documents they are; of its collections."""
