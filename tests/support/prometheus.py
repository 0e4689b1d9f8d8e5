"""A real Prometheus for tests, that scrapes one address twice a second."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chroma_server import free_port
from servers import get, wait_until

_CONFIG = """
global: {{scrape_interval: 500ms}}
scrape_configs:
  - {{job_name: rag, static_configs: [{{targets: ["{target}"]}}]}}
"""


class Prometheus:
    """What it knows by now."""

    def __init__(self, url: str) -> None:
        self._url = url

    def value(self, query: str) -> float | None:
        """The value of a query with one result; None while it has none."""
        asked = urllib.parse.urlencode({"query": query})
        found: Any = get(f"{self._url}/api/v1/query?{asked}")
        results = found["data"]["result"] if found else []
        assert len(results) <= 1, results
        return float(results[0]["value"][1]) if results else None

    def wait_for(self, query: str, value: float, seconds: float = 30) -> None:
        """Return once the query has this value."""
        wait_until(lambda: self.value(query) == value, seconds)


@contextmanager
def prometheus(target: str, folder: Path) -> Iterator[Prometheus]:
    """A server in a process of its own, with its data in `folder`; it ends with the context."""
    folder.mkdir(parents=True)
    config = folder / "prometheus.yml"
    config.write_text(_CONFIG.format(target=target))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    log = folder / "log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [*command, f"--web.listen-address={address}"], stdout=written, stderr=written
        )
    try:
        wait_until(lambda: process.poll() is not None or _ready(address), 30)
        assert process.poll() is None, log.read_text()[-2000:]
        yield Prometheus(f"http://{address}")
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


def _ready(address: str) -> bool:
    found = get(f"http://{address}/api/v1/status/buildinfo")
    return bool(found) and found["status"] == "success"
