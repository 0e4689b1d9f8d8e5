"""The headers that say who asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from identity_provider import AUDIENCE, ISSUER, IdentityProvider

from rag.errors import Overloaded, Unauthenticated
from rag.service.authentication import Authentication
from rag.service.callers import ANYONE
from rag.service.keys import Keys
from rag.service.oidc import Oidc
from rag.settings import OidcSettings


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    with closing(Keys(tmp_path)) as opened:
        yield opened


async def test_a_key_is_taken_from_either_header(keys: Keys) -> None:
    key, presented = keys.create("shop")
    asked = Authentication(keys, None, required=True)
    for authorization in (f"Bearer {presented}", f"bearer   {presented} "):
        assert (await asked.caller(authorization, None)).id == key.id
    assert (await asked.caller(None, presented)).id == key.id
    with pytest.raises(Unauthenticated, match="no bearer key"):
        await asked.caller(f"Basic {presented}", None)
    other, second = keys.create("other")
    assert (await asked.caller("Basic dXNlcjpwdw==", presented)).id == key.id
    assert (await asked.caller(f"Bearer {presented}", second)).id == other.id


async def test_nobody_gets_in_without_a_key_unless_none_is_required(keys: Keys) -> None:
    with pytest.raises(Unauthenticated, match="there is no key") as raised:
        await Authentication(keys, None, required=True).caller(None, None)
    assert "rag keys create" in raised.value.hint
    assert await Authentication(keys, None, required=False).caller(None, None) is ANYONE


async def test_where_there_are_no_keys_any_is_as_good_as_none(keys: Keys) -> None:
    assert await Authentication(keys, None, required=False).caller("Bearer unused", None) is ANYONE
    with pytest.raises(Unauthenticated):
        await Authentication(keys, None, required=True).caller("Bearer unused", None)


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(
    "headers",
    [
        ("Bearer rag_nothing", None),
        ("Bearer ", None),
        ("Bearer", None),
        ("", None),
        ("Basic dXNlcjpwdw==", None),
        ("Bearer a.b.c", None),
        (None, ""),
        (None, "密钥\0" * 300_000),
    ],
    ids=["wrong", "blank", "scheme", "empty", "basic", "token", "empty key", "long"],
)
async def test_something_wrong_is_refused_even_where_nothing_is_required(
    keys: Keys, headers: tuple[str | None, str | None], required: bool
) -> None:
    keys.create("shop")
    with pytest.raises(Unauthenticated) as raised:
        await Authentication(keys, None, required).caller(*headers)
    assert raised.value.hint
    assert len(str(raised.value)) < 200


async def test_keys_and_tokens_go_side_by_side(keys: Keys) -> None:
    key, presented = keys.create("shop")
    with IdentityProvider() as provider:
        settings = OidcSettings(jwks_url=provider.url, issuer=ISSUER, audience=AUDIENCE)
        asked = Authentication(keys, Oidc(settings), required=True)
        assert (await asked.caller(f"Bearer {provider.token()}", None)).id == "oidc:ann"
        assert (await asked.caller(None, provider.token(sub="anonymous"))).id != ANYONE.id
        provider.stop()
        assert (await asked.caller(f"Bearer {presented}", None)).id == key.id
        fresh = Authentication(keys, Oidc(settings), required=True)
        with pytest.raises(Overloaded):
            await fresh.caller(f"Bearer {provider.token()}", None)
        assert (await fresh.caller(f"Bearer {presented}", None)).id == key.id
