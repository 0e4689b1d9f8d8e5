"""What a route needs to know of who asks; for `Depends`."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from rag.errors import Unauthenticated
from rag.service.callers import ANYONE, Caller, Scope
from rag.service.desk import Desk

_bearer = HTTPBearer(auto_error=False, description="An API key (`rag keys create`), or a JWT.")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="An API key.")


def desk_of(request: Request) -> Desk:
    """What all requests of this process share."""
    desk: Desk = request.app.state.desk
    return desk


class Allowed:
    """Lets in who has the scope, as often as the limits allow."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    async def __call__(
        self,
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
        api_key: Annotated[str | None, Depends(_header)],
    ) -> Caller:
        """The caller. Raises Unauthenticated, Forbidden, TooManyRequests."""
        desk = desk_of(request)
        address = request.client.host if request.client else ""
        try:
            caller = await desk.authentication.caller(request.headers.get("authorization"), api_key)
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
