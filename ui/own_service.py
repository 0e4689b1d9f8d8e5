"""The service of a page that was told of no other: in this process, on a socket of its own."""

from __future__ import annotations

import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from rag.app import App
from rag.errors import RagError
from rag.service import logs
from rag.service.api import create
from rag.service.server import check_app

if TYPE_CHECKING:
    from rag.settings import Settings

_START_S = 60.0
_STOP_S = 15.0


class OwnService:
    """Listens on the UNIX socket `path`, in a folder that only this user can open.

    So it needs no key, whoever else has a key to the same data. Raises RagError for wrong settings.
    """

    def __init__(self, settings: Settings) -> None:
        alone = {
            "host": "127.0.0.1",
            "workers": 1,
            "without_keys": True,
            "rate_limit": "",
            "address_limit": "",
            "log_level": "warning",
        }
        service = settings.service.model_copy(update=alone)
        settings = settings.model_copy(update={"service": service})
        self._app = App(settings, logs.say)
        check_app(self._app)
        self._folder = tempfile.TemporaryDirectory(prefix="rag-ui-")
        self.path = Path(self._folder.name) / "service"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self.path))
        config = uvicorn.Config(
            create(settings, self._app),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(_STOP_S / 2),
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="service", daemon=True
        )

    def start(self) -> None:
        """Listen, and return once it does. Raises RagError if it cannot."""
        self._thread.start()
        waited = threading.Event()
        for _ in range(round(_START_S / 0.02)):
            if self._server.started:
                return
            if not self._thread.is_alive():
                break
            waited.wait(0.02)
        raise RagError("the service of the page did not start", "see the lines above")

    def stop(self) -> None:
        """Finish what is being written, and close everything."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(_STOP_S)
        self._app.close()
        self._socket.close()
        self._folder.cleanup()
