"""`rag ui`: starts the page's own service, if it is to have one, and Streamlit."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rag.errors import ConfigError
from rag.service import logs
from rag.service.exposure import on_loopback
from ui import connection
from ui.client import Service
from ui.connection import Connection

if TYPE_CHECKING:
    from rag.settings import Settings, UiSettings

PAGE = Path(__file__).with_name("page.py")

_LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]
_THEME = {
    "font": '"Source Sans", "Noto Sans SC", "Noto Sans CJK SC", "PingFang SC", '
    '"Microsoft YaHei", sans-serif',
    "baseRadius": "medium",
    "light.primaryColor": "#0b6e6e",
    "light.backgroundColor": "#ffffff",
    "light.secondaryBackgroundColor": "#f2f5f5",
    "light.textColor": "#1c2526",
    "dark.primaryColor": "#4fb8b2",
    "dark.backgroundColor": "#14191a",
    "dark.secondaryBackgroundColor": "#1f2728",
    "dark.textColor": "#e6ecec",
}


def launch(settings: Settings, say: Callable[[str], None] = lambda _: None) -> None:
    """Serve the page until the process is told to end.

    Raises ConfigError for what would let strangers in, and for a port that is taken.
    """
    chosen = settings.ui
    _check_address(chosen.api_url)
    _check_exposure(chosen)
    port = _free(chosen.host, chosen.port)
    logs.configure("warning", texts=settings.service.log_texts)
    with ExitStack() as opened:
        connection.use(_connected(settings, opened))
        opened.callback(connection.use, None)
        from streamlit.web import bootstrap

        import_module("ui.parts")  # now, or the first who opens the page waits for it
        flags = _flags(chosen, port, settings.service.max_upload_mb)
        bootstrap.load_config_options(flags)
        bootstrap.prepare_streamlit_environment(str(PAGE))
        host = f"[{chosen.host}]" if ":" in chosen.host else chosen.host
        say(f"listening on http://{host}:{port}")
        bootstrap.run(str(PAGE), False, [], flags)


def _connected(settings: Settings, opened: ExitStack) -> Connection:
    chosen, limit = settings.ui, settings.service.max_upload_mb
    if chosen.api_url:
        key = chosen.api_key.get_secret_value().strip()
        if not (key.isascii() and key.isprintable()):
            raise ConfigError("ui.api_key is no key", "rag keys create makes one")
        service = Service(chosen.api_url, key)
        return Connection(service, max_upload_mb=limit)
    from ui.own_service import OwnService

    own = OwnService(settings)
    opened.callback(own.stop)
    own.start()
    service = Service("http://localhost", socket=own.path)
    service.ready()  # embeds a word: the model is loaded now, and not beside the first page
    return Connection(service, own=True, max_upload_mb=limit)


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if url and not (parts.scheme in ("http", "https") and parts.hostname):
        raise ConfigError(f"{url!r} is no address", "write it like http://127.0.0.1:8080")


def _check_exposure(chosen: UiSettings) -> None:
    open_to_all = not chosen.api_url or bool(chosen.api_key.get_secret_value())
    if open_to_all and not chosen.without_keys and not on_loopback(chosen.host):
        raise ConfigError(
            f"{chosen.host} can be reached from elsewhere, and whoever opens the page may do all "
            "that it may",
            "name a service that has keys with --api-url, and no --api-key: each is then asked for "
            "one; or add --without-keys",
        )


def _free(host: str, port: int) -> int:
    """The port, or for 0 one that is free. Streamlit would take another one without a word."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family) as taken:
            return int(taken.getsockname()[1])
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({error.strerror or error})",
            "name another --port, or another --host",
        ) from error


def _flags(chosen: UiSettings, port: int, max_upload_mb: int) -> dict[str, Any]:
    """Streamlit's settings. Nothing leaves the machine, and no error shows a trace."""
    screen = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return {
        "browser.gatherUsageStats": False,
        "client.allowedOrigins": [],
        "client.showErrorDetails": "none",
        "client.showErrorLinks": False,
        "client.toolbarMode": "minimal",
        "global.developmentMode": False,
        "logger.hideWelcomeMessage": True,
        "logger.level": "error",
        "runner.magicEnabled": False,
        "server.address": chosen.host,
        # Otherwise any web site could have its own name lead to this machine, and ask.
        "server.allowedHosts": _LOOPBACK if on_loopback(chosen.host) else [],
        "server.allowRunOnSave": False,
        "server.fileWatcherType": "none",
        "server.headless": not (chosen.browser and (screen or os.name != "posix")),
        "server.maxUploadSize": max_upload_mb,
        "server.port": port,
        "server.showEmailPrompt": False,
        **{f"theme.{name}": value for name, value in _THEME.items()},
    }
