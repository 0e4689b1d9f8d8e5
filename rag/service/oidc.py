"""Bearer tokens (JWT) that an identity provider signed, checked with the keys that it publishes."""

from __future__ import annotations

import asyncio
import math
import re
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rag.errors import ConfigError, MissingExtra, Overloaded, RagError, Unauthenticated
from rag.filters import check_metadata, parse
from rag.service.callers import SCOPES, Caller, Scope
from rag.types import Scalar

if TYPE_CHECKING:
    from jwt import PyJWK, PyJWKClient

    from rag.settings import OidcSettings

ALGORITHMS = "RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 ES256K EdDSA".split()
"""Signatures that only the provider can make. With HS256 or "none" anybody could."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_LONGEST_TOKEN = 16_384
_LONGEST_SUBJECT = 255  # OpenID Connect Core 1.0, section 2
_LEEWAY_S = 30  # clocks differ
FRESH_S = 300.0  # then the keys are fetched again
STALE_S = 3600.0  # so long they count while the provider does not answer
UNKNOWN_S = 30.0  # between two fetches for keys that nobody knows
AGAIN_S = 5.0  # after a fetch that failed


class Oidc:
    """Tokens of one provider. One event loop uses it; fetching keys does not block it.

    Raises ConfigError for settings that would let in strangers, MissingExtra without PyJWT.
    """

    def __init__(self, settings: OidcSettings) -> None:
        if find_spec("jwt") is None or find_spec("cryptography") is None:
            raise MissingExtra(
                "tokens of an identity provider need PyJWT and cryptography",
                "install them with: pip install 'ragline[oidc]'",
            )
        _check(settings)
        self._settings = settings
        self._signing_keys = _SigningKeys(settings.jwks_url, settings.timeout_s)

    async def caller(self, token: str) -> Caller:
        """Who presents this token; takes some 0.1 ms.

        Raises Unauthenticated, and Overloaded when its key cannot be fetched from the provider.
        """
        import jwt

        if not is_token(token):
            raise _refused("it is no JWT")
        settings = self._settings
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            if not kid:
                raise _refused("it names no key (kid)")
            claims = jwt.decode(
                token,
                await self._signing_keys.get(kid),
                algorithms=settings.algorithms,
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "sub"], "enforce_minimum_key_length": True},
            )
        except jwt.PyJWTError as error:
            raise _refused(str(error)) from error
        return Caller(
            _subject(claims),
            _scopes(claims.get(settings.scopes_claim)),
            _collections(claims, settings.collections_claim),
            _tenant(claims, settings.tenant_claim, settings.tenant_field),
        )


def is_token(presented: str) -> bool:
    """Whether this is written like a signed JWT."""
    return len(presented) <= _LONGEST_TOKEN and _TOKEN.fullmatch(presented) is not None


class _SigningKeys:
    """The provider's keys by id. Fetched by one task at a time, for which the requests wait."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._client = _client(url, timeout_s)
        self._timeout_s = timeout_s
        self._keys: dict[str, PyJWK] = {}
        self._fetched = self._next = -math.inf
        self._task: asyncio.Task[None] | None = None
        self._error: Exception | None = None

    async def get(self, kid: str) -> PyJWK:
        """The key of that id. Raises Unauthenticated, or Overloaded if that cannot be known."""
        key = self._keys.get(kid)
        age = time.monotonic() - self._fetched
        if key is not None and age < FRESH_S:
            return key
        if self._task is None and time.monotonic() >= self._next:
            self._task = asyncio.create_task(self._fetch())
        if key is not None and age < STALE_S:
            return key
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=self._timeout_s)
        if self._task is not None or self._error is not None:
            raise Overloaded(
                "tokens cannot be checked: the identity provider's keys cannot be fetched",
                "try again, or use an API key",
                retry_after=AGAIN_S,
            ) from self._error
        if kid not in self._keys:
            raise _refused("its key is none of the identity provider's")
        return self._keys[kid]

    async def _fetch(self) -> None:
        """Fetch the keys. Never raises, for it may end when nobody waits any more."""
        try:
            found = await asyncio.to_thread(self._client.get_signing_keys)
        except Exception as error:  # whatever the provider sent, tokens cannot be checked
            self._error = error
            self._next = time.monotonic() + AGAIN_S
        else:
            self._keys = {key.key_id: key for key in found if key.key_id}
            self._fetched, self._error = time.monotonic(), None
            self._next = self._fetched + UNKNOWN_S
        finally:
            self._task = None


def _client(url: str, timeout_s: float) -> PyJWKClient:
    from jwt import PyJWKClient, PyJWKClientError

    try:
        return PyJWKClient(url, cache_jwk_set=False, timeout=timeout_s)
    except (PyJWKClientError, ValueError) as error:
        raise ConfigError(
            f"oidc.jwks_url is no address: {url!r}", "write it like https://id.example.com/jwks"
        ) from error


def _check(settings: OidcSettings) -> None:
    wrong = sorted(set(settings.algorithms) - set(ALGORITHMS))
    if wrong or not settings.algorithms:
        raise ConfigError(
            f"oidc.algorithms cannot be {', '.join(wrong) or 'empty'}",
            f"signatures must be the provider's alone: use {', '.join(ALGORITHMS)}",
        )
    for name in ("issuer", "audience"):
        if not getattr(settings, name):
            raise ConfigError(
                f"oidc.{name} is not set, so tokens for other services would be taken",
                f"set it to the {name} of tokens for this service",
            )
    if settings.tenant_claim:
        try:
            check_metadata({settings.tenant_field: ""})
        except RagError as error:
            raise ConfigError(f"oidc.tenant_field: {error.message}", error.hint) from error


def _subject(claims: dict[str, Any]) -> str:
    """The id of the caller. What it begins with keeps it apart from keys and from "anonymous"."""
    subject: str = claims["sub"]
    if not subject or not subject.isprintable() or len(subject) > _LONGEST_SUBJECT:
        raise _refused("its subject is no name")
    return f"oidc:{subject}"


def _scopes(claim: object) -> frozenset[Scope]:
    given = set(_words(claim))
    return frozenset(s for s in SCOPES if given & {s, f"rag:{s}", f"rag.{s}"})


def _collections(claims: dict[str, Any], name: str) -> frozenset[str] | None:
    if not name:
        return None
    if name not in claims:
        raise _refused(f"it has no claim {name!r}")
    return frozenset(_words(claims[name]))


def _tenant(claims: dict[str, Any], name: str, field: str) -> dict[str, Scalar]:
    if not name:
        return {}
    value = claims.get(name)
    if not isinstance(value, str | int | float) or value == "":
        raise _refused(f"its claim {name!r} does not name a tenant")
    try:
        parse({field: value})
    except RagError as error:
        raise _refused(error.message) from error
    return {field: value}


def _words(claim: object) -> list[str]:
    """A text separated by spaces, or a list of texts, as a list; empty for anything else."""
    if isinstance(claim, str):
        return claim.split()
    return [word for word in claim if isinstance(word, str)] if isinstance(claim, list) else []


def _refused(reason: str) -> Unauthenticated:
    return Unauthenticated(
        f"the token is refused: {reason}", "get a new one from the identity provider"
    )
