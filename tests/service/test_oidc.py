"""Tokens of an identity provider: which are taken, and what happens when it is down."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from identity_provider import AUDIENCE, ISSUER, IdentityProvider

from rag.errors import ConfigError, MissingExtra, Overloaded, Unauthenticated
from rag.service import oidc
from rag.service.callers import Caller
from rag.service.oidc import Oidc
from rag.settings import OidcSettings


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as running:
        yield running


def made(provider: IdentityProvider, **settings: Any) -> Oidc:
    given = {"jwks_url": provider.url, "issuer": ISSUER, "audience": AUDIENCE, **settings}
    return Oidc(OidcSettings(**given))


def signed(provider: IdentityProvider, header: Any, claims: Any = None) -> str:
    """A token of these parts, signed as an attacker would who has only the public key."""
    public = provider.keys["first"].public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    content = ".".join(_segment(part) for part in (header, claims or provider.claims()))
    signature = hmac.new(pem, content.encode(), hashlib.sha256).digest()
    return f"{content}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def _segment(part: Any) -> str:
    text = part if isinstance(part, str) else json.dumps(part)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


async def test_a_token_says_who_asks_and_what_for(provider: IdentityProvider) -> None:
    provider.add_key("second", "ES256")
    checked = made(provider, collections_claim="groups", tenant_claim="org", tenant_field="owner")
    for kid in ("first", "second"):
        token = provider.token(kid, scope="openid rag:read write", groups=["a", "b"], org="acme")
        assert await checked.caller(token) == Caller(
            "oidc:ann", frozenset({"read", "write"}), frozenset({"a", "b"}), {"owner": "acme"}
        )
    assert provider.requests == 1


@pytest.mark.parametrize(
    ("claim", "scopes"),
    [
        ("read rag:write rag.admin", {"read", "write", "admin"}),
        (["read", "rag.write", 7], {"read", "write"}),
        ("reader rag-read READ", set()),
        (7, set()),
        (None, set()),
    ],
)
async def test_scopes(provider: IdentityProvider, claim: Any, scopes: set[str]) -> None:
    caller = await made(provider, scopes_claim="permissions").caller(
        provider.token(permissions=claim, scope="admin")
    )
    assert caller.scopes == scopes


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": 4_000_000_000},
        {"iat": 4_000_000_000},
        {"aud": "another"},
        {"aud": None},
        {"iss": "https://evil.example.com/"},
        {"iss": None},
        {"sub": None},
        {"sub": ""},
        {"sub": "ann\n"},
        {"sub": "\ud800"},
        {"sub": "a" * 256},
    ],
    ids=lambda claims: str(claims)[:30].encode("ascii", "replace").decode(),
)
async def test_claims_that_do_not_hold_are_refused(provider: IdentityProvider, claims: Any) -> None:
    checked = made(provider)
    assert await checked.caller(provider.token())
    with pytest.raises(Unauthenticated, match="token is refused") as raised:
        await checked.caller(provider.token(**claims))
    assert raised.value.hint


async def test_tokens_that_the_provider_did_not_sign_are_refused(
    provider: IdentityProvider,
) -> None:
    checked = made(provider)
    good = provider.token()
    head, body, signature = good.split(".")
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    provider.keys["weak"] = weak
    forged = [
        jwt.encode(provider.claims(), stranger, "RS256", headers={"kid": "first"}),
        jwt.encode(provider.claims(), stranger, "RS256", headers={"kid": "unknown"}),
        jwt.encode(provider.claims(), stranger, "RS256"),
        jwt.encode(provider.claims(), None, "none", headers={"kid": "first"}),
        signed(provider, {"alg": "HS256", "kid": "first"}),
        signed(provider, {"alg": "RS256", "kid": "first"}),
        ".".join((head, _segment(provider.claims(sub="root")), signature)),
        ".".join((head, body, "")),
        ".".join((_segment({"alg": "none", "kid": "first"}), body, "")),
    ]
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        forged.append(provider.token("weak"))
    assert await checked.caller(good)
    for token in forged:
        with pytest.raises(Unauthenticated):
            await checked.caller(token)


async def test_what_is_no_token_is_refused(provider: IdentityProvider) -> None:
    checked = made(provider)
    deep = "[" * 5_000
    hostile = [
        *("", ".", "..", "a.b.c", "a.b", "密.钥.子", "a.b.c\n", "\0.\0.\0", "\ud800.a.a"),
        f"{'a' * 2**20}.b.c",
        *(signed(provider, header) for header in ("{}", "[]", "7", deep, "\0", "NaN")),
        *(signed(provider, {"alg": "RS256", "kid": kid}) for kid in (7, ["first"], "", None)),
        *(signed(provider, {"alg": alg, "kid": "first"}) for alg in (7, None, ["RS256"], {})),
        signed(provider, {"alg": "RS256", "kid": "first", "crit": ["exp"]}),
        signed(provider, {"alg": "RS256", "kid": "first", "b64": False}),
        *(
            jwt.api_jws.encode(body, provider.keys["first"], "RS256", headers={"kid": "first"})
            for body in (b"[]", b"\xff", deep.encode(), b'{"exp": 1e999}')
        ),
    ]
    for token in hostile:
        with pytest.raises(Unauthenticated):
            await checked.caller(token)


@pytest.mark.parametrize("org", [None, "", ["acme"], {"$exists": True}, "\ud800", 2**64])
async def test_a_token_without_a_tenant_is_refused(provider: IdentityProvider, org: Any) -> None:
    with pytest.raises(Unauthenticated):
        await made(provider, tenant_claim="org").caller(provider.token(org=org))


async def test_a_token_without_the_claim_of_collections_is_refused(
    provider: IdentityProvider,
) -> None:
    checked = made(provider, collections_claim="groups")
    with pytest.raises(Unauthenticated, match="no claim 'groups'"):
        await checked.caller(provider.token())
    for groups, seen in (("a b", {"a", "b"}), ([], set()), (7, set())):
        caller = await checked.caller(provider.token(groups=groups))
        assert caller.collections == seen


# --- when the provider is down


REPLIES = {
    "error": (500, b"{}"),
    "redirect": (302, b""),
    "no JSON": (200, b"<html>"),
    "no object": (200, b"[]"),
    "no keys": (200, b'{"keys": []}'),
    "odd keys": (200, b'{"keys": [7, {"kty": "RSA", "kid": "first"}]}'),
    "no text": (200, b"\xff"),
    "deep": (200, b"[" * 100_000),
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
async def test_a_provider_without_keys_is_overload_and_no_wrong_token(
    provider: IdentityProvider, reply: tuple[int, bytes]
) -> None:
    provider.reply = lambda: reply
    checked = made(provider)
    for _ in range(3):
        with pytest.raises(Overloaded, match="cannot be fetched") as raised:
            await checked.caller(provider.token())
        assert raised.value.retry_after > 0
    assert provider.requests == 1  # it is left alone for a while


async def test_a_provider_that_comes_back_is_asked_again(
    provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "AGAIN_S", 0.05)
    checked = made(provider)
    provider.stop()
    with pytest.raises(Overloaded):
        await checked.caller(provider.token())
    provider.start()
    assert await within(5, checked, provider.token())


async def test_a_provider_that_hangs_holds_up_nobody_for_long(provider: IdentityProvider) -> None:
    released = threading.Event()
    provider.reply = lambda: (200, provider.jwks() if released.wait(30) else b"")
    checked = made(provider, timeout_s=0.3)
    longest, ticking = 0.0, True

    async def tick() -> None:
        nonlocal longest
        while ticking:
            started = time.perf_counter()
            await asyncio.sleep(0.01)
            longest = max(longest, time.perf_counter() - started)

    ticks = asyncio.create_task(tick())
    started = time.perf_counter()
    asked = (checked.caller(provider.token()) for _ in range(20))
    found = await asyncio.gather(*asked, return_exceptions=True)
    took = time.perf_counter() - started
    ticking = False
    await ticks
    released.set()
    assert all(isinstance(error, Overloaded) for error in found)
    assert took < 2
    assert longest < 0.25  # the event loop went on
    assert provider.requests == 1


async def test_keys_are_fetched_once_for_all_that_wait(provider: IdentityProvider) -> None:
    checked = made(provider)
    token = provider.token()
    impatient = asyncio.create_task(checked.caller(token))
    await asyncio.sleep(0)
    others = [asyncio.create_task(checked.caller(token)) for _ in range(20)]
    await asyncio.sleep(0)
    impatient.cancel()  # its client went away; the others get their keys all the same
    with suppress(asyncio.CancelledError):
        await impatient
    assert {caller.id for caller in await asyncio.gather(*others)} == {"oidc:ann"}
    assert provider.requests == 1


async def test_known_keys_count_for_a_while_when_the_provider_is_down(
    provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "FRESH_S", 0.0)
    monkeypatch.setattr(oidc, "UNKNOWN_S", 0.0)
    checked = made(provider)
    token = provider.token()
    assert await checked.caller(token)
    provider.stop()
    for _ in range(3):
        assert await checked.caller(token)
    monkeypatch.setattr(oidc, "STALE_S", 0.0)
    with pytest.raises(Overloaded):
        await checked.caller(token)


async def test_a_key_that_is_gone_counts_no_more(
    provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "FRESH_S", 0.0)
    monkeypatch.setattr(oidc, "UNKNOWN_S", 0.0)
    checked = made(provider)
    token = provider.token()
    assert await checked.caller(token)
    provider.add_key("second")
    del provider.keys["first"]
    end = time.monotonic() + 5
    with pytest.raises(Unauthenticated, match="none of the identity provider's"):
        while time.monotonic() < end:
            await checked.caller(token)
            await asyncio.sleep(0)


async def test_a_new_key_is_fetched_but_not_for_every_stranger(
    provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = made(provider)
    assert await checked.caller(provider.token())
    stranger = jwt.encode(provider.claims(), provider.keys["first"], "RS256", headers={"kid": "x"})
    for _ in range(20):
        with pytest.raises(Unauthenticated):
            await checked.caller(stranger)
    assert provider.requests == 1
    provider.add_key("second")
    monkeypatch.setattr(oidc, "UNKNOWN_S", 0.0)
    fresh = made(provider)
    assert await fresh.caller(provider.token())
    provider.add_key("third")
    assert await fresh.caller(provider.token("third"))


async def within(seconds: float, checked: Oidc, token: str) -> Caller:
    """Who presents the token, as soon as it can be checked."""
    end = time.monotonic() + seconds
    while True:
        try:
            return await checked.caller(token)
        except Overloaded:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)


# --- settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"algorithms": ["RS256", "HS256"]}, "cannot be HS256"),
        ({"algorithms": ["none"]}, "cannot be none"),
        ({"algorithms": ["rs256"]}, "cannot be rs256"),
        ({"algorithms": []}, "cannot be empty"),
        ({"issuer": ""}, "oidc.issuer is not set"),
        ({"audience": ""}, "oidc.audience is not set"),
        ({"jwks_url": "file:///etc/passwd"}, "no address"),
        ({"jwks_url": "id.example.com"}, "no address"),
        ({"jwks_url": "http://[::1"}, "no address"),
        ({"tenant_claim": "org", "tenant_field": "$or"}, "oidc.tenant_field"),
        ({"tenant_claim": "org", "tenant_field": "source"}, "oidc.tenant_field"),
    ],
)
def test_settings_that_would_let_in_strangers_are_refused(
    settings: dict[str, Any], said: str
) -> None:
    given = {"jwks_url": "https://id", "issuer": ISSUER, "audience": AUDIENCE, **settings}
    with pytest.raises(ConfigError, match=said):
        Oidc(OidcSettings(**given))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc, "find_spec", lambda name: None if name == "jwt" else object())
    with pytest.raises(MissingExtra, match="oidc"):
        Oidc(OidcSettings(jwks_url="https://id", issuer=ISSUER, audience=AUDIENCE))
