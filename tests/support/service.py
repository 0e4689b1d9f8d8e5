"""`rag serve` for tests: a process of its own, and a folder of data that it can answer from."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from commands import rag
from servers import CACHE, wait_until

SAMPLE = Path(__file__).parents[2] / "sample_corpus"
_START_S = 60
_LISTENING = re.compile(r"listening on (http://\S+)")


class Service:
    """A process that listens at `url`. `stderr` is what it has written there up to now."""

    def __init__(
        self,
        data_dir: Path,
        arguments: tuple[str, ...],
        settings: Mapping[str, object],
        environment: Mapping[str, str],
        command: str,
    ) -> None:
        assigned = [
            part for name, value in settings.items() for part in ("--set", f"{name}={value}")
        ]
        self.data_dir = data_dir
        self._lines: list[str] = []
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "rag.cli", "--data-dir", str(data_dir)),
                *(*assigned, *command.split(), "--port", "0", *arguments),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**_environment(), **environment},
        )
        self._drain = threading.Thread(target=self._read, daemon=True)
        self._drain.start()
        self.url = ""

    @property
    def stderr(self) -> str:
        """What it has written up to now: logs, a JSON object a line, and lines of `rag: `."""
        return "".join(self._lines)

    def wait(self, path: str = "/health/ready") -> None:
        """Return once `path` answers 200. RuntimeError with its last words if it ends instead."""
        wait_until(lambda: self._listens() or self.process.poll() is not None, _START_S)
        wait_until(lambda: self.process.poll() is not None or self._answers(path), _START_S)
        if self.process.poll() is not None:
            self._drain.join(5)
            raise RuntimeError(f"no service: {self.stderr[-3000:]}")

    def stop(self) -> int:
        """End it as `kill` does, with SIGTERM; its exit status. AssertionError if it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(45)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"it goes on after SIGTERM: {self.stderr[-3000:]}") from None
        self._closed()
        return status

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()
        self._closed()

    def _closed(self) -> None:
        self._drain.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append(line)

    def _listens(self) -> bool:
        said = _LISTENING.search(self.stderr)
        self.url = said[1] if said else ""
        return bool(said)

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=5) as reply:
                return bool(reply.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            pass
        return False


@contextmanager
def service(
    data_dir: Path,
    *arguments: str,
    settings: Mapping[str, object] | None = None,
    until: str = "/health/ready",
    command: str = "serve",
    **environment: str,
) -> Iterator[Service]:
    """`rag serve` over a folder of data on a free port of 127.0.0.1, once `until` answers 200.

    `settings` by dotted names: {"service.rate_limit": "5/minute"}. It ends with SIGTERM.
    """
    running = Service(data_dir, arguments, settings or {}, environment, command)
    try:
        running.wait(until)
        yield running
    finally:
        running.stop()


def sample_data(data_dir: Path) -> Path:
    """A folder of data, not there yet, whose collection "default" is the sample corpus."""
    shutil.copytree(_ingested(), data_dir)
    return data_dir


def ingest(data_dir: Path, path: Path, *options: str) -> None:
    """Take in a file or a folder; `options` are those of `rag ingest`."""
    done = rag("--data-dir", data_dir, "ingest", path, *options, **_environment())
    assert done.status == 0, done.err


def new_key(data_dir: Path, *options: str) -> str:
    """A key as applications present it; `options` are those of `rag keys create`."""
    made = rag("--data-dir", data_dir, "keys", "create", "test", *options)
    assert made.status == 0, made.err
    return made.out.strip()


def _environment() -> dict[str, str]:
    """Without the settings of who runs the tests; for fixtures that are made before each test's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAG_")}
    return {**kept, "RAG_MODELS_DIR": str(CACHE / "models")}


@functools.cache
def _ingested() -> Path:
    """The sample corpus, ingested once in a run of tests: it takes seconds."""
    folder = tempfile.mkdtemp(prefix="rag-sample-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    data_dir = Path(folder) / "data"
    ingest(data_dir, SAMPLE)
    return data_dir
