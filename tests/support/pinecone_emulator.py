"""Pinecone on 127.0.0.1: what the real SDK 10 speaks (API version 2026-07), control and data plane.

The control plane is at `url`; each index has a port of its own, as each has a host of its own in
the cloud. Every request and response is compared with Pinecone's OpenAPI descriptions where they
lie beside the repository; what differs is in `violations`.

    python -m pinecone_emulator --port 0 --data FOLDER

runs it as a process that prints its address, and ends when its standard input does. With a data
folder, what it acknowledged is there again at the next start.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pinecone_emulator_filters import Refused
from pinecone_emulator_index import Body, Conflict, Index, NotFound, Rules
from pinecone_emulator_schema import DESCRIPTIONS, ControlPlane, DataPlane

MOST_BYTES = 2 * 1024 * 1024  # of an upsert
LONGEST_URL = 16_000
_READS = {"/query", "/vectors/fetch_by_metadata", "/describe_index_stats"}


@dataclass(frozen=True)
class Request:
    """A request as it came in; `index` is empty for the control plane."""

    index: str
    method: str
    path: str
    query: dict[str, list[str]] = field(default_factory=dict)
    body: Any = None
    size: int = 0


class PineconeEmulator:
    """A project of its own. Use it as a context manager.

    `requests` is what came in. `rules` says how late writes are seen, and the like. `before` is
    called with each request, in the thread that answers it.
    """

    def __init__(
        self,
        *,
        api_key: str = "a-key",
        rules: Rules | None = None,
        data: Path | None = None,
        port: int = 0,
    ) -> None:
        self.api_key = api_key
        self.rules = rules or Rules()
        self.requests: list[Request] = []
        self.violations: list[str] = []
        self.before: Callable[[Request], object] = lambda _request: None
        self._failures: list[tuple[str, int]] = []
        self._indexes: dict[str, tuple[Index, Body]] = {}
        self._servers: dict[str, _Server] = {}
        self._lock = threading.RLock()
        checked = DESCRIPTIONS.exists()
        self._data_plane = DataPlane() if checked else None
        self._control_plane = ControlPlane() if checked else None
        self._journal = None
        if data is not None:
            data.mkdir(parents=True, exist_ok=True)
            self._replay(data / "journal.jsonl")
            self._journal = (data / "journal.jsonl").open("a", encoding="utf-8")
        self.url = self._serve("", port)

    def __enter__(self) -> PineconeEmulator:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers.values():
            server.stop()
        if self._journal is not None:
            self._journal.close()

    def fail(self, *statuses: int, path: str = "") -> None:
        """Answer the next requests, to paths that begin like this, with these statuses."""
        self._failures += [(path, status) for status in statuses]

    def forgive(self) -> None:
        """Fail no more."""
        self._failures.clear()

    def sent(self, path: str) -> list[Request]:
        """The requests to this path of an index."""
        return [request for request in self.requests if request.index and request.path == path]

    def model(self, index: str) -> Body:
        """What the control plane says of an index; may be changed."""
        return self._indexes[index][1]

    # --- one request

    def answer(self, request: Request, headers: Any) -> tuple[int, Any, dict[str, str]]:
        """Status, body (text is sent as it is) and headers."""
        self.requests.append(request)
        self.before(request)
        if headers.get("Api-Key") != self.api_key:
            return 401, "Unauthorized", {}
        with self._lock:
            for number, (path, status) in enumerate(self._failures):
                if request.path.startswith(path):
                    del self._failures[number]
                    body, _ = self._error(request, status, f"told to answer {status}")
                    return status, body, {"Retry-After": "0"}
            if request.index and self._data_plane:
                wrong = self._data_plane.request(
                    request.method, request.path, request.query, headers, request.body
                )
                if found := list(wrong):
                    self.violations += found
                    return 400, *self._error(request, 400, f"against the description: {found}")
            status, body, extra = self._carried_out(request)
        if request.index and self._data_plane:
            self.violations += self._data_plane.response(request.method, request.path, status, body)
        elif self._control_plane:
            self.violations += self._control_plane.response(status, body)
        return status, body, extra

    def _carried_out(self, request: Request) -> tuple[int, Any, dict[str, str]]:
        try:
            if request.path == "/vectors/upsert" and request.size > MOST_BYTES:
                raise Refused(f"Request size {request.size} exceeds the maximum of 2MB")
            status, body, headers = self._done(request)
        except Refused as error:
            return 400, *self._error(request, 400, str(error))
        except NotFound as error:
            return 404, *self._error(request, 404, str(error))
        except Conflict as error:
            return 409, *self._error(request, 409, str(error))
        except Exception:  # a fault of the emulator must fail the test that met it
            self.violations.append(traceback.format_exc())
            return 500, *self._error(request, 500, "the emulator is broken")
        if self._journal and request.method != "GET" and request.path not in _READS:
            self._journal.write(json.dumps(request.__dict__) + "\n")
            self._journal.flush()
        return status, body, headers

    def _done(self, request: Request) -> tuple[int, Any, dict[str, str]]:
        if not request.index:
            return *self._control(request), {}
        if request.index not in self._indexes:
            raise NotFound(f"Index {request.index} not found")
        body, headers = _data(self._indexes[request.index][0], request)
        return 200, body, headers

    def _control(self, request: Request) -> tuple[int, Any]:
        match request.method, request.path.split("/")[1:]:
            case "GET", ["indexes"]:
                return 200, {"indexes": [model for _, model in self._indexes.values()]}
            case "POST", ["indexes"]:
                return 201, self._create(request.body)
            case "GET", ["indexes", name]:
                return 200, self._known(name)
            case "DELETE", ["indexes", name]:
                self._known(name)
                del self._indexes[name]
                return 202, {}
        raise NotFound(f"{request.method} {request.path} is not emulated")

    def _known(self, name: str) -> Body:
        if name not in self._indexes:
            raise NotFound(f"Resource {name} not found")
        return self.model(name)

    def _create(self, body: Body) -> Body:
        name, deployment, fields = body["name"], body["deployment"], body["schema"]["fields"]
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,43}[a-z0-9])?", name):
            raise Refused("Name must consist of lower case alphanumeric characters or '-'")
        if name in self._indexes:
            raise Conflict("Resource already exists.")
        if list(fields) != ["_values"] or deployment["deployment_type"] != "managed":
            raise Refused("only serverless indexes of the vectors API are emulated")
        values = fields["_values"]
        model = {
            "name": name,
            "host": self._serve(name, 0),
            "status": {"ready": True, "state": "Ready"},
            "schema": {"fields": {"_values": values}},
            "deployment": deployment,
            "read_capacity": {"mode": "OnDemand", "status": {"state": "Ready"}},
            "deletion_protection": "disabled",
            "tags": None,
        }
        index = Index(values["dimension"], values["metric"], self.rules)
        self._indexes[name] = index, model
        return {**model, "status": {"ready": False, "state": "Initializing"}}

    @staticmethod
    def _error(request: Request, status: int, message: str) -> tuple[Any, dict[str, str]]:
        if status == 429:
            return "Too many requests", {}
        codes = {400: (3, "INVALID_ARGUMENT"), 404: (5, "NOT_FOUND"), 409: (6, "ALREADY_EXISTS")}
        number, name = codes.get(status, (13, "UNKNOWN"))
        if request.index:
            return {"code": number, "message": message, "details": []}, {}
        return {"status": status, "error": {"code": name, "message": message}}, {}

    # --- servers and data

    def _serve(self, index: str, port: int) -> str:
        if index not in self._servers:
            self._servers[index] = _Server(self, index, port)
        return self._servers[index].url

    def _replay(self, path: Path) -> None:
        with suppress(FileNotFoundError), path.open(encoding="utf-8") as lines:
            for line in lines:
                self._done(Request(**json.loads(line)))


def _data(index: Index, request: Request) -> tuple[Body, dict[str, str]]:
    def given(name: str, default: str = "") -> str:
        return request.query.get(name, [default])[0]

    match request.method, request.path.split("/")[1:]:
        case "POST", ["vectors", ("upsert" | "update" | "delete" | "fetch_by_metadata") as name]:
            found: tuple[Body, dict[str, str]] = getattr(index, name)(request.body)
            return found
        case "POST", [("query" | "describe_index_stats") as name]:
            found = getattr(index, name)(request.body)
            return found
        case "GET", ["vectors", "fetch"]:
            return index.fetch(given("namespace"), request.query["ids"])
        case "GET", ["vectors", "list"]:
            limit, after = int(given("limit", "100")), given("paginationToken")
            return index.list_ids(given("namespace"), given("prefix"), limit, after)
        case "GET", ["namespaces"]:
            limit, after = int(given("limit", "100")), given("paginationToken")
            return index.list_namespaces(given("prefix"), limit, after)
        case "POST", ["namespaces"]:
            return index.create_namespace(request.body)
        case "GET", ["namespaces", name]:
            return index.describe_namespace(unquote(name))
        case "DELETE", ["namespaces", name]:
            return index.delete_namespace(unquote(name))
    raise NotFound(f"{request.method} {request.path} is not emulated")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, emulator: PineconeEmulator, index: str, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.emulator, self.index = emulator, index
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is none."""
        if not isinstance(sys.exc_info()[1], OSError):
            self.emulator.violations.append(traceback.format_exc())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(
            self.server.index,
            self.command,
            url.path,
            parse_qs(url.query, keep_blank_values=True),
            json.loads(data) if data else None,
            len(data),
        )
        if len(self.path) > LONGEST_URL:
            self._send(414, "URI Too Long", {})
        else:
            self._send(*self.server.emulator.answer(request, self.headers))

    do_POST = do_DELETE = do_GET

    def _send(self, status: int, body: Any, headers: dict[str, str]) -> None:
        text = isinstance(body, str)
        data = body.encode() if text else json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if text else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self._headers_buffer += [b"\r\n", data]  # one packet
        self.flush_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing: the tests look at `requests`."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--api-key", default="a-key")
    options = parser.parse_args()
    with PineconeEmulator(
        api_key=options.api_key, data=options.data, port=options.port
    ) as emulator:
        print(emulator.url, flush=True)
        sys.stdin.read()
