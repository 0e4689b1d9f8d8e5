"""Who may open the page, and what is said where it cannot be opened."""

from __future__ import annotations

import socket
import stat
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

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


@pytest.mark.parametrize("url", ["foo", "localhost:8080", "ftp://x", "http://"])
def test_what_is_no_address_is_said(tmp_path: Path, url: str) -> None:
    done = rag("--data-dir", tmp_path, "ui", "--no-browser", "--api-url", url)
    assert done.status == 2
    assert "is no address" in done.error


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


@pytest.mark.parametrize("key", ["中文密钥", "rag_secret\r", "rag_\x01"])
def test_what_cannot_be_a_key_is_refused_and_not_shown(key: str) -> None:
    page = Service("http://127.0.0.1:9", key)
    with closing(page), pytest.raises(ServiceError) as refused:
        page.scopes()
    assert refused.value.code == "unauthenticated"
    assert key not in str(refused.value)


def test_the_page_is_not_for_other_sites(tmp_path: Path) -> None:
    """A name that leads here (DNS rebinding) is not the page's: its socket is refused."""
    with service(tmp_path, "--no-browser", command="ui", until="/_stcore/health") as running:
        assert upgraded(running.url, "evil.example") == 403
        assert upgraded(running.url, "127.0.0.1") == 101


def upgraded(url: str, host: str) -> int:
    """The status of a request for a WebSocket of the page, by a browser that is at `host`."""
    address = urlsplit(url)
    lines = [
        "GET /_stcore/stream HTTP/1.1",
        f"Host: {host}:{address.port}",
        f"Origin: http://{host}:{address.port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    with socket.create_connection((address.hostname or "", address.port or 0), 10) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return int(connection.recv(1000).split()[1])


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
