"""`rag keys`: keys are made, listed and revoked on the command line."""

from __future__ import annotations

import re
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest
from commands import rag

from rag.service.keys import Keys

TENANT = '{"tenant": "acme"}'


def test_a_key_is_shown_once_and_works(tmp_path: Path) -> None:
    done = rag("keys", "create", "商店", "--scope", "read", "--scope", "write", "--tenant", TENANT)
    assert done.status == 0
    assert re.fullmatch(r"rag_[0-9a-f]{16}_[A-Za-z0-9_-]{43}\n", done.out)
    assert "not shown again" in done.err
    secret = done.out.strip().rsplit("_", 1)[1]
    assert secret not in done.err
    for listed in (rag("keys", "list"), rag("keys", "list", "--json")):
        assert "商店" in listed.out
        assert secret not in listed.out
    with closing(Keys(tmp_path / "data" / "service")) as keys:
        caller = keys.find(done.out.strip())
    assert caller is not None
    assert caller.scopes == {"read", "write"}
    assert caller.tenant == {"tenant": "acme"}


def test_the_list_says_everything_but_the_secret() -> None:
    given = ("--collection", "b", "--collection", "a", "--expires-days", "90")
    made = rag("keys", "create", "shop", *given, "--json").json
    rag("keys", "create", "chat")
    assert rag("keys", "revoke", made["id"]).out == f"revoked {made['id']}\n"
    shop, chat = rag("keys", "list", "--json").json
    assert set(shop) == {
        *("id", "name", "scopes", "collections", "tenant", "created", "expires", "revoked")
    }
    assert set(made) == {*shop, "key"}
    assert (shop["name"], shop["scopes"], shop["collections"]) == ("shop", ["read"], ["a", "b"])
    assert shop["tenant"] == {}
    expires = datetime.fromisoformat(shop["expires"]).timestamp()
    assert abs(expires - time.time() - 90 * 86_400) < 60
    assert shop["revoked"]
    assert (chat["collections"], chat["expires"], chat["revoked"]) == (None, None, None)


@pytest.mark.parametrize(
    "arguments",
    [
        (" ",),
        ("shop", "--scope", "root"),
        ("shop", "--collection", "../x"),
        ("shop", "--collection", ""),
        ("shop", "--tenant", ""),
        ("shop", "--tenant", "{}"),
        ("shop", "--tenant", "null"),
        ("shop", "--tenant", "acme"),
        ("shop", "--tenant", '{"tenant": {"$like": "a"}}'),
        ("shop", "--expires-days", "0"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(arguments: tuple[str, ...]) -> None:
    done = rag("keys", "create", *arguments)
    assert done.status == 2
    assert done.error
    assert done.out == ""
    assert rag("keys", "list", "--json").json == []


def test_an_unknown_key_cannot_be_revoked() -> None:
    done = rag("keys", "revoke", "nope")
    assert done.status == 1
    assert "there is no key 'nope'; see: rag keys list" in done.error
