"""OpenTelemetry traces: a span for each request, and in it one for each stage of the answer.

Nothing is traced unless the environment says where to, in the words of OpenTelemetry's SDK, such
as OTEL_EXPORTER_OTLP_ENDPOINT, and the extra "otel" is installed. FastAPI makes the span of a
request, which continues the trace of the caller's `traceparent`; this adds the stages.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias

from opentelemetry import propagate, trace

from rag import __version__
from rag.service import logs
from rag.types import Answer

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

Lap: TypeAlias = tuple[str, int, int]
"""A stage, and when it began and ended, in nanoseconds since the epoch."""

_Attributes: TypeAlias = dict[str, str | bool | int | float | Sequence[str]]

_PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
_UNTRACED = frozenset(("/metrics", "/health", "/health/live", "/health/ready"))
_FLUSH_S = 5.0


class Tracing:
    """The traces of one process. Spans are sent by a thread; no request waits for that."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        """Without a provider, that of the process is used, if it has one: see of_environment."""
        self._provider = provider
        self._tracer = (provider or trace).get_tracer("rag", __version__)

    @classmethod
    def of_environment(cls) -> Tracing:
        """As OTEL_* say. What stands in the way is a warning in the log, and nothing is traced."""
        names = _exporters(os.environ)
        others = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        if not names or others:  # such as opentelemetry-instrument, which reads the same variables
            return cls()
        if find_spec("opentelemetry.sdk") is None:
            logs.say("warning: OTEL_* ask for traces: pip install 'ragline[otel]' for them")
            return cls()
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # At exit, it would wait half a minute for a collector that does not answer.
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        for exporter in _loaded(names):
            provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    @property
    def fastapi(self) -> TelemetryConfig:
        """The argument `telemetry` of FastAPI: spans of requests, and nothing else."""
        return {
            "tracing": True,
            "tracer_provider": self._provider,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": lambda scope: scope["path"] in _UNTRACED,
        }

    def stages(
        self,
        laps: Iterable[Lap],
        *,
        collection: str,
        k: int,
        embedder: str = "",
        answer: Answer | None = None,
    ) -> None:
        """Spans of what was done in the request that is current, at the times that it was done."""
        request = trace.get_current_span()
        if not request.is_recording():
            return
        about: _Attributes = {"rag.collection": collection, "rag.k": k}
        if answer:
            about |= {"rag.abstained": answer.abstained, "rag.degraded": answer.degraded}
        request.set_attributes(about)
        known = _conventional(collection, k, embedder, answer)
        for stage, start, end in _with_wait(laps):
            span = self._tracer.start_span(stage, start_time=start, attributes=known.get(stage))
            span.end(end)

    def close(self) -> None:
        """Send what is left, for at most five seconds."""
        if self._provider is not None:
            sending = threading.Thread(target=self._provider.shutdown, daemon=True)
            sending.start()
            sending.join(_FLUSH_S)


def trace_id() -> str:
    """The id of the current trace, for the log; "" where there is none."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def headers() -> dict[str, str]:
    """The headers (traceparent) with which another server goes on with the current trace."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


def _conventional(
    collection: str, k: int, embedder: str, answer: Answer | None
) -> Mapping[str, _Attributes]:
    """Attributes of stages, as OpenTelemetry's conventions for generative AI name them."""
    known: dict[str, _Attributes] = {
        "embed": {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": embedder},
        "search": {
            "gen_ai.operation.name": "retrieval",
            "gen_ai.data_source.id": collection,
            "rag.k": k,
        },
    }
    if answer:
        known["generate"] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": answer.model,
            "gen_ai.usage.input_tokens": answer.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": answer.usage.completion_tokens,
        }
    return known


def _with_wait(laps: Iterable[Lap]) -> Iterator[Lap]:
    """The wait for the first piece is part of generating."""
    waited: Lap | None = None
    for stage, start, end in laps:
        if stage == "wait":
            waited = ("generate", start, end)
        elif stage == "generate" and waited:
            yield stage, waited[1], end
            waited = None
        else:
            yield stage, start, end
    if waited:
        yield waited


def _exporters(environment: Mapping[str, str]) -> list[str]:
    """Names of the exporters that are asked for."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return []
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    default = "otlp" if any(map(environment.get, endpoints)) else "none"
    asked = environment.get("OTEL_TRACES_EXPORTER") or default
    protocols = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next(filter(None, map(environment.get, protocols)), "http/protobuf")
    known = {"otlp": _PROTOCOLS.get(protocol, protocol)}
    names = [name.strip() for name in asked.split(",")]
    return [known.get(name, name) for name in names if name not in ("", "none")]


def _loaded(names: Iterable[str]) -> Iterator[SpanExporter]:
    for name in names:
        found = entry_points(group="opentelemetry_traces_exporter", name=name)
        try:
            for entry in found:
                yield entry.load()()
        except Exception as error:  # a wrong address, a certificate that is not there
            logs.say(f"warning: the exporter {name!r} of traces cannot be used ({error})")
        if not found:
            logs.say(f"warning: there is no exporter {name!r} of traces; install its package")


def _resource() -> Resource:
    from opentelemetry.sdk.resources import Resource

    about = {"service.version": __version__}
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        about["service.name"] = "rag"
    return Resource.create(about)
