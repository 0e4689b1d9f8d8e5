"""Traces as a collector gets them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from rag.service import tracing
from rag.service.tracing import Tracing
from rag.types import Answer, Usage

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
ANSWER = Answer(
    question="Who?",
    text="A secret text.",
    citations=(),
    abstained=False,
    model="qwen",
    degraded=("cache",),
    usage=Usage(900, 120),
)
NOW = time.time_ns()
MS = 1_000_000
LAPS = [
    ("search", NOW, NOW + 2 * MS),
    ("embed", NOW + 2 * MS, NOW + 9 * MS),
    ("search", NOW + 9 * MS, NOW + 12 * MS),
    ("rerank", NOW + 12 * MS, NOW + 40 * MS),
    ("wait", NOW + 40 * MS, NOW + 60 * MS),
    ("generate", NOW + 60 * MS, NOW + 400 * MS),
]


class Collector:
    """An OTLP collector: what it was sent, decoded."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator[Collector]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with Collector().running() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.url)
        yield running


def attributes(span: Any) -> dict[str, Any]:
    found = {}
    for item in span.attributes:
        kind = item.value.WhichOneof("value")
        value = getattr(item.value, kind)
        values = [v.string_value for v in value.values] if kind == "array_value" else value
        found[item.key] = values
    return found


def service(traces: Tracing) -> FastAPI:
    api = FastAPI(telemetry=traces.fastapi)
    facts: dict[str, Any] = {"collection": "handbook", "k": 5, "embedder": "minilm"}

    @api.get("/collections/{name}")
    async def whole(name: str) -> dict[str, Any]:
        traces.stages(LAPS, **facts, answer=ANSWER)
        return {"trace_id": tracing.trace_id(), "headers": tracing.headers()}

    @api.get("/stream")
    async def streamed() -> StreamingResponse:
        async def pieces() -> Any:
            yield "a"
            traces.stages(LAPS, **facts)

        return StreamingResponse(pieces())

    @api.get("/health/live")
    async def live() -> str:
        return tracing.trace_id()

    return api


async def ask(api: FastAPI, path: str, **headers: str) -> Any:
    transport = httpx2.ASGITransport(app=api)
    async with httpx2.AsyncClient(transport=transport, base_url="http://rag") as client:
        response = await client.get(path, headers=headers)
        assert response.status_code == 200
        return response.json() if "json" in response.headers.get("content-type", "") else None


async def test_a_request_goes_on_with_the_trace_of_its_caller(collector: Collector) -> None:
    traces = Tracing.of_environment()
    path = "/collections/handbook"
    reply = await ask(service(traces), path, traceparent=f"00-{TRACE}-{PARENT}-01")
    traces.close()
    spans = {(span.name, span.start_time_unix_nano): span for span in collector.spans()}
    [request] = [s for s in spans.values() if s.name == "GET /collections/{name}"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    children = [span for span in spans.values() if span is not request]
    assert {span.trace_id.hex() for span in children} == {TRACE}
    assert {span.parent_span_id for span in children} == {request.span_id}
    assert reply["trace_id"] == TRACE
    assert reply["headers"]["traceparent"] == f"00-{TRACE}-{request.span_id.hex()}-01"


async def test_each_stage_has_its_true_times(collector: Collector) -> None:
    traces = Tracing.of_environment()
    await ask(service(traces), "/collections/handbook")
    traces.close()
    children = [span for span in collector.spans() if span.parent_span_id]
    times = [(s.name, s.start_time_unix_nano, s.end_time_unix_nano) for s in children]
    expected = [*LAPS[:4], ("generate", NOW + 40 * MS, NOW + 400 * MS)]
    assert sorted(times) == sorted(expected)


async def test_attributes_have_standard_names_and_no_text(collector: Collector) -> None:
    traces = Tracing.of_environment()
    await ask(service(traces), "/collections/handbook")
    traces.close()
    found = {span.name: attributes(span) for span in collector.spans()}
    assert found["generate"] == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "qwen",
        "gen_ai.usage.input_tokens": 900,
        "gen_ai.usage.output_tokens": 120,
    }
    assert found["embed"]["gen_ai.request.model"] == "minilm"
    assert found["search"]["gen_ai.data_source.id"] == "handbook"
    request = found["GET /collections/{name}"]
    assert request["rag.degraded"] == ["cache"]
    assert request["http.route"] == "/collections/{name}"
    assert request["http.response.status_code"] == 200
    sent = b"".join(request.SerializeToString() for request in collector.requests)
    assert b"secret" not in sent
    assert b"Who?" not in sent


async def test_a_streamed_reply_is_traced_until_its_end(collector: Collector) -> None:
    traces = Tracing.of_environment()
    await ask(service(traces), "/stream")
    traces.close()
    spans = collector.spans()
    [request] = [span for span in spans if span.name == "GET /stream"]
    assert len([span for span in spans if span.parent_span_id == request.span_id]) == 5


async def test_the_service_has_a_name_and_probes_are_not_traced(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def name() -> str:
        collector.requests.clear()
        traces = Tracing.of_environment()
        await ask(service(traces), "/health/live")
        await ask(service(traces), "/collections/a")
        traces.close()
        assert "GET /health/live" not in {span.name for span in collector.spans()}
        about = collector.requests[0].resource_spans[0].resource
        return str(attributes(about)["service.name"])

    assert await name() == "rag"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "answers")
    assert await name() == "answers"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none"), ("", "")],
)
async def test_nothing_is_traced_unless_it_is_asked_for(
    variable: str, value: str, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv(variable, value)
    else:
        monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    traces = Tracing.of_environment()
    reply = await ask(service(traces), "/collections/a", traceparent=f"00-{TRACE}-{PARENT}-01")
    traces.close()
    assert collector.requests == []
    assert reply == {"trace_id": "", "headers": {}}
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


@pytest.mark.parametrize("exporter", ["nosuch", "otlp,nosuch"])
async def test_an_exporter_that_is_not_there_is_a_warning(
    exporter: str,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", exporter)
    traces = Tracing.of_environment()
    await ask(service(traces), "/collections/a")
    traces.close()
    assert "no exporter 'nosuch'" in capsys.readouterr().out
    assert bool(collector.requests) == ("otlp" in exporter)


async def test_a_collector_that_does_not_answer_delays_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setattr(tracing, "_FLUSH_S", 0.5)
        traces = Tracing.of_environment()
        started = time.monotonic()
        await ask(service(traces), "/collections/a")
        asked = time.monotonic() - started
        traces.close()
        closed = time.monotonic() - started - asked
        sending = [t for t in threading.enumerate() if t.name.startswith("OtelBatch")]
        assert sending  # or it would have proved nothing
    assert asked < 1.5
    assert closed < 1.5
    for thread in sending:
        thread.join(10)
