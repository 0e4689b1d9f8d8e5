"""What a caller may do and see."""

from __future__ import annotations

from typing import Any

import pytest

from rag.errors import Forbidden
from rag.filters import matches, parse
from rag.service.callers import ANYONE, Caller

ACME = Caller("k", frozenset({"read"}), frozenset({"a"}), {"tenant": "acme"})


def test_scopes_and_collections_are_held_to() -> None:
    ACME.require("read", "a")
    with pytest.raises(Forbidden, match="no scope 'write'"):
        ACME.require("write", "a")
    with pytest.raises(Forbidden, match="not for collection 'b'"):
        ACME.require("read", "b")
    admin = Caller("k", frozenset({"admin"}), frozenset({"a"}))
    admin.require("write", "a")
    with pytest.raises(Forbidden, match="not for collection 'b'"):
        admin.require("read", "b")
    ANYONE.require("admin", "b")


@pytest.mark.parametrize(
    "asked",
    [
        None,
        {},
        {"tenant": "globex"},
        {"tenant": {"$ne": "acme"}},
        {"$or": [{"tenant": "globex"}, {"lang": "en"}]},
        {"$not": {"tenant": "acme"}},
        {"tenant": {"$exists": False}},
    ],
)
def test_no_filter_shows_what_is_another_tenants(asked: Any) -> None:
    seen = ACME.within(parse(asked))
    assert seen is not None
    for fields in ({"tenant": "globex", "lang": "en"}, {"lang": "en"}):
        assert not matches(seen, fields)


def test_a_filter_narrows_what_a_tenant_sees() -> None:
    seen = ACME.within(parse({"lang": "en"}))
    assert seen is not None
    assert matches(seen, {"tenant": "acme", "lang": "en"})
    assert not matches(seen, {"tenant": "acme", "lang": "zh"})
    assert ANYONE.within(None) is None


def test_documents_get_the_values_of_the_tenant() -> None:
    caller = Caller("k", tenant={"tenant": "acme", "level": {"$eq": 3}})
    assert caller.stamp() == {"tenant": "acme", "level": 3}
    assert ANYONE.stamp() == {}


@pytest.mark.parametrize(
    "tenant",
    [
        {"tenant": {"$in": ["acme", "globex"]}},
        {"tenant": {"$eq": "acme", "$ne": "x"}},
        {"$or": [{"tenant": "acme"}]},
        {"source": "/a.txt"},  # a chunk's own field, which no metadata can say
        {"tenant": "x" * 3000},
    ],
)
def test_a_tenant_that_no_document_can_be_put_into_writes_none(tenant: Any) -> None:
    with pytest.raises(Forbidden, match="does not say what its documents are"):
        Caller("k", tenant=tenant).stamp()
