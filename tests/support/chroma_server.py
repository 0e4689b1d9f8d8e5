"""A real Chroma server for tests, in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers import get, wait_until


@contextmanager
def chroma_server(folder: Path, port: int = 0) -> Iterator[tuple[int, int]]:
    """(port, process id) of a server with its data in `folder`; it ends with the context."""
    port = port or free_port()
    arguments = ["run", "--host", "127.0.0.1", "--port", str(port), "--path", str(folder)]
    code = f"import sys; from chromadb.cli.cli import app; sys.argv[1:] = {arguments!r}; app()"
    # Its log would fill a pipe, and then it would stand still.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)
        try:
            heartbeat = f"http://127.0.0.1:{port}/api/v2/heartbeat"
            wait_until(lambda: process.poll() is not None or get(heartbeat) is not None, 60)
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(f"no server: {log.read()[-2000:].decode(errors='replace')}")
            yield port, process.pid
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
