"""Who can reach the service, and whether that is meant."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from rag.errors import ConfigError

if TYPE_CHECKING:
    from rag.app import App
    from rag.service.keys import Keys
    from rag.settings import Settings

SEVERAL = "server"
"""The capability of a store that several processes may use at once."""


def on_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens at `host`."""
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None)
    except OSError:
        return False
    return all(ip_address(str(address[4][0]).partition("%")[0]).is_loopback for address in found)


def check_exposure(settings: Settings, keys: Keys) -> None:
    """Raise ConfigError where strangers could ask, and nobody said that they may."""
    service = settings.service
    if service.without_keys or on_loopback(service.host):
        return
    if not keys.any() and not settings.oidc.jwks_url:
        raise ConfigError(
            f"{service.host} can be reached from elsewhere, and there are no keys",
            "create one with: rag keys create NAME --scope read, or add --without-keys",
        )


def check_workers(app: App, workers: int) -> None:
    """Raise ConfigError where several processes would share what only one may have open."""
    if workers > 1 and SEVERAL not in app.backend.check().capabilities:
        raise ConfigError(
            f"{workers} workers cannot share the embedded store {app.settings.store!r}",
            "use one worker, which answers many questions at once, or a store with a server of "
            "its own (chroma with stores.chroma.host, milvus with stores.milvus.uri, pinecone)",
        )
