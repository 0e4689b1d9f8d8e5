"""`rag serve`: the processes that listen."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from rag import plugins
from rag.app import App
from rag.errors import ConfigError, RagError, StoreUnavailable
from rag.service import logs
from rag.service.api import create
from rag.service.desk import Desk
from rag.service.exposure import check_exposure, check_workers
from rag.service.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from rag.settings import Settings

_METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus_client when it is imported


def serve(settings: Settings, say: Callable[[str], None] = lambda _: None) -> None:
    """Listen until the process is told to end; streams are finished first.

    Raises ConfigError for what would let strangers in, or let processes share an embedded store,
    and for wrong settings, before it listens.
    """
    service = settings.service
    with closing(Keys(settings.data_dir / "service")) as keys:
        check_exposure(settings, keys)
    with ExitStack() as opened:
        app = App(settings, logs.say)
        opened.callback(app.close)
        check_workers(app, service.workers)
        listening = opened.enter_context(_listening(service.host, service.port))
        logs.configure(service.log_level, texts=service.log_texts)
        check_app(app)
        host = f"[{service.host}]" if ":" in service.host else service.host
        say(f"listening on http://{host}:{listening.getsockname()[1]} (its description: /docs)")
        if service.workers == 1:
            # Uvicorn raises the signal anew when it has stopped.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            config = _config(settings, create(settings, app))
            uvicorn.Server(config).run([listening])
            return
        app.close()
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="rag-metrics-"))
        os.environ[_METRICS_DIR] = folder
        config = _config(settings, partial(create, settings), factory=True)
        processes = Multiprocess(config, [listening])
        processes.run()
        if any(process.exitcode == STARTUP_FAILURE for process in processes.processes):
            raise RagError("the workers could not start", "their lines above say why")


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens already: no other process can get the port while this one starts."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({error.strerror or error})",
            "name another --port, or another --host",
        ) from error


def check_app(app: App) -> None:
    """Raise what a wrong setting would raise when a process starts, or at the first request."""

    async def desk() -> None:
        await Desk(app).aclose()

    asyncio.run(desk())
    settings = app.settings
    plugins.load("embedder", settings.embedder.kind)
    if settings.rerank.kind != "none":
        plugins.load("reranker", settings.rerank.kind)
    with suppress(StoreUnavailable):  # it may come later
        _ = app.backend
    _ = app.templates, app.generator


def _config(settings: Settings, app: Any, *, factory: bool = False) -> uvicorn.Config:
    service = settings.service
    return uvicorn.Config(
        app,
        factory=factory,
        workers=service.workers,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(service.trusted_proxies),
        forwarded_allow_ips=service.trusted_proxies,
        timeout_graceful_shutdown=max(1, round(service.shutdown_s)),
    )
