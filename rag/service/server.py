"""`rag serve`: the processes that listen."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.supervisors import Multiprocess

from rag.app import App
from rag.errors import ConfigError
from rag.service.api import create
from rag.service.exposure import check_exposure, check_workers
from rag.service.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag.settings import Settings

_METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus_client when it is imported


def serve(settings: Settings, say: Callable[[str], None] = lambda _: None) -> None:
    """Listen until the process is told to end; streams are finished first.

    Raises ConfigError for what would let strangers in, or let processes share an embedded store.
    """
    service = settings.service
    with closing(Keys(settings.data_dir / "service")) as keys:
        check_exposure(settings, keys)
    app = App(settings, say)
    try:
        check_workers(app, service.workers)
    finally:
        app.close()
    config = uvicorn.Config(
        partial(create, settings),
        factory=True,
        host=service.host,
        port=service.port,
        workers=service.workers,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(service.trusted_proxies),
        forwarded_allow_ips=service.trusted_proxies,
        timeout_graceful_shutdown=max(1, round(service.shutdown_s)),
    )
    try:
        socket = config.bind_socket()
    except SystemExit as error:  # uvicorn has logged why
        raise ConfigError(
            f"{service.host}:{service.port} cannot be listened on", "name another --port"
        ) from error
    say(f"listening on http://{service.host}:{socket.getsockname()[1]} (its description: /docs)")
    with ExitStack() as opened:
        opened.callback(socket.close)
        if service.workers == 1:
            uvicorn.Server(config).run([socket])
            return
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="rag-metrics-"))
        os.environ[_METRICS_DIR] = folder
        Multiprocess(config, [socket]).run()
