"""Who asks: an API key or a token, in `Authorization: Bearer` or `X-API-Key`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag.errors import Unauthenticated
from rag.service.callers import ANYONE, Caller
from rag.service.oidc import is_token

if TYPE_CHECKING:
    from rag.service.keys import Keys
    from rag.service.oidc import Oidc

_HINT = "send `Authorization: Bearer KEY` or `X-API-Key: KEY`; rag keys create makes one"


class Authentication:
    """`required`: whoever presents nothing is refused, otherwise it is `ANYONE`.

    Whether keys are required is decided once, not by whether there are any: else the service
    would open itself when the last key is revoked.
    """

    def __init__(self, keys: Keys, oidc: Oidc | None, required: bool) -> None:
        self._keys = keys
        self._oidc = oidc
        self._required = required

    async def caller(self, authorization: str | None, x_api_key: str | None) -> Caller:
        """Who presents these headers, as they came; `X-API-Key` counts before the other.

        Raises Unauthenticated, also for a wrong key where none is required, if there are keys: who
        presents one counts on what it allows. Overloaded when a token cannot be checked now.
        """
        presented = x_api_key.strip() if x_api_key is not None else _bearer(authorization)
        if presented is None:
            if self._required:
                raise Unauthenticated("there is no key", _HINT)
            return ANYONE
        if self._oidc is not None and is_token(presented):
            return await self._oidc.caller(presented)
        caller = self._keys.find(presented)
        if caller is None and not self._required and not self._keys.any():
            return ANYONE  # OpenAI's SDK sends some key always
        if caller is None:
            raise Unauthenticated("the key is wrong, revoked or expired", _HINT)
        return caller


def _bearer(authorization: str | None) -> str | None:
    """What an `Authorization` header presents; None where there is none."""
    if authorization is None:
        return None
    scheme, _, presented = authorization.strip().partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("the Authorization header presents no bearer key", _HINT)
    return presented.strip()
