"""Who may open the page, and what is said where it cannot be opened."""

from __future__ import annotations

import socket
import stat
from contextlib import closing
from pathlib import Path

import pytest
from commands import rag
from http_client import client
from servers import CACHE
from service import new_key, service

from rag.settings import load
from ui.client import Service, ServiceError
from ui.own_service import OwnService


@pytest.mark.parametrize(
    "arguments",
    [
        ("--host", "0.0.0.0"),
        ("--host", "0.0.0.0", "--api-url", "http://127.0.0.1:9", "--api-key", "rag_x"),
    ],
)
def test_others_are_let_in_only_where_that_is_said(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = rag("--data-dir", tmp_path, "ui", "--no-browser", *arguments)
    assert done.status == 2
    assert "--without-keys" in done.error


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = rag("--data-dir", tmp_path, "ui", "--no-browser", "--port", port)
    assert done.status == 2
    assert f"127.0.0.1:{port}" in done.error


def test_a_wrong_setting_is_said_before_the_page_is_there(tmp_path: Path) -> None:
    done = rag("--data-dir", tmp_path, "--set", "store=nothing", "ui", "--no-browser")
    assert done.status == 2
    assert "'nothing'" in done.error


def test_the_pages_own_service_lets_nobody_else_in(tmp_path: Path) -> None:
    """Whoever has keys to the same data: the socket is in a folder of this user alone."""
    new_key(tmp_path)
    values = {"data_dir": tmp_path, "models_dir": CACHE / "models", "service.host": "0.0.0.0"}
    own = OwnService(load(values).settings)
    own.start()
    try:
        assert stat.S_IMODE(own.path.parent.stat().st_mode) == 0o700
        with closing(Service("http://localhost", socket=own.path)) as page:
            assert page.scopes() == ["read", "write", "admin"]
    finally:
        own.stop()
    assert not own.path.parent.exists()


def test_what_a_key_allows_is_told(tmp_path: Path) -> None:
    key = new_key(tmp_path, "--scope", "read", "--collection", "docs", "--tenant", '{"t": "a"}')
    with service(tmp_path, until="/health/live") as running:
        with client(running.url, key) as api:
            said = api.get("/caller").json()
            assert said["scopes"] == ["read"]
            assert (said["collections"], said["tenant"]) == (["docs"], True)
        with closing(Service(running.url)) as nobody, pytest.raises(ServiceError) as refused:
            nobody.scopes()
        assert refused.value.code == "unauthenticated"


def test_what_is_no_service_is_said_to_be_none(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bare:
        port = bare.getsockname()[1]
    nothing = Service(f"http://127.0.0.1:{port}")
    with closing(nothing), pytest.raises(ServiceError) as refused:
        nothing.collections()
    assert refused.value.code == "unreachable"
    assert str(port) in str(refused.value)
